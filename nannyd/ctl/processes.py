"""The processes of a worker, from /proc, as a tree.

Those of its cgroup where it has one of its own; else whoever descends from nannyd, for nobody who is left
alone gets away from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.ctl.render import Style, clean, ellipsize, pad, size, width_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nannyd.ctl.replies import Status

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_MOST = 1000
"""Processes that are looked at."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process."""

    pid: int
    parent: int
    command: str
    memory: int | None
    """Bytes of its own that are not in a file: anonymous and shared memory."""


def of_worker(status: Status) -> list[Process]:
    """Return the processes of the worker, parents first; none where there is none, or none can be seen."""
    worker = status.worker
    if worker is None:
        return []
    group = worker.control_group
    pids = _descendants(status.pid) if group is None else _in_cgroup(group)
    found = [process for pid in sorted(pids)[:_MOST] if (process := _read(pid)) is not None]
    return sorted(found, key=lambda process: (process.pid != worker.pid, process.pid))


def cpu_time(status: Status) -> float | None:
    """Return the seconds of CPU that the worker has used: its cgroup, or its main process alone."""
    worker = status.worker
    if worker is None:
        return None
    try:
        if worker.control_group is not None and (directory := _directory(worker.control_group)) is not None:
            usage = (directory / "cpu.stat").read_text().split()
            return int(usage[usage.index("usage_usec") + 1]) / 1e6
        fields = (_PROC / str(worker.pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _directory(path: str) -> Path | None:
    parts = Path(path.lstrip("/")).parts
    return None if ".." in parts else _CGROUPS.joinpath(*parts)


def _in_cgroup(path: str) -> list[int]:
    directory = _directory(path)
    if directory is None:
        return []
    try:
        files = [directory / "cgroup.procs", *directory.rglob("*/cgroup.procs")]
        return [int(line) for file in files for line in file.read_text().split()]
    except (OSError, ValueError):
        return []


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isascii() and entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo and len(found) < _MOST:
        own = children.pop(todo.pop(), [])
        found += own
        todo += own
    return found


def _parent(pid: int) -> int | None:
    """Return the parent of a process that lives."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]) if fields and fields[0] not in "ZX" else None


def _read(pid: int) -> Process | None:
    parent = _parent(pid)
    if parent is None:
        return None
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    kilobytes = [fields[name].split()[0] for name in ("RssAnon", "RssShmem") if name in fields]
    command = b" ".join(words).decode(errors="replace") or f"[{fields.get('Name', '').strip()}]"
    return Process(pid, parent, command, sum(map(int, kilobytes)) * 1024 if kilobytes else None)


def tree(processes: Sequence[Process], style: Style, width: int) -> list[str]:
    """Return a line for each process below the others' parents; *width* 0: not shortened."""
    ours = {process.pid for process in processes}
    children: dict[int, list[Process]] = {}
    for process in processes:
        children.setdefault(process.parent if process.parent in ours else 0, []).append(process)
    rows = list(_rows(children, 0, "", style))
    widest = max((len(size(process.memory)) for _, process in rows), default=0)
    lines = []
    for branch, process in rows:
        head = f"{branch}{process.pid} {pad(size(process.memory), widest, right=True)} "
        command = clean(process.command)
        if width:
            command = ellipsize(command, max(8, width - width_of(head)), utf8=style.utf8)
        lines.append(head + command)
    return lines


def _rows(
    children: dict[int, list[Process]], parent: int, indent: str, style: Style
) -> Iterable[tuple[str, Process]]:
    tee, corner, bar = ("├─", "└─", "│ ") if style.utf8 else ("|-", "`-", "| ")
    some = children.get(parent, [])
    for process in some:
        last = process is some[-1]
        yield indent + (corner if last else tee), process
        yield from _rows(children, process.pid, indent + ("  " if last else bar), style)
