"""A name for an instance that nobody else has: `alice`, or `alice-2` where that runs.

The claim is a lock beside the instance's own, for nannyd itself takes that one only later; it lasts as long
as the descriptor, which may go through `execve`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
from typing import TYPE_CHECKING

from nannyd.core.paths import control_socket, given_directory, make_runtime_directory, runtime_directory
from nannyd.core.units import NAME_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def claim(name: str, environ: Mapping[str, str]) -> tuple[str, int | None]:
    """Return a free name like *name*, and the descriptor that keeps it.

    Where the directory does not depend on the name, or cannot be used, there is none; nannyd will say so.
    """
    if given_directory("RUNTIME_DIRECTORY", environ) is not None:
        return name, None
    for number in itertools.count(1):
        end = "" if number == 1 else f"-{number}"
        candidate = name[: NAME_MAX - len(end)] + end
        directory = runtime_directory(candidate, environ)
        try:
            make_runtime_directory(directory)
            descriptor = _lock(directory / "claim")
        except BlockingIOError:
            continue
        except OSError:
            return candidate, None
        if not _is_running(directory):
            return candidate, descriptor
        os.close(descriptor)
    raise AssertionError


def _lock(path: Path) -> int:
    """Return a descriptor that holds the lock of *path*.  Raises BlockingIOError if somebody has it."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_running(directory: Path) -> bool:
    """Say whether an instance that was not started here has this directory; its lock must not be touched."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(control_socket(directory)))
        except OSError:
            return False
        return True
