"""The delegated part of the cgroup tree (cgroup v2 only): found, taken into possession, given leaves.

    nannyd@x.service/    delegated: user.delegate is set, its files are ours
        supervisor/      this process (inner cgroups hold no processes)
        worker-7/        one generation of the worker; never used twice
        agent/           the agent, if there is one
        run-3/           a command that an operator runs (Run)

Nothing is taken over that nobody gave us: root may write everywhere, so root goes by the mark that systemd
leaves on what it delegates (xattr user.delegate or trusted.delegate, systemd 252).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nannyd.core.procfs import parse_cgroup, parse_mountinfo
from nannyd.supervisor.cgroup import Leaf, cgroup_of, is_in_leaf, remove, write

if TYPE_CHECKING:
    from nannyd.core.procfs import Mount

SUPERVISOR = "supervisor"
AGENT = "agent"
_WANTED = ("memory", "pids")
_MARKS = ("user.delegate", "trusted.delegate")


def locate(path: str, mounts: list[Mount]) -> Path | None:
    """Return the directory of cgroup *path*; None: no mount shows it."""
    for mount in mounts:
        root, point = mount.root, mount.point
        if f"{path}/".startswith(f"{root.rstrip('/')}/") and "/.." not in path:
            return Path(point + path.removeprefix(root.rstrip("/"))) if path != root else Path(point)
    return None


def _here(proc: Path) -> tuple[str | None, Path | None, list[Mount]]:
    """Return the cgroup of this process, its directory, and where cgroups are mounted."""
    path = parse_cgroup((proc / "cgroup").read_text()).get("")
    mounted = parse_mountinfo((proc / "mountinfo").read_text())
    mounts = [mount for mount in mounted if mount.kind == "cgroup2"]
    return path, None if path is None else locate(path, mounts), mounts


def is_alone() -> bool:
    """Say whether this process lives alone in a cgroup for supervisors: then what is around it is its own."""
    _, own, _ = _here(Path("/proc/self"))
    if own is None or own.name != SUPERVISOR:
        return False
    with suppress(OSError):  # a threaded cgroup
        return (own / "cgroup.procs").read_text().split() == [str(os.getpid())]
    return False


class Delegation:
    """The cgroup that was delegated to this process, ready to take leaves."""

    def __init__(self, directory: Path, path: str, mount: Path) -> None:
        """Use *directory*, whose controllers are enabled."""
        self.path = path
        self.has_memory = "memory" in (directory / "cgroup.subtree_control").read_text().split()
        self._directory = directory
        inner = [directory, *directory.parents]
        self._ancestors = inner[: inner.index(mount) + 1]
        self._abandoned: list[Path] = []

    @classmethod
    def find(cls, proc: Path = Path("/proc/self")) -> tuple[Self | None, str]:
        """Return the delegation, taken into possession; or None and why there is none, in words."""
        path, own, mounts = _here(proc)
        if path is None or own is None:
            return None, "no cgroup v2 file system is mounted here"
        if not (own / "cgroup.controllers").exists() or not _is_delegated_at(own):
            return None, f"{path} was not delegated (systemd: Delegate=memory pids)"
        directory = own.parent if own.name == SUPERVISOR and _may_use(own.parent) else own
        try:
            if directory is own:
                _move_into(directory / SUPERVISOR)
            _enable(directory)
        except OSError as error:
            if directory is own:
                with suppress(OSError):
                    write(directory / "cgroup.procs", "0")
                    (directory / SUPERVISOR).rmdir()
            why = {errno.EBUSY: "other processes live in it", errno.EROFS: "it is mounted read-only"}
            return None, f"{path} cannot be used: {why.get(error.errno or 0, error.strerror)}"
        mount = next(Path(mount.point) for mount in mounts if directory.is_relative_to(mount.point))
        return cls(directory, path if directory is own else os.path.dirname(path) or "/", mount), ""  # noqa: PTH120

    def leaf(self, number: int) -> Leaf:
        """Return a fresh leaf, `worker-NUMBER` or with the next number that is free.  Raises OSError."""
        return self._fresh("worker", number)

    def run_leaf(self, number: int) -> Leaf:
        """Return a fresh leaf, `run-NUMBER` or with the next number that is free.  Raises OSError."""
        return self._fresh("run", number)

    def _fresh(self, kind: str, number: int) -> Leaf:
        self._abandoned = [directory for directory in self._abandoned if not remove(directory)]
        while True:
            directory = self._directory / f"{kind}-{number}"
            try:
                directory.mkdir()
            except FileExistsError:
                number += 1
            else:
                return self._open(directory)

    def agent_leaf(self) -> Leaf:
        """Return a fresh leaf for the agent: `agent`, or one with a number while the last is not gone.

        Raises OSError.
        """
        number = 1
        while True:
            directory = self._directory / (AGENT if number == 1 else f"{AGENT}-{number}")
            if remove(directory):
                directory.mkdir()
                return self._open(directory)
            number += 1

    def in_leaf(self, pid: int) -> bool | None:
        """Say whether process *pid* lives in the leaf of a worker, ours or another's; None: it is gone."""
        path = cgroup_of(pid)
        if path is not None:
            return is_in_leaf(path, self.path)
        # ProtectProc= hides others' processes from us, and with PrivateUsers= even those of ExecReload=.
        try:
            os.close(os.pidfd_open(pid))
        except ProcessLookupError:
            return None
        # Other instances of the template are beside us.
        return any(_lists(leaf, pid) for leaf in self._directory.parent.glob("*/worker-*"))

    def leftovers(self) -> list[Leaf]:
        """Return the leaves that an earlier life of the supervisor left behind."""
        names = ("worker-*", AGENT, f"{AGENT}-*", "run-*")
        return [self._open(directory) for name in names for directory in sorted(self._directory.glob(name))]

    def _open(self, directory: Path) -> Leaf:
        path = f"{self.path.rstrip('/')}/{directory.name}"
        return Leaf(directory, path, self._ancestors, self._abandoned.append)


def _lists(leaf: Path, pid: int) -> bool:
    """Say whether *leaf*, or a cgroup that the worker made in it, lists process *pid*."""
    for directory, *_ in os.walk(leaf):
        # A threaded cgroup lists its processes further up; one that was just removed has none.
        with suppress(OSError):
            if str(pid) in Path(directory, "cgroup.procs").read_text().split():
                return True
    return False


def _is_delegated_at(own: Path) -> bool:
    return (own.name == SUPERVISOR and _may_use(own.parent)) or _is_marked(own)


def _may_use(directory: Path) -> bool:
    """Say whether *directory*, in whose `supervisor` this process lives, was given to it."""
    files = [directory / name for name in ("cgroup.procs", "cgroup.subtree_control")]
    return _is_marked(directory) or (os.geteuid() != 0 and all(os.access(file, os.W_OK) for file in files))


def _is_marked(directory: Path) -> bool:
    for mark in _MARKS:
        with suppress(OSError):  # no such attribute, or not for our eyes
            if os.getxattr(directory, mark) == b"1":
                return True
    return False


def _move_into(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    write(directory / "cgroup.procs", "0")


def _enable(directory: Path) -> None:
    offered = (directory / "cgroup.controllers").read_text().split()
    enabled = (directory / "cgroup.subtree_control").read_text().split()
    missing = [f"+{name}" for name in _WANTED if name in offered and name not in enabled]
    if missing:
        write(directory / "cgroup.subtree_control", " ".join(missing))
