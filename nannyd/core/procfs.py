"""Texts of /proc that more than one room reads: where a process is, and what is mounted there.  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    root: str
    """What of its file system the mount shows, for cgroups the path of its root cgroup."""
    point: str
    kind: str
    """The file system's type."""
    options: frozenset[str]
    """The file system's own options; of a version 1 hierarchy, its controllers."""


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse /proc/PID/mountinfo (proc_pid_mountinfo(5)), in the order of mounting."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 5 and len(tail) >= 3:
            root, point = _unescape(fields[3]), _unescape(fields[4])
            mounts.append(Mount(root, point, tail[0], frozenset(tail[2].split(","))))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_cgroup(text: str) -> dict[str, str]:
    """Return a process's path in each hierarchy of /proc/PID/cgroup by controller; `` is version 2."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths
