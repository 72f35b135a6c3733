"""How a worker ended, and who ended it.

Pure: `classify()` turns evidence that the supervisor collected into a verdict.  Results carry the
names of systemd's `Result=` where it has one; `memory` is ours.  What is not known stays unknown:
nothing is guessed from an exit status that could mean two things.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass


class Result(enum.StrEnum):
    """What the end of a worker was."""

    SUCCESS = "success"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    CORE_DUMP = "core-dump"
    OOM_KILL = "oom-kill"
    MEMORY = "memory"
    TIMEOUT = "timeout"
    WATCHDOG = "watchdog"
    RESOURCES = "resources"
    START_LIMIT_HIT = "start-limit-hit"


class Who(enum.StrEnum):
    """Who brought the end about."""

    NANNYD = "nannyd"
    OWN_LIMIT = "kernel-own-limit"
    """The kernel's OOM killer, because the worker met its own memory.max."""
    ANCESTOR_LIMIT = "kernel-ancestor-limit"
    """The kernel's OOM killer, because a cgroup above the worker met its limit."""
    HOST = "kernel-host"
    """The kernel's OOM killer, because the host had no memory left."""
    OOMD = "systemd-oomd"
    OUTSIDE = "outside"
    """A signal that nannyd did not send."""
    WORKER = "worker"
    UNKNOWN = "unknown"


class Cause(enum.StrEnum):
    """Why nannyd ends, or expects the end of, a worker."""

    STOP = "stop"
    RESTART = "restart"
    END = "end"
    """This life alone; what follows is the restart policy's."""
    KILL = "kill"
    MEMORY = "memory"
    WATCHDOG = "watchdog"
    START_TIMEOUT = "start-timeout"
    ANNOUNCED = "announced"
    """The worker itself said STOPPING=1."""


GRACE = 0.8
"""Share of a stop timeout after which asking gives way to killing."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The ending of the present worker: decided once, and not revised by what happens later."""

    cause: Cause
    reason: str
    timeout: float
    """Seconds from the decision to the last resort."""
    escalated: bool = False
    """The stop signal did not suffice in time, and the group was killed."""
    drain: float = 0.0
    """Seconds of them for the worker's data to move away."""

    @property
    def grace(self) -> float:
        """Seconds after which asking gives way to killing."""
        return self.drain + GRACE * (self.timeout - self.drain)


@dataclass(frozen=True, slots=True)
class WaitStatus:
    """What waitid(2) said of the main process.  Exactly one of *code* and *signal* is set."""

    code: int | None = None
    signal: int | None = None
    core: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found at the end of a worker, before anybody judged it."""

    status: WaitStatus
    oom_kill: bool = False
    """memory.events of the leaf: at least one process in it was OOM-killed."""
    oom_own: bool = False
    """memory.events.local of the leaf: it was the leaf's own limit that was met."""
    oom_ancestor: str | None = None
    """The cgroup above whose own limit was met during this life, if one was."""
    oomd: bool = False
    """systemd-oomd left its mark on the leaf."""
    counted: bool = True
    """The worker had a leaf, so that no OOM kill in it can have gone unnoticed."""
    host_oom_kills: bool = False
    """The kernel's OOM killer struck somebody on this host during this life, or that is unknown."""
    memory_peak: int | None = None
    """Bytes, memory.peak of the leaf: page cache included."""
    error: str = ""
    """What the worker itself said of its failure (X_NANNYD_ERROR)."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How one life of the worker ended."""

    generation: int
    result: Result
    who: Who
    detail: str = ""
    """The rule, limit, or error in words."""
    status: WaitStatus | None = None
    """None: there was no process."""
    was_ready: bool = False
    memory_peak: int | None = None
    """Bytes, the highest memory.peak of the leaf; None: unknown."""


_CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}
"""What systemd takes for a clean end (systemd.service(5), SuccessExitStatus=)."""

_OWN_FAULTS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""Signals that the kernel sends a process for what it did itself."""

_DECIDED = {
    Cause.MEMORY: Result.MEMORY,
    Cause.WATCHDOG: Result.WATCHDOG,
    Cause.START_TIMEOUT: Result.TIMEOUT,
}
"""Decisions of nannyd that stay the result however the worker then ends."""


def classify(generation: int, stop: Stop | None, evidence: Evidence, *, was_ready: bool) -> Exit:
    """Judge the end of one life.  *stop* is what nannyd had decided about it, if anything."""

    def verdict(result: Result, who: Who, detail: str = "") -> Exit:
        return Exit(
            generation,
            result,
            who,
            detail or evidence.error,
            evidence.status,
            was_ready,
            evidence.memory_peak,
        )

    if stop is not None and stop.cause in _DECIDED:
        return verdict(_DECIDED[stop.cause], Who.NANNYD, stop.reason)
    if evidence.oomd:
        return verdict(Result.OOM_KILL, Who.OOMD, "systemd-oomd killed the worker's cgroup")
    if evidence.oom_kill:
        if evidence.oom_own:
            return verdict(Result.OOM_KILL, Who.OWN_LIMIT, "the worker met its memory.max")
        if evidence.oom_ancestor is not None:
            detail = f"{evidence.oom_ancestor} met its memory.max"
            return verdict(Result.OOM_KILL, Who.ANCESTOR_LIMIT, detail)
        return verdict(Result.OOM_KILL, Who.HOST, "the host ran out of memory")
    if stop is not None and stop.cause is Cause.KILL:
        return verdict(Result.SIGNAL, Who.NANNYD, stop.reason)
    if stop is not None and stop.escalated:
        detail = f"did not end within {stop.grace:g}s of the stop signal ({stop.reason})"
        return verdict(Result.TIMEOUT, Who.NANNYD, detail)
    result, who = _by_status(stop, evidence)
    return verdict(result, who, stop.reason if stop is not None and result is Result.SUCCESS else "")


def _by_status(stop: Stop | None, evidence: Evidence) -> tuple[Result, Who]:
    status = evidence.status
    asked = stop is not None and stop.cause in (Cause.STOP, Cause.RESTART, Cause.END)
    if status.signal is None:
        # A shell that was ended by the stop signal exits with 128 + its number.
        if status.code == 0 or (asked and status.code == 128 + signal.SIGTERM):
            return Result.SUCCESS, Who.NANNYD if asked else Who.WORKER
        return Result.EXIT_CODE, Who.WORKER
    if asked and not status.core and status.signal != signal.SIGKILL:
        return Result.SUCCESS, Who.NANNYD
    if status.signal in _CLEAN_SIGNALS:
        return Result.SUCCESS, Who.OUTSIDE
    result = Result.CORE_DUMP if status.core else Result.SIGNAL
    if status.signal in _OWN_FAULTS:
        return result, Who.WORKER
    if status.signal == signal.SIGKILL and not evidence.counted and evidence.host_oom_kills:
        return result, Who.UNKNOWN
    return result, Who.OUTSIDE


def signal_name(number: int) -> str | None:
    """Return `SIGKILL`, or None for a real-time signal, which has no name in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def describe(exit_: Exit) -> str:
    """Return the end in words: `exited with status 3`, `killed by SIGSEGV (core dumped)`."""
    status = exit_.status
    if status is None:
        return "could not be started"
    if status.signal is None:
        return f"exited with status {status.code}"
    name = signal_name(status.signal) or f"signal {status.signal}"
    return f"was killed by {name}" + (" and dumped core" if status.core else "")
