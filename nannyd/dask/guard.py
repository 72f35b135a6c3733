"""The event loop of somebody's program, as a supervisor in it sees it.

A callback of the supervisor's that raises must end the supervisor, for nothing is to go on half broken; but
the loop's exception handler is not ours to set.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class _Guard:
    """Passes on what a supervisor asks of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, failed: Callable[[Exception], None]) -> None:
        self._loop, self._failed = loop, failed
        self.time = loop.time
        self.remove_reader = loop.remove_reader
        self.remove_writer = loop.remove_writer

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            self._failed(error)

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, functools.partial(self._call, callback, *args))

    def add_reader(self, fd: Any, callback: Callable[..., None], *args: Any) -> None:
        self._loop.add_reader(fd, functools.partial(self._call, callback, *args))

    def add_writer(self, fd: Any, callback: Callable[..., None], *args: Any) -> None:
        self._loop.add_writer(fd, functools.partial(self._call, callback, *args))


def guarded(
    loop: asyncio.AbstractEventLoop, failed: Callable[[Exception], None]
) -> asyncio.AbstractEventLoop:
    """Return *loop* for a supervisor; *failed* is told what its callbacks raise."""
    return cast("asyncio.AbstractEventLoop", _Guard(loop, failed))
