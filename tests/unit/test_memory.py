"""The memory verdict, from what a kernel said of real workers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.core.memory import (
    FIRST_PAUSE,
    LAST_PAUSE,
    POLL_CREDIT,
    POLL_FASTEST,
    POLL_HASTE,
    POLL_SLOWEST,
    Bound,
    Reading,
    Thresholds,
    Verdict,
    afford,
    auto_limit,
    next_doubt,
    next_pause,
    next_threshold,
    parse_flat_keyed,
    poll_interval,
    read_cgroup,
    relaxed,
    verdict,
    wire,
)

MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """memory.current and memory.stat (without the lines that say nothing here) of Linux 7.2."""

    current: int
    stat: str

    def reading(self, swap: int | None = 0) -> Reading:
        """Return what nannyd makes of it."""
        return read_cgroup(self.current, parse_flat_keyed(self.stat), swap)


# A worker that holds 60 MiB of memory of its own.
ANON = Sample(
    66179072,
    """\
anon 65773568
file 0
kernel 217088
pagetables 188416
shmem 0
file_mapped 0
file_dirty 0
inactive_anon 65757184
active_anon 4096
inactive_file 0
active_file 0
unevictable 0
slab_reclaimable 11552
slab_unreclaimable 16008
slab 27560
pgfault 16698
pgmajfault 0
workingset_refault_file 0
""",
)
# One that has written 150 MiB to a file, under memory.high = 100M.
PAGE_CACHE = Sample(
    104828928,
    """\
anon 3870720
file 97886208
kernel 2940928
pagetables 69632
shmem 0
file_mapped 0
file_dirty 0
inactive_anon 3866624
active_anon 4096
inactive_file 97771520
active_file 114688
unevictable 0
slab_reclaimable 2850784
slab_unreclaimable 16576
slab 2867360
pgfault 1841
pgmajfault 0
workingset_refault_file 0
""",
)
# One that has written 40 MiB to a file on a tmpfs.
SHMEM = Sample(
    46256128,
    """\
anon 3870720
file 41943040
kernel 192512
pagetables 65536
shmem 41943040
file_mapped 0
file_dirty 0
inactive_anon 45809664
active_anon 4096
inactive_file 0
active_file 0
unevictable 0
slab_reclaimable 107656
slab_unreclaimable 16376
slab 124032
pgfault 1841
pgmajfault 0
workingset_refault_file 0
""",
)
# One that has made 30,000 files: the kernel remembers their names.
SLAB = Sample(
    47304704,
    """\
