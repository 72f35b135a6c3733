"""A worker's processes where no cgroup is delegated: the descendants of the supervisor.

The supervisor is a child subreaper (PR_SET_CHILD_SUBREAPER(2const)): whoever loses its parent, by a
double fork or after setsid(2), becomes the supervisor's child instead of leaving the tree.  So
everything below the supervisor is the worker's, but for the helpers it names.

* Nobody is left exactly when none of our own children lives: a living descendant has a living parent,
  all the way up to us, and only we reap our children, so their list does not change behind our back.
  Deeper lists may be out of date when they have been read; they serve to find most at once.
* The last process of the group is our own child by then: its SIGCHLD tells that the group is empty.
* Who is signalled is held by a pidfd first, and found in the tree after that.
* A process group is killed as one, forks in flight too (kill(2) holds the lock that fork(2) needs), so
  the groups go first.  They are the worker's alone: it leads a session of its own.

A command that an operator runs (`Session`) is a helper with a session of its own.

Weaker than a leaf in this: who forks as fast as it is killed, each time into a new group, is caught by
luck; an OOM kill is not counted for us; what a helper leaves behind counts as the worker's.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.exits import Evidence, WaitStatus
from nannyd.supervisor import leftover
from nannyd.supervisor.poll import host_oom_kills, parse_status

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable, Collection

_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)

KILL_PASSES = 100
"""Looks for new processes in one `kill`, against a worker that forks while it is killed."""

_PAUSE = 0.02
"""Seconds between two looks whether who was killed is gone."""
_KILL_TIMEOUT = 3.0

_LISTED = Path("/proc/thread-self/children").exists()
"""The kernel has CONFIG_PROC_CHILDREN; without, psutil finds children in the table of all processes."""


def become_subreaper(*, now: bool = True) -> None:
    """Make orphaned descendants of this process its children, or let them go again.  Raises OSError."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(now), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def reap_orphans(known: Collection[int]) -> bool:
    """Reap children that nobody waits for; those in *known* have somebody.  Say whether any was."""
    reaped = False
    while True:
        try:
            # A look first: one that is known must stay as it is.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if ended is None:
            return reaped
        if ended.si_pid in known:
            break
        reaped = _reap(ended.si_pid) or reaped
    for pid in children(os.getpid()):  # one that is known hides the others from such a look
        if pid not in known:
            reaped = _reap(pid) or reaped
    return reaped


