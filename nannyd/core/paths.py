"""What the launcher, the supervisor and the clients of an instance agree on: where it keeps its socket and
lock while it runs, and which signals it waits for.

The same rule for the supervisor and for whoever looks for it: `$RUNTIME_DIRECTORY` where systemd gave one,
else /run/nannyd/NAME for root, `$XDG_RUNTIME_DIR`/nannyd/NAME for others, else /tmp/nannyd-UID/NAME, which
must belong to the user alone: anybody can make a directory in /tmp.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import site
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEMD_IS_HERE = Path("/run/systemd/system")
"""sd_booted(3)."""

SOCKET_PATH_MAX = 107
"""Bytes of a socket's path that fit into sockaddr_un, without the NUL (unix(7))."""

SUPERVISED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that a supervisor answers: blocked before it can, and when it cannot any more."""

_LONGEST_SOCKET = "notify-XXXXXXXX"
SYSTEM_DIRECTORY = Path("/run/nannyd")


class Scope(enum.StrEnum):
    """Whose instance it is, and which service manager would run it."""

    SYSTEM = "system"
    USER = "user"


def interpreter(environ: Mapping[str, str]) -> list[str]:
    """Return the command for more of nannyd: this interpreter, isolated, unless it would not find nannyd.

    Nobody's PYTHONPATH has a say in a daemon, but where nannyd itself came by it, or by `pip install --user`.
    """
    home = Path(__file__).resolve().parents[2]
    loose = [*environ.get("PYTHONPATH", "").split(os.pathsep), site.getusersitepackages()]
    is_loose = not sys.flags.isolated and any(Path(path).resolve() == home for path in loose if path)
    return [sys.executable, "-P" if is_loose else "-I"]


def runtime_directory(name: str, environ: Mapping[str, str]) -> Path:
    """Return where instance *name* keeps its socket and lock; it need not exist."""
    if given := given_directory("RUNTIME_DIRECTORY", environ):
        return given
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY / name
    if own := environ.get("XDG_RUNTIME_DIR"):
        return Path(own) / "nannyd" / name
    return in_tmp(os.geteuid()) / name


def parents(environ: Mapping[str, str]) -> list[tuple[Scope, Path]]:
    """Return the directories in which running instances have theirs: the system's, and the caller's own."""
    own = [in_tmp(os.geteuid())]
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        own.insert(0, Path(runtime) / "nannyd")
    return [(Scope.SYSTEM, SYSTEM_DIRECTORY), *((Scope.USER, path) for path in own)]


def given_directory(variable: str, environ: Mapping[str, str]) -> Path | None:
    """Return the first directory of a list that systemd made, or None.

    The paths are absolute and joined by colons, of which a name may have some itself (`nannyd@a:b`).
    """
    given = environ.get(variable, "").split(":/")[0]
    return Path(given) if given else None


def control_socket(directory: Path) -> Path:
    """Return the path of the control socket."""
    return directory / "control"


def lock_file(directory: Path) -> Path:
    """Return the path of the file that a running instance holds locked; it contains the pid."""
    return directory / "lock"


def end_file(state: Path) -> Path:
    """Return the path of the file in which an instance that has ended says why; *state* is its directory."""
    return state / ".ended.json"


def socket_path_problem(directory: Path) -> str | None:
    """Say that the sockets' paths would be longer than the kernel takes, or return None."""
    length = len(os.fsencode(directory / _LONGEST_SOCKET))
    if length <= SOCKET_PATH_MAX:
        return None
    return (
        f"the path of a socket in {directory} would have {length} bytes, and the kernel takes at most"
        f" {SOCKET_PATH_MAX}; write a shorter name, or set RUNTIME_DIRECTORY to a shorter path"
    )


def make_runtime_directory(directory: Path) -> None:
    """Make *directory* where it is missing.  Raises OSError, also for one in /tmp that is not ours alone."""
    if directory.parent == in_tmp(os.geteuid()):
        for path in (directory.parent, directory):
            path.mkdir(mode=0o700, exist_ok=True)
            _check_own(path)
        return
    mode = 0o755 if os.geteuid() == 0 else 0o700
    directory.parent.mkdir(parents=True, exist_ok=True, mode=mode)
    directory.mkdir(exist_ok=True, mode=mode)


def in_tmp(uid: int) -> Path:
    """Return where user *uid* has runtime directories without XDG_RUNTIME_DIR; to be checked before use."""
    return Path(f"/tmp/nannyd-{uid}")  # noqa: S108


def _check_own(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory; remove it", str(path))
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        message = f"is not private to user {os.geteuid()}; remove it, or set XDG_RUNTIME_DIR"
        raise PermissionError(errno.EPERM, message, str(path))
