"""What one step of the worker's life changed, in words and facts.  Nothing is decided or done here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.core.exits import Result, describe
from nannyd.core.lifecycle import DeadlineReached, State
from nannyd.core.memory import Verdict
from nannyd.core.units import format_duration, format_size
from nannyd.supervisor import notices
from nannyd.supervisor.facts import signal_name
from nannyd.supervisor.notices import say
from nannyd.supervisor.poll import breakdown

if TYPE_CHECKING:
    from nannyd.core.exits import Exit
    from nannyd.core.lifecycle import Event, Worker
    from nannyd.core.memory import Reading, Thresholds
    from nannyd.core.restart import RestartPolicy
    from nannyd.supervisor.life import Life

_LARGEST = 3
"""Processes that are named when a worker is terminated for its memory."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The latest life that is over."""

    exit: Exit
    at: float
    """Monotonic seconds."""
    uptime: float | None
    """Seconds; None: there was no process."""


def tell(before: Worker, after: Worker, event: Event, life: Life | None, now: float) -> None:
    """Say how the step from *before* to *after* changed the state; *life* is the one that *before* had."""
    if after.state is before.state and after.generation == before.generation:
        if isinstance(event, DeadlineReached) and after.state is State.STOP_SIGKILL:
            pids = life.group.pids() if life is not None and life.group is not None else []
            say(notices.WORKER_REMAINS, worker_pid=life.pid if life else None, pids=pids)
        return
    pid = life.pid if life is not None else None
    match after.state:
        case State.RUNNING:
            began = life.began if life is not None else now
            say(notices.WORKER_READY, worker_pid=pid, after=format_duration(now - began))
        case State.STOP_SIGTERM:
            grace = format_duration((after.deadline or 0) - now)
            reason = after.stop.reason if after.stop is not None else ""
            say(notices.STOPPING_WORKER, worker_pid=pid, reason=reason, grace=grace)
        case State.STOP_SIGKILL:
            say(notices.KILLING_WORKER, worker_pid=pid, reason=_why_killed(after))
        case State.AUTO_RESTART:
            seconds = (after.deadline or 0) - now
            delay = format_duration(seconds)
            say(notices.RESTARTING, delay=delay, restarts=after.restarts, seconds=round(seconds, 3))
        case State.INACTIVE | State.START | State.FAILED:
            pass


def _why_killed(worker: Worker) -> str:
    if worker.stop is None:
        return "the main process is gone, others are left"
    if worker.stop.escalated:
        return f"still there {worker.stop.grace:g}s after the stop signal"
    return worker.stop.reason


def tell_failed(worker: Worker, rules: RestartPolicy) -> None:
    """Say why there will be no further start."""
    if worker.start_limit_hit:
        interval = format_duration(rules.start_limit_interval)
        say(notices.START_LIMIT_HIT, burst=rules.start_limit_burst, interval=interval)
    elif worker.no_scheduler:
        say(notices.SCHEDULER_MISSING)
    else:
        say(notices.GIVING_UP, result=worker.result, mode=rules.mode)


def tell_exit(life: Life, exit_: Exit, uptime: float) -> None:
    """Say how a worker ended that was a process."""
    status = exit_.status
    say(
        notices.WORKER_ENDED if exit_.result is Result.SUCCESS else notices.WORKER_FAILED,
        worker_pid=life.pid,
        nannyd_generation=exit_.generation,
        how=describe(exit_),
        uptime=format_duration(uptime),
        uptime_usec=int(uptime * 1e6),
        was_ready="yes" if exit_.was_ready else "no",
        result=exit_.result,
        who=exit_.who,
        detail=notices.Aside(exit_.detail),
        exit_status=status.code if status is not None else None,
        exit_signal=status.signal if status is not None else None,
        memory_peak=exit_.memory_peak,
    )


def exit_facts(exit_: Exit, uptime: float) -> dict[str, object]:
    """Return what plugins are told of an exit."""
    status = exit_.status
    return {
        "generation": exit_.generation,
        "result": exit_.result,
        "who": exit_.who,
        "status": status.code if status is not None else None,
        "signal": status.signal if status is not None else None,
        "uptime": uptime,
        "memory_peak": exit_.memory_peak,
    }


def cluster_event(
    life: Life, exit_: Exit, uptime: float, reading: Reading | None, restarts: int
) -> dict[str, object]:
    """Return what a Dask cluster is told of an exit, as a log event; *reading* is what was seen last."""
    status = exit_.status
    return {
        "worker": life.address,
        "name": life.plan.name,
        "pid": life.pid,
        "generation": exit_.generation,
        "result": exit_.result,
        "who": exit_.who,
        "how": describe(exit_) + (f" ({exit_.detail})" if exit_.detail else ""),
        "signal": signal_name(status.signal) if status is not None else None,
        "exit-status": status.code if status is not None else None,
        "memory": reading.working_set if reading is not None else None,
        "memory-peak": exit_.memory_peak,
        "limit": life.plan.memory.thresholds.limit,
        "uptime": round(uptime, 3),
        "restarts": restarts,
        "at": time.time_ns() // 1_000_000 / 1000,
    }


def memory_facts(reading: Reading, limit: int | None) -> dict[str, object]:
    """Return what plugins are told of a memory warning."""
    parts = {name: getattr(reading, name) for name in ("anon", "shmem", "kernel", "swap")}
    return {"working_set": reading.working_set, "limit": limit, **parts}


class Excess:
    """A crossing of a threshold: looked at when it happens, told when the worker was asked to end."""

    def __init__(self, life: Life, reading: Reading, said: Verdict, *, wall: bool) -> None:
        """Note what is known of *life* now."""
        thresholds = life.plan.memory.thresholds
        limit = thresholds.limit or 0
        threshold = _threshold(thresholds, said, wall=wall)
        self._fields: dict[str, object] = {
            "worker_pid": life.pid,
            "used": format_size(reading.working_set),
            "limit": format_size(limit),
            "share": f"{100 * reading.working_set / limit:.1f} %" if limit else "?",
            "threshold": format_size(threshold or 0),
            "memory_working_set": reading.working_set,
            "memory_limit": limit,
            "memory_threshold": threshold,
        }
        if said is Verdict.WARN:
            return
        pids = life.group.pids() if life.group is not None else []
        largest = (f"{it.comm} {it.pid} {format_size(it.size)}" for it in breakdown(pids, _LARGEST))
        self._fields |= {
            "breakdown": parts(reading),
            "largest": ", ".join(largest),
            "memory_anon": reading.anon,
            "memory_shmem": reading.shmem,
            "memory_kernel": reading.kernel,
            "memory_swap": reading.swap,
        }

    def __str__(self) -> str:
        """Return it in short, as the reason of a stop."""
        return "{used} of {limit} ({share})".format_map(self._fields)

    def tell_warning(self) -> None:
        """Say that the warning threshold was passed."""
        say(notices.MEMORY_WARNING, **self._fields)

    def tell_termination(self) -> None:
        """Say that the worker is terminated for it."""
        say(notices.MEMORY_TERMINATE, **self._fields)


def _threshold(thresholds: Thresholds, said: Verdict, *, wall: bool) -> int | None:
    if wall:
        return thresholds.max
    return thresholds.warn if said is Verdict.WARN else thresholds.terminate


def parts(reading: Reading) -> str:
    """Return the parts of a working set in words."""
    sizes = {"anon": reading.anon, "shmem": reading.shmem, "kernel": reading.kernel, "swap": reading.swap}
    return ", ".join(f"{name} {format_size(size)}" for name, size in sizes.items() if size is not None)
