"""What the worker is doing, and what to do next.

Pure: no clock, no file, no process.  `step()` takes the time as an argument and returns the effects it
wants; `nannyd.supervisor` is the only place that performs them.  Names are systemd's own
(systemd.service(5)), so that an administrator meets no new word.

A worker has a *state* (what is) and a *goal* (what was asked).  Keeping the two apart is what makes
"restart" need no state of its own: it is a stop with the goal still UP.

Rules:

* Every state that waits has one deadline, and it is part of the worker.  There is one timer.
* A spawn is answered (`Spawned` or `SpawnFailed`) before any queued event is looked at.
* What belongs to one life carries its generation; news of an earlier life are dropped.
* `Exited` means that the main process was reaped *and* nobody is left of its group.
* What nannyd decided about an ending (`Worker.stop`) stays decided, however the worker then ends.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from nannyd.core.errors import ExitCode
from nannyd.core.exits import GRACE, Cause, Evidence, Exit, Result, Stop, Who, classify
from nannyd.core.plan import KillMode, Ready
from nannyd.core.restart import RestartMode, RestartPolicy, limit_hit, recent, restart_delay, wants_restart


class State(enum.StrEnum):
    """What the worker is doing."""

    INACTIVE = "inactive"
    START = "start"
    RUNNING = "running"
    STOP_SIGTERM = "stop-sigterm"
    STOP_SIGKILL = "stop-sigkill"
    AUTO_RESTART = "auto-restart"
    FAILED = "failed"


ACTIVE_STATE = {
    State.INACTIVE: "inactive",
    State.START: "activating",
    State.RUNNING: "active",
    State.STOP_SIGTERM: "deactivating",
    State.STOP_SIGKILL: "deactivating",
    State.AUTO_RESTART: "activating",
    State.FAILED: "failed",
}
"""systemd's ActiveState= for each state."""


class Goal(enum.StrEnum):
    """What was asked."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a worker is treated.  Durations are seconds."""

    restart: RestartPolicy = RestartPolicy()  # noqa: RUF009 - frozen
    ready: Ready = Ready.EXEC
    start_timeout: float | None = None
    stop_timeout: float = 30.0
    watchdog: float | None = None
    kill_mode: KillMode = KillMode.MIXED
    drain_timeout: float = 0.0
    """What a worker that is ready gets on top of the stop timeout when it is to be down."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Where a worker stands.  Instants are monotonic seconds."""

    state: State = State.INACTIVE
    goal: Goal = Goal.DOWN
    generation: int = 0
    """Number of the present or latest life, from 1."""
    deadline: float | None = None
    """When the state's wait is over."""
    ready_at: float | None = None
    """When this life became ready."""
    stop: Stop | None = None
    """Why this life is being ended, once it is."""
    prompt: bool = False
    """The next start was asked for: it comes at once and does not count towards the start limit."""
    excused: bool = False
    """This life ends because of others: the next start does not count towards the start limit."""
    exit: Exit | None = None
    """How the latest life that is over ended."""
    restarts: int = 0
    """Restarts by the policy, ever."""
    row: int = 0
    """Restarts by the policy since the last stable run."""
    starts: tuple[float, ...] = ()
    """When the starts were that count towards the start limit."""
    start_limit_hit: bool = False
    no_scheduler: bool = False
    """The present or latest life found no scheduler in time: it is the last."""

    @property
    def result(self) -> Result | None:
        """What systemd would call `Result=`: of the latest life, or that nannyd gave up."""
        if self.start_limit_hit:
            return Result.START_LIMIT_HIT
        return self.exit.result if self.exit is not None else None

    @property
    def ended(self) -> bool:
        """Nothing runs, and nothing will without being asked."""
        return self.goal is Goal.DOWN and self.state in (State.INACTIVE, State.FAILED)


# --- Events: what happened, or was asked.  `generation` names the life they belong to. -----------------


@dataclass(frozen=True, slots=True)
class StartRequested:
    """Be up: at once if down."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Be down."""

    reason: str
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """End this life, if there is one, and start the next at once."""

    reason: str
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class KillRequested:
    """End this life: without asking it, or in *timeout* seconds (None: the stop timeout).  The goal stays."""

    reason: str
    timeout: float | None = 0.0


