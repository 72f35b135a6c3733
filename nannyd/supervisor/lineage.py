"""A worker's processes where nannyd is part of somebody's program, which it cannot make a child subreaper.

They are found: who is of the worker's session, has the mark of its life in the environment (`leftover`), or
descends from such.  Who was found once stays one, whatever becomes of its parent.

* While the worker lives, only its descendants are looked for, for its memory is read ten times a second.
* Everybody on the host is looked at when the worker is to be killed, and until nobody is left of it.

Weaker than a tree in this: who leaves the session, drops the environment and loses its parent before anybody
has looked is not found.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from nannyd.supervisor import leftover
from nannyd.supervisor.poll import host_oom_kills
from nannyd.supervisor.tree import Processes, born_at, lives, status_of, uncounted, with_descendants

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable

    from nannyd.core.exits import Evidence, WaitStatus

_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
"""Seconds from one look whether somebody is left to the next; they grow from the one to the other."""


class Lineage(Processes):
    """The processes of one life.  A `group.Group`."""

    path = None

    def __init__(self, loop: AbstractEventLoop, mark: str) -> None:
        """Nobody is there yet."""
        self._loop, self._mark = loop, mark
        self._leader, self._born = 0, ""
        self._known: dict[int, str] = {}
        """Who was found, and when it was born."""
        self._pause = _PAUSE
        self._timer: TimerHandle | None = None
        self._oom_kills = host_oom_kills()

    def begin(self, pid: int) -> None:
        """Take *pid* as the first of them and the leader of their session."""
        self._leader, self._born = pid, born_at(pid)
        self._known[pid] = self._born

    def pids(self) -> list[int]:
        """Return who descends from those that are known, with them; zombies too."""
        self._known = {pid: born for pid, born in self._known.items() if born_at(pid) == born}
        self._learn(with_descendants(list(self._known)))
        return list(self._known)

    def _everybody(self) -> list[int]:
        """Return who there is anywhere, zombies too."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only
        self._learn([pid for pid in pids if pid not in self._known and self._is_marked(pid)])
        return self.pids()

    def _learn(self, pids: list[int]) -> None:
        for pid in pids:
            if pid not in self._known and (born := born_at(pid)):
                self._known[pid] = born

    def _is_marked(self, pid: int) -> bool:
        with suppress(ProcessLookupError):
            if pid != os.getpid() and os.getsid(pid) == self._leader:
                return not self._is_succeeded()
        return pid != os.getpid() and leftover.carries(pid, self._mark)

    def _is_succeeded(self) -> bool:
        """Say whether somebody else has the number of the worker that is gone, and leads a session, too."""
        return born_at(self._leader) not in ("", self._born)

    def contains(self, pid: int) -> bool | None:
        """Say whether process *pid* is one of them; None: it is gone."""
        born = born_at(pid)
        if not born:
            return None
        if self._known.get(pid) == born:
            return True
        ancestor = pid
        while ancestor > 1 and ancestor != os.getpid():
            if self._known.get(ancestor) == born_at(ancestor) or self._is_marked(ancestor):
                self._known[pid] = born
                return True
            ancestor = int(status_of(ancestor).get("PPid", "0"))
        return False

    def contained(self, cgroup: int | None) -> None:
        """Nobody can say: they have no cgroup of their own."""

    def is_empty(self) -> bool:
        """Say whether nobody but zombies is left."""
        return not any(map(lives, self._everybody()))

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Look until nobody is left, then call *callback*; now if nobody is."""
        if self.is_empty():
            callback()
            return
        self._timer = self._loop.call_later(self._pause, self.watch_empty, callback)
        self._pause = min(_LONGEST_PAUSE, 1.5 * self._pause)

    def child_reaped(self) -> None:
        """Nothing: an orphan becomes nobody's child here."""

    def kill(self) -> None:
        """Kill all that are found anywhere.  A fork in flight may escape: `watch_empty` will find it."""
        self._everybody()
        super().kill()
        self._pause = _PAUSE

    def evidence(self, status: WaitStatus) -> Evidence:
        """Return how the worker ended; of OOM kills only that somebody on this host met one."""
        return uncounted(status, self._oom_kills)

    def memory_peak(self) -> None:
        """Nobody counts it."""

    def close(self) -> None:
        """Look for nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