def _reap(pid: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    return False


def children(pid: int) -> list[int]:
    """Return the children of process *pid*, zombies too; none when it is gone."""
    if not _LISTED:
        return _children_by_table(pid)
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123
                found.extend(map(int, file.read().split()))
    return found


def _children_by_table(pid: int) -> list[int]:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


class Processes:
    """Processes that can be found, and told from others; how to signal them without hitting others."""

    def pids(self) -> list[int]:
        """Return who is there, zombies too."""
        raise NotImplementedError

    def contains(self, pid: int) -> bool | None:
        """Say whether *pid* is one of them; None: it is gone."""
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Send signal *number* to every process that is there now."""
        for pid in self.pids():
            self._send(pid, number)

    def kill(self) -> None:
        """Kill until a look finds nobody new.  A fork in flight may escape it: repeat until `is_empty`."""
        struck: set[int] = set()
        for _ in range(KILL_PASSES):
            fresh = [pid for pid in self.pids() if pid not in struck]
            if not fresh:
                return
            for group in self._groups(fresh):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            for pid in fresh:
                self._send(pid, signal.SIGKILL)
            struck.update(fresh)

    def _groups(self, pids: list[int]) -> set[int]:
        """Return the process groups of *pids*, without those of our own session."""
        own, found = os.getsid(0), set[int]()
        for pid in pids:
            with suppress(ProcessLookupError):
                if self.contains(pid) and os.getsid(pid) != own:
                    found.add(os.getpgid(pid))
        return found

    def _send(self, pid: int, number: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self.contains(pid):  # the number was not taken over by somebody else meanwhile
                signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, PermissionError):
            return  # gone, or a set-user-ID program's that this user may not signal
        finally:
            os.close(pidfd)


class Tree(Processes):
    """All descendants of this process but its *helpers* and theirs.  A `group.Group`."""

    path = None

    def __init__(self, helpers: Callable[[], Collection[int]] = tuple) -> None:
        """Become their subreaper."""
        become_subreaper()
        self._helpers = helpers
        children(os.getpid())  # where psutil is needed, it is imported now and not after READY
        self._oom_kills = host_oom_kills()
        self._callback: Callable[[], None] | None = None

    def begin(self, pid: int) -> None:
        """Nothing: whatever descends from this process is found."""

    def pids(self) -> list[int]:
        """Return the processes of the tree, zombies too."""
        return with_descendants(self._own())

    def contains(self, pid: int) -> bool | None:
        """Say whether *pid* descends from this process; None: it is gone."""
        helpers, top = self._helpers(), os.getpid()
        while pid != top:
            if pid in helpers or pid <= 1:
                return False
            parent = status_of(pid).get("PPid")
            if parent is None:
                return None
            pid = int(parent)
        return True

    def contained(self, cgroup: int | None) -> None:
        """Nobody can say: a tree has no cgroup of its own."""

    def is_empty(self) -> bool:
        """Say whether nobody but zombies is left."""
        while True:
            own = self._own()
            if any(map(lives, own)):
                return False
            # Who died after the list was read had children, perhaps, which are ours now.
            if self._own() == own:
                return True

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Call *callback* whenever a child was reaped; now if nobody is left."""
        self._callback = callback
        if self.is_empty():
            callback()

    def child_reaped(self) -> None:
        """Learn that a child was reaped; it may have been the last."""
        if self._callback is not None:
            self._callback()

    def evidence(self, status: WaitStatus) -> Evidence:
        """Return how the worker ended; of OOM kills only that somebody on this host met one."""
        return uncounted(status, self._oom_kills)

    def memory_peak(self) -> None:
        """Nobody counts it for a tree."""

    def close(self) -> None:
        """Call nobody any more."""
        self._callback = None

    def _own(self) -> list[int]:
        helpers = self._helpers()
        return [pid for pid in children(os.getpid()) if pid not in helpers]


class Session(Processes):
    """The processes of a command that is no worker's: of its session, with its *mark* in their environment,
    or descended from such.

    Who leaves the session, drops the environment and loses its parent before anybody has looked is taken
    for the worker's.
    """

    def __init__(self, loop: AbstractEventLoop, mark: str) -> None:
        """Become their subreaper; nobody is there yet."""
        become_subreaper()
        self._loop = loop
        self._mark = mark
        self._leader = 0
        self._known: dict[int, str] = {}
        """Who was found once, and when it was born: it stays one, whatever becomes of its parent."""
        self._timer: TimerHandle | None = None
        self._until: float | None = None

    def begin(self, pid: int) -> None:
        """Take *pid* as the leader of the session; it is not reaped before `close`."""
        self._leader = pid

    def pids(self) -> list[int]:
        """Return who is there, zombies too."""
        return [pid for pid in with_descendants(children(os.getpid())) if self.contains(pid)]

    def contains(self, pid: int) -> bool:
        """Say whether *pid* belongs to the command."""
        born = born_at(pid)
        if born and self._known.get(pid) == born:
            return True
        ancestor, top = pid, os.getpid()
        while ancestor > 1 and ancestor != top:
            if self._is_marked(ancestor):
                self._known[pid] = born
                return True
            ancestor = int(status_of(ancestor).get("PPid", "0"))
        return False

    def _is_marked(self, pid: int) -> bool:
        try:
            in_session = self._leader in (pid, os.getsid(pid))
        except ProcessLookupError:
            return False
        return in_session or leftover.carries(pid, self._mark)

    def is_empty(self) -> bool:
        """Say whether nobody but zombies is left, or it is too late for more."""
        late = self._until is not None and self._loop.time() > self._until
        return late or not any(map(lives, self.pids()))

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Kill until nobody is left, then call *callback*; now if nobody is.

        Who does not die in time, as a set-user-ID program, is left to the worker's tree.
        """
        self._until = self._until or self._loop.time() + _KILL_TIMEOUT
        if self.is_empty():
            callback()
            return
        self.kill()
        self._timer = self._loop.call_later(_PAUSE, self.watch_empty, callback)

    def close(self) -> None:
        """Look for nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def uncounted(status: WaitStatus, oom_kills: int | None) -> Evidence:
    """Return the evidence about a worker without a leaf; *oom_kills* is how many the host had met before."""
    now = host_oom_kills()
    return Evidence(status, counted=False, host_oom_kills=now is None or oom_kills is None or now > oom_kills)


def with_descendants(pids: list[int]) -> list[int]:
    """Return *pids* and whoever descends from them."""
    found = todo = pids
    while todo:
        todo = [child for pid in todo for child in children(pid)]
        found = found + todo
    return list(dict.fromkeys(found))  # one that changed its parent meanwhile was met twice


def born_at(pid: int) -> str:
    """Return when *pid* was started, in the kernel's words; nothing: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""


def lives(pid: int) -> bool:
    """Say whether process *pid* is there, and no zombie."""
    status = status_of(pid)
    # The first thread may have ended before the others: then it is a zombie, but the process is not.
    return bool(status) and (status["State"][0] not in "ZX" or int(status["Threads"]) > 1)


def status_of(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status; none: it is gone."""
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:  # noqa: PTH123
            return parse_status(file.read())
    except OSError:
        return {}
