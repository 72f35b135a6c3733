"""The memory verdict: what a worker uses, and what follows from it.

Pure.  The measure is the *working set*, memory that the kernel could not simply drop: page cache and
reclaimable slab do not count, so a worker that reads and writes files is never ended for it.

`memory.high` is used as a tripwire, not as a limit to live under (a worker without swap that is kept
above it is throttled to a standstill).  The wire is a ladder with one rung armed at a time: `warn`
first, then `terminate`.  When the kernel reports that the wire was touched, `verdict()` decides from
the working set; below the rung it was page cache, which the kernel is reclaiming by itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_PAUSE = 0.01
"""Seconds to look away after the first touch of the wire by page cache: the kernel reports no oftener."""
LAST_PAUSE = 1.0

RESERVE = 32 << 20
"""Bytes that `limit = "auto"` leaves to nannyd itself, which lives under the same limits."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker uses, in bytes.  None: this place does not say."""

    working_set: int
    anon: int | None = None
    shmem: int | None = None
    kernel: int | None = None
    swap: int | None = None
    file: int | None = None
    """Page cache, mapped files included, without shmem."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Bytes of working set at which something happens.  None: it does not."""

    limit: int | None = None
    warn: int | None = None
    terminate: int | None = None
    max: int | None = None
    """The wall: the kernel's memory.max, or where nannyd kills at once in poll mode."""


class Verdict(enum.StrEnum):
    """What a reading calls for."""

    FINE = "fine"
    WARN = "warn"
    TERMINATE = "terminate"


def parse_flat_keyed(text: str) -> dict[str, int]:
    """Parse the kernel's "flat keyed" format, the one of memory.stat, memory.events, cgroup.events."""
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


def read_cgroup(current: int, stat: Mapping[str, int], swap: int | None) -> Reading:
    """Return the reading of a cgroup from memory.current, memory.stat and memory.swap.current.

    shmem is swap-backed: it stands on the anonymous LRU lists, not on the file lists, and stays in
    the working set.  `kernel` is in memory.stat since Linux 5.18.
    """
    reclaimable = stat["inactive_file"] + stat["active_file"] + stat.get("slab_reclaimable", 0)
    return Reading(
        working_set=max(0, current - reclaimable),
        anon=stat["anon"],
        shmem=stat["shmem"],
        kernel=stat.get("kernel"),
        swap=swap,
        file=stat["file"] - stat["shmem"],
    )


def verdict(working_set: int, thresholds: Thresholds, *, warned: bool) -> Verdict:
    """Decide what *working_set* calls for; a warning is given once per crossing."""
    if thresholds.terminate is not None and working_set >= thresholds.terminate:
        return Verdict.TERMINATE
    if thresholds.warn is not None and working_set >= thresholds.warn and not warned:
        return Verdict.WARN
    return Verdict.FINE


def relaxed(working_set: int, thresholds: Thresholds) -> bool:
    """Say whether a worker that was warned is below the warning again, so that the next one counts."""
    return thresholds.warn is None or working_set < thresholds.warn


def wire(thresholds: Thresholds, *, warned: bool) -> int | None:
    """Return where the tripwire belongs: the lowest threshold not yet passed; None: no wire."""
    if thresholds.warn is not None and not warned:
        return thresholds.warn
    return thresholds.terminate


def next_pause(pause: float) -> float:
    """Return how long to look away after the wire was touched for nothing once more."""
    return min(LAST_PAUSE, max(FIRST_PAUSE, 2 * pause))


POLL_FASTEST = 0.1
POLL_SLOWEST = 2.0
POLL_HASTE = 0.01
"""Seconds from one look to the next where a threshold is about to be passed."""
POLL_CREDIT = 0.3
"""Seconds that early looks may come early by, all in all, until that is paid for."""
POLL_INSTALMENT = 0.05
POLL_RATE = 2 << 30
"""Bytes a second that a worker is expected to allocate at most; further away, it is looked at less often."""


def next_threshold(thresholds: Thresholds, *, warned: bool) -> int | None:
    """Return the lowest threshold that poll mode has still to report; None: there is none."""
    ahead = [thresholds.terminate, thresholds.max, None if warned else thresholds.warn]
    return min((threshold for threshold in ahead if threshold is not None), default=None)


def poll_interval(
    working_set: int, thresholds: Thresholds, *, warned: bool, growth: float = 0.0
) -> float | None:
    """Return the seconds until the next look in poll mode; None: nothing to look for.

    *growth*, in bytes a second, is what was seen since the last look.  Who would pass a threshold before
    the next regular look is looked at when it gets there.
    """
    threshold = next_threshold(thresholds, warned=warned)
    if threshold is None:
        return None if thresholds.warn is None else POLL_SLOWEST
    distance = max(0, threshold - working_set)
    interval = min(POLL_SLOWEST, max(POLL_FASTEST, distance / POLL_RATE))
    if growth * interval > distance > 0:
        return max(POLL_HASTE, distance / growth)
    return interval


def afford(interval: float, owed: float) -> tuple[float, float]:
    """Return the pause before a look that is wanted after *interval*, and what is owed then.

    Some may come early (for the warning, for the end, and when it was not yet quite so far) and are paid for
    in instalments: ten a second on the whole, however a worker swings.
    """
    pause = interval
    if interval >= POLL_FASTEST or owed + POLL_FASTEST - interval > POLL_CREDIT:
        pause = max(interval, POLL_FASTEST + min(owed, POLL_INSTALMENT))
    return pause, max(0.0, owed + POLL_FASTEST - pause)


def next_doubt(doubt: float, surprise: int, distance: int) -> float:
    """Return how long a sum that was refuted is not asked about again.

    Ever longer while the answer is what was expected; a *surprise* (bytes above that) of more than an
    eighth of the *distance* to the threshold begins anew.
    """
    return POLL_FASTEST if 8 * surprise > distance else next_pause(max(doubt, POLL_FASTEST))


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit that the worker's memory cannot exceed, and where it was found."""

    where: str
    limit: int
    shared: bool = True
    """nannyd lives under it too."""


@dataclass(frozen=True, slots=True)
class AutoLimit:
    """What `limit = "auto"` found."""

    basis: int
    """Bytes that this place offers; fractions refer to it."""
    limit: int
    """Bytes for this worker: the basis times its share of the CPUs, less nannyd's own."""
    where: str


def auto_limit(bounds: Sequence[Bound], threads: int | None, cpus: float) -> AutoLimit:
    """Return the limit from all *bounds* (never empty: the host is one).

    A worker of *threads* threads on *cpus* CPUs gets that share, as in Dask; without threads, all.
    """
    least = min(bounds, key=lambda bound: bound.limit)
    share = 1.0 if threads is None else min(1.0, threads / cpus)
    reserve = RESERVE if least.shared else 0
    return AutoLimit(least.limit, max(0, int(least.limit * share) - reserve), least.where)