anon 2834432
file 8278016
kernel 36089856
pagetables 61440
shmem 0
file_mapped 0
file_dirty 8278016
inactive_anon 2830336
active_anon 4096
inactive_file 0
active_file 8200192
unevictable 0
slab_reclaimable 36007192
slab_unreclaimable 14840
slab 36022032
pgfault 1332
pgmajfault 0
workingset_refault_file 0
""",
)

LIMIT = Thresholds(100 * MIB, 80 * MIB, 95 * MIB, 100 * MIB)


# --- Working set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "least", "most"),
    [
        (ANON, 62.7, 63.2),  # all of it
        (PAGE_CACHE, 3, 5),  # what the interpreter itself needs
        (SHMEM, 43.9, 44.2),  # a tmpfs is memory: without swap, nobody can take it away
        (SLAB, 2.5, 4),  # names that can be forgotten do not count
    ],
    ids=["anon", "page cache", "shmem", "slab"],
)
def test_the_working_set_is_what_the_kernel_could_not_drop(sample: Sample, least: float, most: float) -> None:
    assert least * MIB < sample.reading().working_set < most * MIB


def test_page_cache_at_the_limit_is_fine() -> None:
    assert PAGE_CACHE.current >= 0.99 * 100 * MIB  # by memory.current, it would have been ended
    assert verdict(PAGE_CACHE.reading().working_set, LIMIT, warned=False) is Verdict.FINE


def test_the_parts_of_a_reading_are_the_kernels() -> None:
    reading = SHMEM.reading(swap=7)
    assert (reading.anon, reading.shmem, reading.kernel) == (3870720, 41943040, 192512)
    assert (reading.file, reading.swap) == (0, 7)  # `file` of memory.stat has shmem in it


def test_what_a_kernel_does_not_say_stays_unknown() -> None:
    old = "".join(
        f"{key} {value}\n"
        for key, value in parse_flat_keyed(ANON.stat).items()
        if key not in ("kernel", "slab_reclaimable")  # before Linux 5.18
    )
    reading = Sample(ANON.current, old).reading(swap=None)
    assert reading.kernel is None
    assert reading.swap is None
    assert reading.working_set == ANON.current


def test_a_sum_that_was_read_a_moment_later_is_never_negative() -> None:
    # The files of a cgroup are read one after the other, and a worker may have ended meanwhile.
    assert Sample(4096, PAGE_CACHE.stat).reading().working_set == 0


# --- Verdict -------------------------------------------------------------------------------------------

NO_TERMINATE = dataclasses.replace(LIMIT, terminate=None)
NO_WARN = dataclasses.replace(LIMIT, warn=None)
FINE, WARN, TERMINATE = Verdict.FINE, Verdict.WARN, Verdict.TERMINATE

VERDICTS = [
    # thresholds, MiB, then the verdict for one that was not warned and for one that was
    (LIMIT, 0, FINE, FINE),
    (LIMIT, 79.9, FINE, FINE),
    (LIMIT, 80, WARN, FINE),
    (LIMIT, 94.9, WARN, FINE),
    (LIMIT, 95, TERMINATE, TERMINATE),
    (LIMIT, 1000, TERMINATE, TERMINATE),
    (NO_TERMINATE, 99, WARN, FINE),
    (NO_TERMINATE, 1000, WARN, FINE),
    (NO_WARN, 90, FINE, FINE),
    (NO_WARN, 95, TERMINATE, TERMINATE),
    (Thresholds(), 10**9, FINE, FINE),
]


@pytest.mark.parametrize(("thresholds", "mib", "fresh", "warned"), VERDICTS)
def test_the_verdict(thresholds: Thresholds, mib: float, fresh: Verdict, warned: Verdict) -> None:
    assert verdict(int(mib * MIB), thresholds, warned=False) is fresh
    assert verdict(int(mib * MIB), thresholds, warned=True) is warned


@pytest.mark.parametrize(("mib", "is_relaxed"), [(79.9, True), (80, False), (90, False)])
def test_a_warning_is_over_below_its_threshold(mib: float, *, is_relaxed: bool) -> None:
    assert relaxed(int(mib * MIB), LIMIT) is is_relaxed


@pytest.mark.parametrize(
    ("thresholds", "first", "second"),
    [
        (LIMIT, 80 * MIB, 95 * MIB),
        (NO_WARN, 95 * MIB, 95 * MIB),
        (NO_TERMINATE, 80 * MIB, None),
        (Thresholds(), None, None),
    ],
)
def test_the_wire_is_at_the_lowest_threshold_not_yet_passed(
    thresholds: Thresholds, first: int | None, second: int | None
) -> None:
    assert wire(thresholds, warned=False) == first
    assert wire(thresholds, warned=True) == second


@given(st.integers(0, 200 * MIB), st.booleans())
def test_at_the_wire_there_is_something_to_say(working_set: int, warned: bool) -> None:  # noqa: FBT001
    rung = wire(LIMIT, warned=warned)
    assert rung is not None
    assert (verdict(working_set, LIMIT, warned=warned) is FINE) == (working_set < rung)


def test_pauses_grow_to_a_second_and_no_further() -> None:
    pauses = [0.0]
    for _ in range(12):
        pauses.append(next_pause(pauses[-1]))
    assert pauses[1] == FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE == 1.0


# --- Poll mode -----------------------------------------------------------------------------------------


def test_nothing_to_look_for_is_not_looked_for() -> None:
    assert poll_interval(0, Thresholds(), warned=False) is None
    assert poll_interval(0, Thresholds(limit=100 * MIB), warned=False) is None


def test_far_away_it_is_looked_seldom_and_near_often() -> None:
    far = Thresholds(64 << 30, 51 << 30, 60 << 30, 64 << 30)
    assert poll_interval(0, far, warned=False) == POLL_SLOWEST
    assert poll_interval(51 << 30, far, warned=False) == POLL_FASTEST
    assert poll_interval(79 * MIB, LIMIT, warned=False) == POLL_FASTEST


def test_who_was_warned_is_looked_at_for_the_next_threshold() -> None:
    far = Thresholds(64 << 30, 1 << 30, 60 << 30, 64 << 30)
    assert poll_interval(2 << 30, far, warned=False) == POLL_FASTEST
    assert poll_interval(2 << 30, far, warned=True) == POLL_SLOWEST


def test_with_a_warning_alone_it_is_looked_whether_it_is_over() -> None:
    assert poll_interval(90 * MIB, Thresholds(warn=80 * MIB), warned=True) == POLL_SLOWEST


def test_who_is_about_to_pass_a_threshold_is_looked_at_just_then() -> None:
    assert poll_interval(90 * MIB, LIMIT, warned=True, growth=100 * MIB) == pytest.approx(0.05)
    assert poll_interval(94 * MIB, LIMIT, warned=True, growth=10_000 * MIB) == POLL_HASTE
    assert poll_interval(90 * MIB, LIMIT, warned=True, growth=-5.0) == POLL_FASTEST


@given(st.integers(0, 1 << 40), st.floats(0, 1e12), st.booleans())
def test_it_is_never_looked_more_often_than_haste_allows(
    working_set: int,
    growth: float,
    warned: bool,  # noqa: FBT001
) -> None:
    interval = poll_interval(working_set, LIMIT, warned=warned, growth=growth)
    assert interval is not None
    assert POLL_HASTE <= interval <= POLL_SLOWEST


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.booleans())
def test_nearer_is_never_looked_at_later(one: int, other: int, warned: bool) -> None:  # noqa: FBT001
    far = Thresholds(1 << 40, 800 << 30, 950 << 30, 1 << 40)
    ahead = next_threshold(far, warned=warned)
    assert ahead is not None
    farther, nearer = (poll_interval(ahead - it, far, warned=warned) for it in sorted((one, other))[::-1])
    assert farther is not None
    assert nearer is not None
    assert POLL_FASTEST <= nearer <= farther <= POLL_SLOWEST


@pytest.mark.parametrize(
    ("thresholds", "fresh", "warned"),
    [
        (LIMIT, 80 * MIB, 95 * MIB),
        (Thresholds(100 * MIB, None, 95 * MIB, 100 * MIB), 95 * MIB, 95 * MIB),
        (Thresholds(100 * MIB, 80 * MIB, None, 100 * MIB), 80 * MIB, 100 * MIB),
        (Thresholds(100 * MIB, 80 * MIB, None, None), 80 * MIB, None),
        (Thresholds(100 * MIB, 97 * MIB, 95 * MIB, 100 * MIB), 95 * MIB, 95 * MIB),
        (Thresholds(100 * MIB), None, None),
    ],
)
def test_the_next_threshold_is_the_lowest_that_is_still_to_be_reported(
    thresholds: Thresholds, fresh: int | None, warned: int | None
) -> None:
    assert next_threshold(thresholds, warned=False) == fresh
    assert next_threshold(thresholds, warned=True) == warned


@pytest.mark.parametrize(
    ("interval", "owed", "pause", "owes"),
    [
        (2.0, 0.0, 2.0, 0.0),
        (0.1, 0.0, 0.1, 0.0),
        (0.03, 0.0, 0.03, 0.07),  # early: at once,
        (0.03, 0.07, 0.03, 0.14),  # and again;
        (0.03, 0.28, 0.15, 0.23),  # but not for ever,
        (0.1, 0.23, 0.15, 0.18),  # and what is owed is paid,
        (0.1, 0.03, 0.13, 0.0),
        (2.0, 0.28, 2.0, 0.0),  # be it by being far away
    ],
)
def test_early_looks_are_paid_for_by_later_ones(
    interval: float, owed: float, pause: float, owes: float
) -> None:
    assert list(afford(interval, owed)) == pytest.approx([pause, owes])


@given(st.lists(st.floats(POLL_HASTE, POLL_SLOWEST), min_size=1))
def test_it_is_never_looked_more_than_ten_times_a_second(wanted: list[float]) -> None:
    """Whatever is wanted: after each look the time for all up to it has passed, but for what is owed."""
    passed, owed = 0.0, 0.0
    for count, interval in enumerate(wanted, start=1):
        pause, owed = afford(interval, owed)
        passed += pause
        assert pause >= interval
        assert passed + owed >= count * POLL_FASTEST - 1e-9
        assert 0 <= owed <= POLL_CREDIT + 1e-9


def test_what_is_owed_is_paid_within_a_second() -> None:
    owed, looks = POLL_CREDIT, 0
    while owed > 0:
        _, owed = afford(POLL_FASTEST, owed)
        looks += 1
    assert looks <= 7


def test_a_sum_that_keeps_being_refuted_is_asked_about_ever_less_often() -> None:
    doubts = [0.0]
    for _ in range(8):
        doubts.append(next_doubt(doubts[-1], surprise=0, distance=50 * MIB))
    assert doubts[1:6] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert doubts[-1] == LAST_PAUSE


@given(st.floats(0, LAST_PAUSE), st.integers(-(1 << 40), 1 << 40), st.integers(1, 1 << 40))
def test_an_answer_that_was_not_expected_is_asked_about_again_soon(
    doubt: float, surprise: int, distance: int
) -> None:
    after = next_doubt(doubt, surprise, distance)
    assert POLL_FASTEST <= after <= LAST_PAUSE
    assert (after == POLL_FASTEST) == (surprise > distance / 8)


@given(st.integers(1, 50))
def test_a_worker_that_unshares_its_pages_is_not_lost_sight_of(rate: int) -> None:
    """The sum does not move then; only asking tells.  *rate*: hundredths of the distance in a second."""
    distance, doubt = 1000.0, LAST_PAUSE  # nothing has happened for long
    while distance > 0:
        grown = 10 * rate * doubt
        distance -= grown
        doubt = next_doubt(doubt, int(grown), int(distance))
    assert -distance <= 10 * rate * POLL_FASTEST  # what one regular look may miss


# --- limit = "auto" ------------------------------------------------------------------------------------

HOST = Bound("the host's MemTotal", 16 << 30)
SLICE = Bound("memory.max of /app.slice", 8 << 30)
RLIMIT = Bound("RLIMIT_AS", 4 << 30, shared=False)


def test_the_least_bound_decides_and_is_named() -> None:
    found = auto_limit([HOST, SLICE], None, 4)
    assert (found.basis, found.where) == (8 << 30, "memory.max of /app.slice")
    assert found.limit == (8 << 30) - 32 * MIB  # nannyd lives there, too


def test_what_binds_each_process_alone_is_all_the_workers() -> None:
    assert auto_limit([HOST, SLICE, RLIMIT], None, 4).limit == 4 << 30


@pytest.mark.parametrize(
    ("threads", "cpus", "share"), [(1, 4, 0.25), (4, 4, 1), (8, 4, 1), (1, 0.5, 1), (3, 4, 0.75)]
)
def test_threads_have_their_share_of_the_cpus(threads: int, cpus: float, share: float) -> None:
    assert auto_limit([HOST], threads, cpus).limit == int((16 << 30) * share) - 32 * MIB
    assert auto_limit([HOST], threads, cpus).basis == 16 << 30  # fractions refer to all of it


def test_a_place_that_offers_next_to_nothing_offers_no_less_than_nothing() -> None:
    assert auto_limit([Bound("memory.max", 1 * MIB)], None, 1).limit == 0
