"""When a worker is started again, after how long, and when that is too often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.core.exits import Result
from nannyd.core.restart import RestartMode, RestartPolicy, limit_hit, recent, restart_delay, wants_restart

# systemd.service(5), Restart=, the table; `memory` and `resources` are ours.
RESTARTS = {
    RestartMode.NO: set[Result](),
    RestartMode.ON_SUCCESS: {Result.SUCCESS},
    RestartMode.ON_FAILURE: set(Result) - {Result.SUCCESS},
    RestartMode.ON_ABNORMAL: set(Result) - {Result.SUCCESS, Result.EXIT_CODE},
    RestartMode.ON_ABORT: {Result.SIGNAL, Result.CORE_DUMP},
    RestartMode.ON_WATCHDOG: {Result.WATCHDOG},
    RestartMode.ALWAYS: set(Result),
}

PLAIN = RestartPolicy(delay=0.2, growth=2.0, max_delay=60.0, jitter=0.0)


@pytest.mark.parametrize("mode", list(RestartMode))
def test_each_mode_restarts_after_what_systemds_does(mode: RestartMode) -> None:
    assert {result for result in Result if wants_restart(mode, result)} == RESTARTS[mode]


@pytest.mark.parametrize("mode", [RestartMode.ON_FAILURE, RestartMode.ON_ABNORMAL, RestartMode.ALWAYS])
def test_memory_restarts_under_on_failure_on_abnormal_and_always(mode: RestartMode) -> None:
    assert wants_restart(mode, Result.MEMORY)
    assert wants_restart(mode, Result.OOM_KILL)


def test_always_is_the_default_as_with_the_nanny() -> None:
    assert RestartPolicy().mode is RestartMode.ALWAYS


def test_the_delay_grows_from_one_restart_in_a_row_to_the_next() -> None:
    delays = [restart_delay(PLAIN, row, 0.5) for row in range(5)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])


def test_restarts_that_come_at_once_are_no_part_of_the_growth() -> None:
    policy = RestartPolicy(immediate=2, delay=0.2, growth=2.0, jitter=0.0)
    delays = [restart_delay(policy, row, 0.5) for row in range(5)]
    assert delays == pytest.approx([0, 0, 0.2, 0.4, 0.8])


def test_the_delay_stops_at_its_maximum() -> None:
    assert restart_delay(PLAIN, 9, 0.5) == 60
    assert restart_delay(PLAIN, 10**9, 0.5) == 60


def test_no_delay_does_not_grow() -> None:
    none = RestartPolicy(delay=0.0, growth=10.0)
    assert restart_delay(none, 50, 1.0) == 0


def test_a_growth_of_1_is_none() -> None:
    assert restart_delay(RestartPolicy(delay=3.0, growth=1.0, jitter=0.0), 20, 0.5) == 3


def test_jitter_varies_the_delay_by_its_share_to_both_sides() -> None:
    policy = RestartPolicy(delay=10.0, jitter=0.2)
    assert [restart_delay(policy, 0, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([8, 10, 12])


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(1, 1e6))
def test_the_delay_is_never_below_0_nor_above_its_maximum(
    row: int, chance: float, jitter: float, growth: float
) -> None:
    policy = RestartPolicy(delay=0.1, growth=growth, max_delay=30.0, jitter=jitter)
    assert 0 <= restart_delay(policy, row, chance) <= 30


LIMITED = RestartPolicy(start_limit_interval=10.0, start_limit_burst=3)


@pytest.mark.parametrize(
    ("starts", "at", "hit"),
    [
        ((), 0.0, False),
        ((0.0, 1.0), 2.0, False),
        ((0.0, 1.0, 2.0), 3.0, True),
        ((0.0, 1.0, 2.0), 9.9, True),
        ((0.0, 1.0, 2.0), 10.0, False),  # the first is too long ago to count
        ((0.0, 9.0, 9.5), 12.0, False),
    ],
)
def test_a_start_is_too_much_when_the_burst_is_spent_within_the_interval(
    starts: tuple[float, ...], at: float, *, hit: bool
) -> None:
    assert limit_hit(LIMITED, starts, at) is hit


def test_a_burst_of_0_is_no_limit_and_remembers_nothing() -> None:
    unlimited = RestartPolicy(start_limit_burst=0)
    assert not limit_hit(unlimited, tuple(map(float, range(1000))), 1000.0)
    assert recent(unlimited, (1.0, 2.0), 3.0) == ()


@given(st.lists(st.floats(0, 100), max_size=50).map(sorted), st.floats(100, 200))
def test_no_more_starts_are_remembered_than_can_count(starts: list[float], now: float) -> None:
    kept = recent(LIMITED, tuple(starts), now)
    assert len(kept) <= LIMITED.start_limit_burst
    assert all(now - start < LIMITED.start_limit_interval for start in kept)
