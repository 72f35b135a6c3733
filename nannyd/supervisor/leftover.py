"""What a nannyd that crashed left running where no cgroup holds it together.

A worker and all it forked carry NANNYD_LOCAL_DIRECTORY in their environment, the path of a scratch
directory that was made for one life and for no other.  So whoever carries the path of an abandoned one
is a leftover, whatever became of its parent, session or process group.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PAUSE = 0.05
_TIMEOUT = 10.0


def find(scratch: Path) -> list[int]:
    """Return the processes that were started for the life with the directory *scratch*."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only
    return [pid for pid in pids if pid != os.getpid() and _carries(pid, scratch)]


def _carries(pid: int, scratch: Path) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return b"NANNYD_LOCAL_DIRECTORY=" + os.fsencode(scratch) in file.read().split(b"\0")
    except OSError:  # gone, or somebody else's
        return False


async def end(scratch: Path) -> list[int]:
    """Kill the leftovers of *scratch*; return who they were.

    Raises TimeoutError when one does not die: nothing may start beside it.
    """
    ended: list[int] = []
    async with asyncio.timeout(_TIMEOUT):
        while pids := find(scratch):
            ended += [pid for pid in pids if pid not in ended]
            for pid in pids:
                _kill(pid, scratch)
            await asyncio.sleep(_PAUSE)  # a look again, for who was forked meanwhile
    return ended


def _kill(pid: int, scratch: Path) -> None:
    with suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(pid)
        try:
            if _carries(pid, scratch):  # held by descriptor, it still is who it was
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
