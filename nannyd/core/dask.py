"""Why a Dask worker closes itself, and what follows.  Pure.

`distributed.Worker.close(reason=…)` says why in words of its own; an administrator decides by cause.
"""

from __future__ import annotations

import enum


class Cause(enum.StrEnum):
    """Why a Dask worker closes itself."""

    SCHEDULER_CLOSE = "scheduler-close"
    """The scheduler was closed on purpose."""
    RETIRE = "retire"
    """The scheduler wants this worker to go: `Client.retire_workers`, scaling down."""
    CONNECTION_LOST = "connection-lost"
    """The scheduler is not to be reached, or has forgotten this worker."""
    LIFETIME = "lifetime"
    """The worker's `lifetime` is over."""
    DEATH_TIMEOUT = "death-timeout"
    """No scheduler was found in time."""
    OTHER = "other"
    """The worker's own doing, such as a task that closes it."""


class Then(enum.StrEnum):
    """What follows."""

    END = "end"
    """nannyd ends, too, cleanly."""
    RESTART = "restart"
    """The next worker is started."""


_CAUSES = {
    "scheduler-close": Cause.SCHEDULER_CLOSE,
    "scheduler-close-worker": Cause.RETIRE,
    "scheduler-remove-worker": Cause.CONNECTION_LOST,
    "worker-handle-scheduler-connection-broken": Cause.CONNECTION_LOST,
    "worker-heartbeat-missing": Cause.CONNECTION_LOST,
    "worker-heartbeat-error": Cause.CONNECTION_LOST,
    "worker-lifetime-reached": Cause.LIFETIME,
    "death-timeout": Cause.DEATH_TIMEOUT,
}


def cause_of(reason: str) -> Cause:
    """Return the cause that distributed means by *reason*."""
    return _CAUSES.get(reason, Cause.OTHER)
