"""Whether something of Dask's is under way, as the supervisor wants to know it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping


class Activity:
    """What is under way.  Belongs to Dask's event loop."""

    def __init__(self, say: Callable[[Mapping[str, Any]], None]) -> None:
        """Nothing is; *say* tells the supervisor when that changes."""
        self._say = say
        self._under_way: set[Hashable] = set()

    def __bool__(self) -> bool:
        """Say whether there is anything."""
        return bool(self._under_way)

    def begin(self, what: Hashable) -> None:
        """Take note of *what*."""
        if not self._under_way:
            self._say({"say": "busy"})
        self._under_way.add(what)

    def end(self, what: Hashable) -> None:
        """Forget *what*, if it was under way."""
        if what in self._under_way:
            self._under_way.remove(what)
            if not self._under_way:
                self._say({"say": "idle"})

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Something is under way meanwhile."""
        what = object()
        self.begin(what)
        try:
            yield
        finally:
            self.end(what)


class Requests(dict[Any, Any]):
    """What each connection of a Dask Server has asked for: that is under way until it was answered.

    A Server keeps the word of a request beside its connection, and None between requests.
    """

    def __init__(self, activity: Activity) -> None:
        """There are no connections."""
        super().__init__()
        self._activity = activity

    def __setitem__(self, comm: Any, op: Any) -> None:
        """Take note of a request, or (None) of its end."""
        super().__setitem__(comm, op)
        if op is None:
            self._activity.end(comm)
        else:
            self._activity.begin(comm)

    def __delitem__(self, comm: Any) -> None:
        """Take note of the end of a connection."""
        super().__delitem__(comm)
        self._activity.end(comm)
