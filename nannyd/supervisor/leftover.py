"""What a nannyd that crashed left running where no cgroup holds it together.

A worker and all it forked carry NANNYD_LOCAL_DIRECTORY in their environment, the path of a scratch
directory that was made for one life and for no other.  So whoever carries the path of an abandoned one
is a leftover, whatever became of its parent, session or process group.  The same with NANNYD_RUN, which
names the runtime directory, for the commands of operators.
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


def of_life(scratch: Path) -> str:
    """Return the mark of the life with the directory *scratch*."""
    return f"NANNYD_LOCAL_DIRECTORY={scratch}\0"


def of_command(runtime: Path, name: str) -> str:
    """Return the mark of a command of the instance with the directory *runtime*."""
    return f"{of_commands(runtime)}{name}\0"


def of_commands(runtime: Path) -> str:
    """Return how the marks of all of its commands begin."""
    return f"NANNYD_RUN={runtime}/"


def find(mark: str) -> list[int]:
    """Return the processes that have *mark* in their environment."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only
    return [pid for pid in pids if pid != os.getpid() and carries(pid, mark)]


def carries(pid: int, mark: str) -> bool:
    """Say whether process *pid* has *mark*, the beginning of a variable or all of it and a NUL."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return b"\0" + os.fsencode(mark) in b"\0" + file.read()
    except OSError:  # gone, or somebody else's
        return False


async def end(mark: str) -> list[int]:
    """Kill whoever has *mark*; return who they were.

    Raises TimeoutError when one does not die: nothing may start beside it.
    """
    ended: list[int] = []
    async with asyncio.timeout(_TIMEOUT):
        while pids := find(mark):
            ended += [pid for pid in pids if pid not in ended]
            for pid in pids:
                _kill(pid, mark)
            await asyncio.sleep(_PAUSE)  # a look again, for who was forked meanwhile
    return ended


def _kill(pid: int, mark: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(pid)
        try:
            if carries(pid, mark):  # held by descriptor, it still is who it was
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
