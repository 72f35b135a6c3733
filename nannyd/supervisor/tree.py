"""A worker's processes where no cgroup is delegated: the descendants of the supervisor.

The supervisor is a child subreaper (PR_SET_CHILD_SUBREAPER(2const)): whoever loses its parent, by a
double fork or after setsid(2), becomes the supervisor's child instead of leaving the tree.  So
everything below the supervisor is the worker's, but for the helpers it names.  The weak points against a
leaf: a process table is out of date when it has been read, and an OOM kill is not counted for us.

* Whoever is signalled was found by pid and start time, and is held by a pidfd when that is checked.
* The last process of the group is our own child by then: its SIGCHLD tells that the group is empty.
* A look that may miss somebody (memory) goes by /proc/PID/task/TID/children, a verdict (nobody is left,
  all were killed) by psutil's table of all processes.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from nannyd.core.exits import Evidence, WaitStatus
from nannyd.supervisor.poll import host_oom_kills, parse_status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_PR_SET_CHILD_SUBREAPER = 36

KILL_PASSES = 100
"""Looks for new processes in one `kill`, against a worker that forks as fast as it is killed."""


def become_subreaper(*, now: bool = True) -> None:
    """Make orphaned descendants of this process its children, or let them go again.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(now), 0, 0, 0) != 0:
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
    """Return the children of process *pid*, zombies too."""
    try:
        return _listed_children(pid)
    except OSError:  # it is gone; or a kernel without CONFIG_PROC_CHILDREN
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(pid).children()]
        return []


def _listed_children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123
            found.extend(map(int, file.read().split()))
    return found


class Tree:
    """All descendants of this process but its *helpers* and theirs."""

    path = None

    def __init__(self, helpers: Callable[[], Collection[int]] = tuple) -> None:
        """Become their subreaper."""
        become_subreaper()
        self._helpers = helpers
        self._oom_kills = host_oom_kills()
        self._callback: Callable[[], None] | None = None

    def pids(self) -> list[int]:
        """Return the processes of the tree, as far as a quick look finds them."""
        helpers, found = self._helpers(), list[int]()
        todo = [os.getpid()]
        while todo:
            todo = [child for pid in todo for child in children(pid) if child not in helpers]
            found += todo
        return found

    def contains(self, pid: int) -> bool | None:
        """Say whether *pid* descends from this process."""
        helpers, top = self._helpers(), os.getpid()
        while pid != top:
            if pid in helpers or pid <= 1:
                return False
            try:
                with open(f"/proc/{pid}/status", errors="replace") as file:  # noqa: PTH123
                    pid = int(parse_status(file.read())["PPid"])
            except OSError:
                return None
        return True

    def is_empty(self) -> bool:
        """Say whether nobody but zombies is left."""
        return not self._living()

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Call *callback* whenever a child was reaped; now if nobody is left."""
        self._callback = callback
        if self.is_empty():
            callback()

    def child_reaped(self) -> None:
        """Learn that a child was reaped; it may have been the last."""
        if self._callback is not None:
            self._callback()

    def signal(self, number: int) -> None:
        """Send signal *number* to every process that is there now."""
        for process in self._living():
            _send(process, number)

    def kill(self) -> None:
        """Kill until a look finds nobody new.  A fork in flight may escape it: repeat until `is_empty`."""
        struck: set[psutil.Process] = set()
        for _ in range(KILL_PASSES):
            fresh = self._living() - struck
            if not fresh:
                return
            for process in fresh:
                _send(process, signal.SIGKILL)
            struck |= fresh

    def evidence(self, status: WaitStatus) -> Evidence:
        """Return how the worker ended; of OOM kills only that somebody on this host met one."""
        now = host_oom_kills()
        struck = now is None or self._oom_kills is None or now > self._oom_kills
        return Evidence(status, counted=False, host_oom_kills=struck)

    def close(self) -> None:
        """Call nobody any more."""
        self._callback = None

    def _living(self) -> set[psutil.Process]:
        found = set(psutil.Process().children(recursive=True))
        for pid in self._helpers():
            with suppress(psutil.NoSuchProcess):
                helper = psutil.Process(pid)
                found -= {helper, *helper.children(recursive=True)}
        return {process for process in found if not _is_zombie(process)}


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _send(process: psutil.Process, number: int) -> None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.is_running():  # with the same start time: the pidfd is of nobody else
            signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return  # gone, or a set-user-ID program's that this user may not signal
    finally:
        os.close(pidfd)