@dataclass(frozen=True, slots=True)
class CloseGracefullyRequested:
    """When this life is over, do not start another.  The worker is not asked to end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The program was executed."""

    generation: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no process."""

    generation: int
    detail: str
    chance: float = 0.5


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker said READY=1."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerStopping:
    """The worker said STOPPING=1, or in other words that it ends."""

    generation: int
    reason: str = "the worker said STOPPING=1"


@dataclass(frozen=True, slots=True)
class WorkerExcused:
    """What this life ends of is no fault of the worker's; the next is wanted however it ends."""

    generation: int


@dataclass(frozen=True, slots=True)
class SchedulerMissing:
    """The worker found no scheduler in time and ends."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    """The worker said WATCHDOG=1."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """The worker said WATCHDOG=trigger."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerExtends:
    """The worker said EXTEND_TIMEOUT_USEC: what it is doing may take *seconds* from now."""

    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryExceeded:
    """The working set is at or above `terminate`; with *wall*, at or above what nannyd itself enforces."""

    generation: int
    detail: str
    wall: bool = False


@dataclass(frozen=True, slots=True)
class MainExited:
    """The main process is gone, others of its group are not."""

    generation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """This life is over: main process reaped, group empty."""

    generation: int
    evidence: Evidence
    chance: float = 0.5
    """A number from 0 to 1 for the jitter of the delay."""


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """`Worker.deadline` has come."""


Event = (
    StartRequested
    | StopRequested
    | RestartRequested
    | KillRequested
    | CloseGracefullyRequested
    | Spawned
    | SpawnFailed
    | WorkerReady
    | WorkerStopping
    | WorkerExcused
    | SchedulerMissing
    | WorkerAlive
    | WorkerHung
    | WorkerExtends
    | MemoryExceeded
    | MainExited
    | Exited
    | DeadlineReached
)


# --- Effects: what the supervisor is to do. ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start life number *generation*; answer with Spawned or SpawnFailed."""

    generation: int


@dataclass(frozen=True, slots=True)
class AskToStop:
    """Send the stop signal, or *abort* (SIGABRT, for a hung worker); tell a Python worker why."""

    timeout: float
    """Seconds until the group is killed."""
    reason: str
    abort: bool = False
    drain: float = 0.0
    """Seconds of them for the worker's data to move away."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the whole group."""


Effect = Spawn | AskToStop | Kill
Step = tuple[Worker, tuple[Effect, ...]]


