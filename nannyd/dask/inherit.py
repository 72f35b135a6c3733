"""What a plugin does to this process, for the next worker.

The worker of Dask's nanny is spawned by it and has the nanny's `sys.path` and `os.environ`; plugins rely on
that.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence


@dataclass(frozen=True)
class Traces:
    """The difference that somebody has made."""

    path: list[str]
    """New directories of `sys.path`."""
    environ: dict[str, str]
    """Variables that are new or have another value."""
    before: dict[str, str | None]
    """What they were."""

    def hand_down(self, env: MutableMapping[str, str], besides: Sequence[str] = ()) -> None:
        """Put it into the environment of the next worker, and directories *besides*."""
        env.update(self.environ)
        if path := [*self.path, *(entry for entry in besides if entry not in self.path)]:
            rest = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep)
            others = [entry for entry in rest if entry and entry not in path]
            env["PYTHONPATH"] = os.pathsep.join([*path, *others])

    def undo(self) -> None:
        """Make this process as it was, but for what somebody has changed since."""
        for entry in self.path:
            if entry in sys.path:
                sys.path.remove(entry)
        for name, before in self.before.items():
            if os.environ.get(name) != self.environ[name]:
                continue
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


class Watch:
    """How `sys.path` and `os.environ` are before something is done."""

    def __init__(self) -> None:
        """Remember them."""
        self._path = set(sys.path)
        self._environ = dict(os.environ)

    def traces(self) -> Traces:
        """Return what is different now.  A variable that was deleted stays what it was for the worker."""
        changed = {name: value for name, value in os.environ.items() if self._environ.get(name) != value}
        return Traces(
            path=[entry for entry in sys.path if entry not in self._path],
            environ=changed,
            before={name: self._environ.get(name) for name in changed},
        )
