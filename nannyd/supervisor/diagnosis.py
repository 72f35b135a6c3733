"""What was wrong, after the program of a worker could not be executed: looked for only then."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nannyd.supervisor.spawn import Leaf


def explain(number: int, path: str, working_directory: str | None, leaf: Leaf | None) -> tuple[str, int]:
    """Return what errno *number*, from somewhere between us and the program at *path*, is about."""
    directory = Path(working_directory or "")
    if number == errno.EINVAL:
        return f"cannot execute {path!r} with these arguments and environment", number
    if working_directory is not None and (wrong := _not_enterable(directory)):
        return f"cannot enter working directory {working_directory!r}", wrong
    if leaf is not None and not os.access("cgroup.procs", os.W_OK, dir_fd=leaf.fd):
        return f"cannot enter the leaf {leaf.path}", number
    found = directory / path
    if (interpreter := _interpreter(found)) and (wrong := _not_executable(directory / interpreter)):
        return f"cannot execute {interpreter!r}, the interpreter of script {path!r}", wrong
    if number == errno.ENOENT and found.exists():
        return f"cannot load executable {path!r}: the dynamic loader it names is missing", number
    if number == errno.ENOEXEC:
        return f"cannot execute {path!r}: no program of this machine, no script with #!", number
    return f"cannot execute {path!r}", number


def _not_enterable(directory: Path) -> int:
    """Return the errno that chdir(2) to *directory* would meet, or 0."""
    try:
        is_directory = stat.S_ISDIR(directory.stat().st_mode)
    except OSError as error:
        return error.errno or errno.EIO
    if not is_directory:
        return errno.ENOTDIR
    return 0 if os.access(directory, os.X_OK) else errno.EACCES


def _not_executable(path: Path) -> int:
    """Return the errno that execve(2) of *path* would meet for its name or mode, or 0."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        return error.errno or errno.EIO
    return 0 if is_file and os.access(path, os.X_OK) else errno.EACCES


def _interpreter(path: Path) -> str | None:
    """Return what the `#!` line of *path* names, if it is a script."""
    try:
        with path.open("rb") as file:
            line = file.read(256).split(b"\n")[0]
    except OSError:
        return None
    words = line.removeprefix(b"#!").split()
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words else None