def step(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    """Return the worker after *event* at time *now*, and what has to be done."""
    generation = getattr(event, "generation", worker.generation)
    if generation != worker.generation:
        return worker, ()  # news of an earlier life
    if isinstance(event, DeadlineReached) and (worker.deadline is None or now < worker.deadline):
        return worker, ()  # the wait it was meant for is over
    match worker.state:
        case State.INACTIVE | State.FAILED:
            return _when_down(worker, event, now, policy)
        case State.START:
            return _when_starting(worker, event, now, policy)
        case State.RUNNING:
            return _when_running(worker, event, now, policy)
        case State.STOP_SIGTERM:
            return _when_asked_to_stop(worker, event, now, policy)
        case State.STOP_SIGKILL:
            return _when_killed(worker, event, now, policy)
        case State.AUTO_RESTART:
            return _when_waiting(worker, event, now, policy)


def _when_down(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case StartRequested() | RestartRequested():
            prompt = isinstance(event, RestartRequested)
            return _start(replace(worker, goal=Goal.UP, prompt=prompt, starts=(), row=0), now, policy)
        case StopRequested() | CloseGracefullyRequested():
            return replace(worker, goal=Goal.DOWN), ()
        case (
            KillRequested()
            | Spawned()
            | SpawnFailed()
            | WorkerReady()
            | WorkerStopping()
            | WorkerExcused()
            | SchedulerMissing()
            | WorkerAlive()
            | WorkerHung()
            | WorkerExtends()
            | MemoryExceeded()
            | MainExited()
            | Exited()
            | DeadlineReached()
        ):
            return worker, ()


def _when_starting(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case Spawned():
            return _run(worker, now, policy) if policy.ready is Ready.EXEC else (worker, ())
        case SpawnFailed(_, detail, chance):
            exit_ = Exit(worker.generation, Result.RESOURCES, Who.NANNYD, detail)
            return _down(worker, exit_, now, policy, chance)
        case WorkerReady():
            return _run(worker, now, policy)
        case WorkerExtends(_, seconds):
            return _extend(worker, now + seconds), ()
        case DeadlineReached():
            reason = f"not ready within start-timeout {policy.start_timeout or 0:g}s"
            return _ask(worker, Cause.START_TIMEOUT, reason, policy.stop_timeout, now)
        case WorkerHung():
            return _ask(worker, Cause.WATCHDOG, "the worker triggered its watchdog", policy.stop_timeout, now)
        case (
            StartRequested()
            | StopRequested()
            | RestartRequested()
            | KillRequested()
            | CloseGracefullyRequested()
            | MemoryExceeded()
            | MainExited()
            | Exited()
            | WorkerStopping()
            | WorkerExcused()
            | SchedulerMissing()
        ):
            return _when_up(worker, event, now, policy)
        case WorkerAlive():
            return worker, ()  # the watchdog is armed by READY=1, as in systemd


def _when_running(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case WorkerAlive():
            return replace(worker, deadline=_after(now, policy.watchdog)), ()
        case DeadlineReached():
            reason = f"no WATCHDOG=1 within {policy.watchdog or 0:g}s"
            return _ask(worker, Cause.WATCHDOG, reason, policy.stop_timeout, now)
        case WorkerHung():
            return _ask(worker, Cause.WATCHDOG, "the worker triggered its watchdog", policy.stop_timeout, now)
        case (
            StartRequested()
            | StopRequested()
            | RestartRequested()
            | KillRequested()
            | CloseGracefullyRequested()
            | MemoryExceeded()
            | MainExited()
            | Exited()
            | WorkerStopping()
            | WorkerExcused()
            | SchedulerMissing()
        ):
            return _when_up(worker, event, now, policy)
        case Spawned() | SpawnFailed() | WorkerReady() | WorkerExtends():
            return worker, ()


_WhileUp = (
    StartRequested
    | StopRequested
    | RestartRequested
    | KillRequested
    | CloseGracefullyRequested
    | MemoryExceeded
    | MainExited
    | Exited
    | WorkerStopping
    | WorkerExcused
    | SchedulerMissing
)


def _when_up(worker: Worker, event: _WhileUp, now: float, policy: Policy) -> Step:
    """Handle what means the same to a worker that starts and to one that runs."""
    match event:
        case StartRequested():
            return replace(worker, goal=Goal.UP), ()
        case CloseGracefullyRequested():
            return replace(worker, goal=Goal.DOWN), ()
        case StopRequested(reason, timeout):
            down = replace(worker, goal=Goal.DOWN)
            drain = policy.drain_timeout if worker.ready_at is not None else 0.0
            if timeout is not None:  # is for the whole
                drain = max(0.0, min(drain, timeout - policy.stop_timeout))
            whole = _or(timeout, policy.stop_timeout + drain)
            return _ask(down, Cause.STOP, reason, whole, now, drain)
        case RestartRequested(reason, timeout):
            again = replace(worker, goal=Goal.UP, prompt=True)
            return _ask(again, Cause.RESTART, reason, _or(timeout, policy.stop_timeout), now)
        case KillRequested(reason, timeout):
            if timeout != 0:
                return _ask(worker, Cause.END, reason, _or(timeout, policy.stop_timeout), now)
            stop = Stop(Cause.KILL, reason, policy.stop_timeout)
            return _kill(replace(worker, stop=stop), now)
        case MemoryExceeded(_, detail, wall):
            if wall:
                stop = Stop(Cause.MEMORY, detail, policy.stop_timeout)
                return _kill(replace(worker, stop=stop), now)
            return _ask(worker, Cause.MEMORY, detail, policy.stop_timeout, now)
        case WorkerStopping(_, reason):
            stop = Stop(Cause.ANNOUNCED, reason, policy.stop_timeout)
            return replace(worker, state=State.STOP_SIGTERM, stop=stop, deadline=now + stop.grace), ()
        case WorkerExcused() | SchedulerMissing():
            return _note(worker, event), ()
        case MainExited():
            return _kill(worker, now)
        case Exited(_, evidence, chance):
            return _over(worker, evidence, now, policy, chance)


def _when_asked_to_stop(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case StartRequested() | CloseGracefullyRequested():
            return _change_goal(worker, event), ()
        case RestartRequested(_, timeout) | StopRequested(_, timeout):
            return _hasten(_change_goal(worker, event), timeout, now), ()
        case KillRequested(reason, timeout):
            if timeout != 0:
                return _hasten(worker, timeout, now), ()
            return _kill(_overruled(worker, Cause.KILL, reason), now)
        case MemoryExceeded(_, detail, wall):
            return _kill(_overruled(worker, Cause.MEMORY, detail), now) if wall else (worker, ())
        case WorkerExtends(_, seconds):
            return _extend(worker, now + seconds), ()
        case DeadlineReached():
            return _kill(_escalated(worker), now)
        case MainExited():
            if policy.kill_mode is KillMode.CONTROL_GROUP:
                return worker, ()  # the others were asked too, and have the same time
            return _kill(worker, now)
        case Exited(_, evidence, chance):
            return _over(worker, evidence, now, policy, chance)
        case WorkerExcused() | SchedulerMissing():
            return _note(worker, event), ()
        case Spawned() | SpawnFailed() | WorkerReady() | WorkerStopping() | WorkerAlive() | WorkerHung():
            return worker, ()


def _when_killed(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case StartRequested() | RestartRequested() | StopRequested() | CloseGracefullyRequested():
            return _change_goal(worker, event), ()
        case DeadlineReached() | KillRequested():
            return _kill(worker, now)  # somebody sleeps uninterruptibly; nothing may start beside it
        case Exited(_, evidence, chance):
            return _over(worker, evidence, now, policy, chance)
        case WorkerExcused() | SchedulerMissing():
            return _note(worker, event), ()
        case (
            Spawned()
            | SpawnFailed()
            | WorkerReady()
            | WorkerStopping()
            | WorkerAlive()
            | WorkerHung()
            | WorkerExtends()
            | MemoryExceeded()
            | MainExited()
        ):
            return worker, ()


def _when_waiting(worker: Worker, event: Event, now: float, policy: Policy) -> Step:
    match event:
        case DeadlineReached():
            return _start(worker, now, policy)
        case StartRequested() | RestartRequested():
            return _start(replace(worker, prompt=True), now, policy)
        case StopRequested() | CloseGracefullyRequested():
            return replace(worker, state=State.INACTIVE, goal=Goal.DOWN, deadline=None), ()
        case (
            KillRequested()
            | Spawned()
            | SpawnFailed()
            | WorkerReady()
            | WorkerStopping()
            | WorkerExcused()
            | SchedulerMissing()
            | WorkerAlive()
            | WorkerHung()
            | WorkerExtends()
            | MemoryExceeded()
            | MainExited()
            | Exited()
        ):
            return worker, ()


def _start(worker: Worker, now: float, policy: Policy) -> Step:
    uncounted = worker.prompt or worker.excused
    counted = worker.starts if uncounted else (*recent(policy.restart, worker.starts, now), now)
    worker = replace(
        worker,
        state=State.START,
        generation=worker.generation + 1,
        deadline=_after(now, policy.start_timeout),
        ready_at=None,
        stop=None,
        prompt=False,
        excused=False,
        starts=counted,
        start_limit_hit=False,
        no_scheduler=False,
    )
    return worker, (Spawn(worker.generation),)


def _run(worker: Worker, now: float, policy: Policy) -> Step:
    deadline = _after(now, policy.watchdog)
    return replace(worker, state=State.RUNNING, ready_at=now, deadline=deadline), ()


def _note(worker: Worker, event: WorkerExcused | SchedulerMissing) -> Worker:
    if isinstance(event, SchedulerMissing):
        return replace(worker, no_scheduler=True)
    return replace(worker, excused=True)


def _ask(worker: Worker, cause: Cause, reason: str, timeout: float, now: float, drain: float = 0.0) -> Step:
    stop = Stop(cause, reason, timeout, drain=drain)
    worker = replace(worker, state=State.STOP_SIGTERM, stop=stop, deadline=now + stop.grace)
    return worker, (AskToStop(stop.grace, reason, abort=cause is Cause.WATCHDOG, drain=drain),)


def _kill(worker: Worker, now: float) -> Step:
    left = worker.stop.timeout - worker.stop.grace if worker.stop is not None else 0.0
    deadline = now + max(1.0, left)
    return replace(worker, state=State.STOP_SIGKILL, deadline=deadline), (Kill(),)


def _escalated(worker: Worker) -> Worker:
    return worker if worker.stop is None else replace(worker, stop=replace(worker.stop, escalated=True))


def _overruled(worker: Worker, cause: Cause, reason: str) -> Worker:
    """Make a polite stop a kill; what nannyd had decided by a rule of its own stays the cause."""
    stop = worker.stop
    if stop is None or stop.cause not in (Cause.STOP, Cause.RESTART, Cause.END, Cause.ANNOUNCED):
        return worker
    return replace(worker, stop=replace(stop, cause=cause, reason=reason))


def _change_goal(
    worker: Worker, event: StartRequested | RestartRequested | StopRequested | CloseGracefullyRequested
) -> Worker:
    up = isinstance(event, StartRequested | RestartRequested)
    return replace(worker, goal=Goal.UP if up else Goal.DOWN, prompt=up)


def _hasten(worker: Worker, timeout: float | None, now: float) -> Worker:
    """Let a later request with a *timeout* of its own shorten a stop, never lengthen it."""
    if timeout is None or worker.deadline is None:
        return worker
    return replace(worker, deadline=min(worker.deadline, now + GRACE * timeout))


def _extend(worker: Worker, deadline: float) -> Worker:
    if worker.deadline is None:
        return worker
    return replace(worker, deadline=max(worker.deadline, deadline))


def _over(worker: Worker, evidence: Evidence, now: float, policy: Policy, chance: float) -> Step:
    was_ready = worker.ready_at is not None
    exit_ = classify(worker.generation, worker.stop, evidence, was_ready=was_ready)
    return _down(worker, exit_, now, policy, chance)


def _down(worker: Worker, exit_: Exit, now: float, policy: Policy, chance: float) -> Step:
    """Decide what follows a life that is over."""
    rules = policy.restart
    stable = rules.reset_after is not None and worker.ready_at is not None
    if stable and now - (worker.ready_at or now) >= (rules.reset_after or 0):
        worker = replace(worker, row=0, starts=())
    worker = replace(worker, exit=exit_, deadline=None, ready_at=None, stop=None)
    if worker.goal is Goal.DOWN:
        return replace(worker, state=State.INACTIVE, prompt=False), ()
    if worker.prompt:
        return _start(worker, now, policy)
    if worker.no_scheduler:
        return replace(worker, state=State.FAILED, goal=Goal.DOWN), ()
    wanted = worker.excused and rules.mode is not RestartMode.NO
    if not wanted and not wants_restart(rules.mode, exit_.result):
        state = State.INACTIVE if exit_.result is Result.SUCCESS else State.FAILED
        return replace(worker, state=state, goal=Goal.DOWN), ()
    delay = restart_delay(rules, worker.row, chance)
    if not worker.excused and limit_hit(rules, worker.starts, now + delay):
        return replace(worker, state=State.FAILED, goal=Goal.DOWN, start_limit_hit=True), ()
    worker = replace(worker, row=worker.row + 1, restarts=worker.restarts + 1)
    if delay <= 0:
        return _start(worker, now, policy)
    return replace(worker, state=State.AUTO_RESTART, deadline=now + delay), ()


def _after(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds


def _or(timeout: float | None, default: float) -> float:
    return default if timeout is None else timeout


def exit_code(worker: Worker) -> ExitCode:
    """Return the exit status of nannyd for a worker whose life has `ended`."""
    if worker.state is State.INACTIVE:
        return ExitCode.CLEAN
    if worker.start_limit_hit:
        return ExitCode.START_LIMIT_HIT
    if worker.no_scheduler:
        return ExitCode.NO_SCHEDULER
    if worker.exit is not None and worker.exit.was_ready:
        return ExitCode.WORKER_FAILED
    return ExitCode.COULD_NOT_START
