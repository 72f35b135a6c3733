"""Figures that are taken in the same way on the host and in the guest."""

import os
import random
import time
from pathlib import Path

from . import procs
from .procs import Births
from .table import Row

RSS_MAX = 19 + 1.5
"""MiB: of the supervisor, and of the control socket with all that is steered over it."""
RSS_GROWTH = 1.0
WARM_UP = 50


def memory_rows(group: str, found: dict[str, list[procs.Memory]], ratio: float | None = None) -> list[Row]:
    """Return the rows of some memory measurements."""
    return [
        Row(
            group,
            "RSS",
            "MiB",
            {k: [m.rss for m in v] for k, v in found.items()},
            at_most=RSS_MAX,
            ratio=ratio,
        ),
        Row(group, "PSS", "MiB", {k: [m.pss for m in v] for k, v in found.items()}),
        Row(group, "USS", "MiB", {k: [m.uss for m in v] for k, v in found.items()}),
    ]


def restarts(births: Births, count: int, uptime: float) -> list[float]:
    """Kill the worker again and again; return the milliseconds to the next."""
    found, pid = [], births.next().pid
    for _ in range(count):
        time.sleep(uptime * random.uniform(1, 1.1))  # a clock of the supervisor's own must not be met in step
        killed = procs.kill(pid)
        birth = births.next()
        found.append((birth.at - killed) / 1e6)
        pid = birth.pid
    return found


def floor(births: Births, program: Path, count: int) -> list[float]:
    """Return the milliseconds from posix_spawn(3) to the first instruction: what no supervisor beats."""
    found = []
    for _ in range(count):
        began = time.monotonic_ns()
        pid = os.posix_spawn(program, [str(program), str(births.path)], os.environ)
        found.append((births.next().at - began) / 1e6)
        procs.kill(pid)
        os.waitpid(pid, 0)
    return found


def long_row(group: str, pid: int, births: Births, count: int) -> list[Row]:
    """Restart the worker of the nannyd *pid* *count* times; return what has grown."""
    worker = _in_a_row(births, births.next().pid, WARM_UP)
    before = _holdings(pid)
    began = time.monotonic()
    _in_a_row(births, worker, count)
    seconds = time.monotonic() - began
    after = _holdings(pid)
    rows = [
        Row(group, f"growth of {name}", unit, {"nannyd": [after[name] - before[name]]}, at_most=at_most)
        for name, unit, at_most in (
            ("RSS", "MiB", RSS_GROWTH),
            ("descriptors", "count", 0),
            ("threads", "count", 0),
            ("zombies", "count", 0),
        )
    ]
    return [*rows, Row(group, "time for all of them", "s", {"nannyd": [seconds]})]


def _in_a_row(births: Births, worker: int, count: int) -> int:
    for _ in range(count):
        procs.kill(worker)
        worker = births.next().pid
    return worker


def _holdings(pid: int) -> dict[str, float]:
    time.sleep(2)  # the last scratch directories are being removed
    return {
        "RSS": procs.memory([pid]).rss,
        "descriptors": procs.descriptors(pid),
        "threads": procs.threads(pid),
        "zombies": sum(map(procs.is_zombie, procs.children(pid))),
    }
