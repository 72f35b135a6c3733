"""The worker's scratch directory: private, made for one life, removed after it.

    PLACE/worker-7-3f09c1/         the worker's, mode 0700
    PLACE/worker-7-3f09c1.owner    whose it is; locked by the nannyd that made it

After a crash of nannyd the next one sweeps what is left: a directory whose owner file is locked belongs to
a living nannyd and is not touched; the others' workers, if they still live, are ended first (`leftover`).
Removal is left to rm(1): it works by descriptors, follows no link, stays on its file system, and however
much there is to remove, it does not hold up the supervisor.
"""

from __future__ import annotations

import fcntl
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.paths import given_directory
from nannyd.core.procfs import parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_TMPFS = {"tmpfs", "ramfs"}
"""File systems that live in memory: what a worker writes there would be charged to it."""


def place(configured: str | None, environ: Mapping[str, str], name: str) -> Path:
    """Return, made if need be, the directory for the scratch directories of instance *name*.

    It lies below what is configured, else $STATE_DIRECTORY, $TMPDIR, /var/tmp; a tmpfs is taken only
    where it was configured.  Raises OSError where there is no place.
    """
    state = given_directory("STATE_DIRECTORY", environ)
    if configured is None and state is not None:
        return _made(state, "scratch")
    if configured is not None:
        return _made(Path(configured), *_shelf(Path(configured)), name)
    for candidate in (environ.get("TMPDIR", ""), "/var/tmp", "/tmp"):  # noqa: S108 - by our own name
        if not candidate or not os.access(candidate, os.W_OK):
            continue
        directory = Path(candidate)
        if not _in_memory(candidate, directory.stat().st_dev):
            return _made(directory, *_shelf(directory), name)
    message = "no place for a scratch directory that is not in memory; set worker.local-directory"
    raise OSError(message)


@functools.cache
def _in_memory(path: str, _device: int) -> bool:
    """Say whether *path* lies in memory; asked once, for what is mounted later has another *device*."""
    return filesystem_of(path) in _TMPFS


def _shelf(directory: Path) -> tuple[str, ...]:
    """Return the name between *directory* and the instance's; a user's own where others can write."""
    shared = directory.stat().st_mode & 0o002
    return (f"nannyd-{os.getuid()}",) if shared else ("nannyd",)


def _made(base: Path, *names: str) -> Path:
    """Make *names* below *base*, refusing what somebody else put there."""
    path = base
    for name in names:
        path /= name
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.lstat().st_uid != os.getuid():
            message = f"{path} is a link or somebody else's; remove it or set worker.local-directory"
            raise PermissionError(message)
    return path


def filesystem_of(path: str, mountinfo: str | None = None) -> str:
    """Return the type of the file system that holds *path*."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    real = Path(os.path.realpath(path))
    holding = [mount for mount in parse_mountinfo(text) if real.is_relative_to(mount.point)]
    return max(holding, key=lambda mount: len(mount.point)).kind if holding else ""


class Scratch:
    """One scratch directory."""

    def __init__(self, parent: Path, generation: int) -> None:
        """Make it in *parent*, a `place`.  Raises OSError."""
        self.path = parent / f"worker-{generation}-{os.urandom(3).hex()}"
        self._owner = self.path.with_suffix(".owner")
        self._lock = os.open(self._owner, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path.mkdir(mode=0o700)
        except OSError:
            self._owner.unlink()
            os.close(self._lock)
            raise

    def forget(self, *, removed: bool) -> None:
        """Give up the lock; a directory that could not be *removed* is left for the next nannyd to sweep."""
        if removed:
            self._owner.unlink(missing_ok=True)
        os.close(self._lock)


def abandoned(parent: Path) -> list[Path]:
    """Return the scratch directories in *parent*, a `place`, whose nannyd is gone."""
    found = []
    for owner in sorted(parent.glob("worker-*.owner")):
        descriptor = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(owner.with_suffix(""))
        except BlockingIOError:
            pass  # a living nannyd's
        finally:
            os.close(descriptor)
    return found


def disown(path: Path, *, removed: bool) -> None:
    """Forget an abandoned directory once it is *removed*."""
    if removed:
        path.with_suffix(".owner").unlink(missing_ok=True)


def removal(path: Path) -> list[str]:
    """Return the command that removes *path*."""
    return ["rm", "-rf", "--one-file-system", "--", str(path)]
