"""When a worker that ended is started again, and how long that waits.

The modes are systemd's (systemd.service(5), Restart=).  Two things systemd lacks: the delay grows
with each restart in a row, and a stable run resets both that growth and the start limit.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nannyd.core.exits import Result


class RestartMode(enum.StrEnum):
    """systemd's `Restart=`, word for word."""

    NO = "no"
    ON_SUCCESS = "on-success"
    ON_FAILURE = "on-failure"
    ON_ABNORMAL = "on-abnormal"
    ON_ABORT = "on-abort"
    ON_WATCHDOG = "on-watchdog"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The `[restart]` table.  Durations are seconds."""

    mode: RestartMode = RestartMode.ALWAYS
    immediate: int = 0
    """Restarts in a row that come at once; the row of those that wait begins after them."""
    delay: float = 0.2
    """Before the first restart in a row."""
    growth: float = 2.0
    """Factor from one restart in a row to the next."""
    max_delay: float = 60.0
    jitter: float = 0.1
    """Share of the delay by which it varies, so that a fleet does not restart in step."""
    reset_after: float | None = 60.0
    """A worker that was ready for so long starts a new row; None: never."""
    start_limit_interval: float = 300.0
    start_limit_burst: int = 10
    """Starts allowed within the interval; 0: no limit."""


def wants_restart(mode: RestartMode, result: Result) -> bool:
    """Say whether *mode* restarts a worker that ended with *result*."""
    match mode:
        case RestartMode.NO:
            return False
        case RestartMode.ON_SUCCESS:
            return result is Result.SUCCESS
        case RestartMode.ON_FAILURE:
            return result is not Result.SUCCESS
        case RestartMode.ON_ABNORMAL:
            return result not in (Result.SUCCESS, Result.EXIT_CODE)
        case RestartMode.ON_ABORT:
            return result in (Result.SIGNAL, Result.CORE_DUMP)
        case RestartMode.ON_WATCHDOG:
            return result is Result.WATCHDOG
        case RestartMode.ALWAYS:
            return True


def restart_delay(policy: RestartPolicy, row: int, chance: float) -> float:
    """Return the seconds before restart number *row* (from 0) in a row.

    *chance*, from 0 to 1, stands for the throw of the dice; 0.5 gives the delay itself.
    """
    if policy.delay <= 0 or row < policy.immediate:
        return 0.0
    try:
        delay = min(policy.delay * policy.growth ** (row - policy.immediate), policy.max_delay)
    except OverflowError:
        delay = policy.max_delay
    return min(policy.max_delay, delay * (1 + policy.jitter * (2 * chance - 1)))


def recent(policy: RestartPolicy, starts: tuple[float, ...], now: float) -> tuple[float, ...]:
    """Return those of *starts* that still count towards the start limit at *now*."""
    if policy.start_limit_burst == 0:
        return ()
    kept = tuple(start for start in starts if now - start < policy.start_limit_interval)
    return kept[-policy.start_limit_burst :]


def limit_hit(policy: RestartPolicy, starts: tuple[float, ...], at: float) -> bool:
    """Say whether one more start at time *at* would be too many."""
    burst = policy.start_limit_burst
    return burst > 0 and len(recent(policy, starts, at)) >= burst
