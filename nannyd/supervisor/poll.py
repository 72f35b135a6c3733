"""What processes use, read from /proc: the memory of a tree without a leaf, and who the largest are.

The measure comes near the working set of a leaf: anonymous and shared memory, without mapped files
(RssAnon + RssShmem of proc_pid_status(5)).  Pages that forked processes share are counted once for each,
so a sum that calls for action is confirmed by the proportional share (Pss_Anon + Pss_Shmem of
smaps_rollup, Linux 5.3), for which the kernel walks the page tables: too dear for every look.

Plain reads: psutil does not tell anonymous from file memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nannyd.core.memory import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BREAKDOWN_MAX = 256
"""Processes that a breakdown looks at."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One process of a breakdown."""

    pid: int
    comm: str
    size: int
    """Bytes of anonymous and shared memory."""


def parse_status(text: str) -> dict[str, str]:
    """Parse /proc/PID/status, and smaps_rollup below its first line."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def size(fields: dict[str, str], name: str) -> int:
    """Return the bytes of *name*; 0 where there is none, as for a zombie."""
    return int(fields.get(name, "0 kB").removesuffix(" kB")) * 1024


def parse_vmstat(text: str) -> int | None:
    """Return `oom_kill` of /proc/vmstat (Linux 4.13)."""
    counts = dict(line.split() for line in text.splitlines())
    return int(counts["oom_kill"]) if "oom_kill" in counts else None


def host_oom_kills() -> int | None:
    """Return how many processes the OOM killer has killed since boot, in any cgroup; None: unknown."""
    try:
        with open("/proc/vmstat") as file:  # noqa: PTH123 - see `cgroup`: done for each worker
            return parse_vmstat(file.read())
    except OSError:
        return None


class Sampler:
    """Reads the memory of a group of processes."""

    def reading(self, pids: Sequence[int]) -> Reading | None:
        """Return the sum of what the kernel counts for each; shared pages are in it several times.

        None: no process is left; a zombie has no memory, and to say 0 would hide what it used.
        """
        anon = shmem = file = swap = 0
        lives = False
        for _, fields in _read_all(pids, "status"):
            lives = lives or "RssAnon" in fields
            anon += size(fields, "RssAnon")
            shmem += size(fields, "RssShmem")
            file += size(fields, "RssFile")
            swap += size(fields, "VmSwap")
        return Reading(anon + shmem, anon=anon, shmem=shmem, swap=swap, file=file) if lives else None

    def confirmed(self, pids: Sequence[int], reading: Reading) -> Reading:
        """Return *reading* with each shared page counted once, as far as that can be read."""
        anon = shmem = 0
        left = set(pids)
        for pid, fields in _read_all(pids, "smaps_rollup"):
            if "Pss_Anon" in fields:
                anon += size(fields, "Pss_Anon")
                shmem += size(fields, "Pss_Shmem")
                left.remove(pid)
        if rest := self.reading(sorted(left)):  # another user's, or an old kernel's
            anon, shmem = anon + (rest.anon or 0), shmem + (rest.shmem or 0)
        return replace(reading, working_set=anon + shmem, anon=anon, shmem=shmem)


def breakdown(pids: Sequence[int], count: int) -> list[Usage]:
    """Return the *count* largest of *pids*, the largest first."""
    usages = [
        Usage(pid, fields.get("Name", "?"), size(fields, "RssAnon") + size(fields, "RssShmem"))
        for pid, fields in _read_all(pids[:BREAKDOWN_MAX], "status")
    ]
    return sorted(usages, key=lambda usage: usage.size, reverse=True)[:count]


def _read_all(pids: Sequence[int], name: str) -> Iterator[tuple[int, dict[str, str]]]:
    for pid in pids:
        try:
            with open(f"/proc/{pid}/{name}", errors="replace") as file:  # noqa: PTH123 - twice as fast
                text = file.read()
        except OSError:  # gone, or another user's
            continue
        yield pid, parse_status(text)
