"""What this place offers a worker: memory bounds and CPUs, for `limit = "auto"`.

Every ancestor counts, not only the cgroup a process is in: a limit of the slice, of the container, of the
pod binds as well.  Read are the host's MemTotal, memory.max and memory.high (cgroup v2) and
memory.limit_in_bytes (v1) from the process's own cgroup up to the root of the mount, RLIMIT_AS and
RLIMIT_DATA; for the CPUs the affinity, cpu.max (v2) and cpu.cfs_quota_us (v1), likewise.

What is not visible (a cgroup namespace, a missing controller) does not bind.  The roots are arguments, so
that a directory with the kernel's texts can stand in for them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nannyd.core.memory import Bound
from nannyd.core.procfs import Mount, parse_cgroup, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

_UNLIMITED_V1 = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2⁶³, rounded down to a page."""

_RLIMITS = {"Max address space": "RLIMIT_AS", "Max data size": "RLIMIT_DATA"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found."""

    bounds: tuple[Bound, ...]
    """Never empty: the host is one."""
    cpus: float


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the kernel's file systems are mounted."""

    proc: Path = PROC
    cgroup: Path = CGROUP


@dataclass(slots=True)
class _Place:
    """One cgroup that binds the process: its directory, and its name for people."""

    name: str
    path: Path
    is_v2: bool = field(default=True)


def read_machine(*, pid: int | None = None, cgroup: str | None = None, roots: Roots | None = None) -> Machine:
    """Return what binds process *pid* (None: this one), or a process in the v2 *cgroup*."""
    roots = roots or Roots()
    process = roots.proc / ("self" if pid is None else str(pid))
    places = list(_places(process, roots, cgroup))
    bounds = [
        Bound("the host's MemTotal", _mem_total(roots.proc)),
        *(bound for place in places for bound in _memory_bounds(place)),
        *(_rlimits(process) if cgroup is None else ()),
    ]
    affinity = _affinity(process) if cgroup is None else float(os.cpu_count() or 1)
    quotas = [quota for place in places if (quota := _cpu_quota(place)) is not None]
    return Machine(tuple(bounds), min([affinity, *quotas]))


# Where the process is


def _places(process: Path, roots: Roots, cgroup: str | None) -> Iterator[_Place]:
    """Yield the process's cgroup in each hierarchy that counts, and all their ancestors."""
    paths = parse_cgroup(_read(process / "cgroup") or "") if cgroup is None else {"": cgroup}
    mountinfo = _read(process / "mountinfo") or _read(roots.proc / "self/mountinfo") or ""
    mounts = [mount for mount in parse_mountinfo(mountinfo) if mount.kind in ("cgroup", "cgroup2")]
    if not mounts and (roots.cgroup / "cgroup.controllers").exists():
        mounts = [Mount("/", str(CGROUP), "cgroup2", frozenset())]
    seen: set[Path] = set()
    for mount in mounts:
        is_v2 = mount.kind == "cgroup2"
        controller = "" if is_v2 else next(iter(mount.options & {"memory", "cpu"}), "")
        if controller not in paths or not (is_v2 or controller):
            continue
        base = _moved(Path(mount.point), roots)
        for name, path in _ancestors(paths[controller], mount.root, base):
            if path not in seen:
                seen.add(path)
                yield _Place(name, path, is_v2=is_v2)


def _moved(path: Path, roots: Roots) -> Path:
    """Return where a mount point is that the kernel names by its usual path."""
    return roots.cgroup / path.relative_to(CGROUP) if path.is_relative_to(CGROUP) else path


def _ancestors(path: str, root: str, base: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and directory of cgroup *path* and of all above it, as far as they are visible.

    *root* is what the mount shows as its own root.  Inside a cgroup namespace or an old container the
    path may lie outside of it; the mount's root is then the best that is known.
    """
    relative = PurePosixPath("/")
    if ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(root):
        relative = PurePosixPath("/") / PurePosixPath(path).relative_to(root)
    for name in (relative, *relative.parents):
        directory = base / name.relative_to("/")
        if directory.is_dir():
            yield str(PurePosixPath(root) / name.relative_to("/")), directory


# What binds it


def _memory_bounds(place: _Place) -> Iterator[Bound]:
    for file in ("memory.max", "memory.high") if place.is_v2 else ("memory.limit_in_bytes",):
        text = (_read(place.path / file) or "max").strip()
        if text.isdecimal() and (place.is_v2 or int(text) < _UNLIMITED_V1):
            yield Bound(f"{file} of {place.name}", int(text))


def _cpu_quota(place: _Place) -> float | None:
    """Return the CPUs that *place* grants, or None where it grants all."""
    if place.is_v2:
        words = (_read(place.path / "cpu.max") or "max").split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [(_read(place.path / name) or "").strip() for name in names]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # "max", or -1 in version 1
    return int(words[0]) / int(words[1])


def _rlimits(process: Path) -> Iterator[Bound]:
    for line in (_read(process / "limits") or "").splitlines():
        for label, name in _RLIMITS.items():
            if line.startswith(label) and (soft := line.removeprefix(label).split()[0]).isdecimal():
                # Each process has its own, so nannyd takes nothing from the worker's.
                yield Bound(name, int(soft), shared=False)


def _affinity(process: Path) -> float:
    for line in (_read(process / "status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return float(parse_cpu_list(line.partition(":")[2]))
    return float(len(os.sched_getaffinity(0)))


def parse_cpu_list(text: str) -> int:
    """Return how many CPUs a list such as `0-3,8` names (cpuset(7), "List format")."""
    count = 0
    for span in text.strip().split(","):
        first, _, last = span.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _mem_total(proc: Path) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(proc / "meminfo") or "", re.MULTILINE)
    if match is not None:
        return int(match[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return None
