"""The state machine: every pair of state and event, single sentences, and random histories."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nannyd.core.errors import ExitCode
from nannyd.core.exits import Cause, Evidence, Result, Stop, WaitStatus, Who
from nannyd.core.lifecycle import (
    ACTIVE_STATE,
    AskToStop,
    CloseGracefullyRequested,
    DeadlineReached,
    Effect,
    Event,
    Exited,
    Goal,
    Kill,
    KillRequested,
    MainExited,
    MemoryExceeded,
    Policy,
    RestartRequested,
    SchedulerMissing,
    Spawn,
    Spawned,
    SpawnFailed,
    StartRequested,
    State,
    StopRequested,
    Worker,
    WorkerAlive,
    WorkerExcused,
    WorkerExtends,
    WorkerHung,
    WorkerReady,
    WorkerStopping,
    exit_code,
    step,
)
from nannyd.core.plan import KillMode, Ready
from nannyd.core.restart import RestartMode, RestartPolicy

NOTIFY = Policy(ready=Ready.NOTIFY, start_timeout=10.0, stop_timeout=10.0, watchdog=5.0)
EXITED_0 = Evidence(WaitStatus(code=0))
EXITED_1 = Evidence(WaitStatus(code=1))
SIGTERM = Evidence(WaitStatus(signal=15))
SIGKILL = Evidence(WaitStatus(signal=9))


def events(generation: int) -> list[Event]:
    return [
        StartRequested(),
        StopRequested("test"),
        RestartRequested("test"),
        KillRequested("test"),
        KillRequested("test", 5.0),
        CloseGracefullyRequested("test"),
        Spawned(generation),
        SpawnFailed(generation, "no such file"),
        WorkerReady(generation),
        WorkerStopping(generation),
        WorkerExcused(generation),
        SchedulerMissing(generation),
        WorkerAlive(generation),
        WorkerHung(generation),
        WorkerExtends(generation, 60.0),
        MemoryExceeded(generation, "too much"),
        MemoryExceeded(generation, "far too much", wall=True),
        MainExited(generation),
        Exited(generation, EXITED_1),
        DeadlineReached(),
    ]


def at(state: State, goal: Goal = Goal.UP) -> Worker:
    """A worker in *state* at time 100, its deadline (if the state has one) at 100."""
    waits = state not in (State.INACTIVE, State.FAILED)
    stopping = state in (State.STOP_SIGTERM, State.STOP_SIGKILL)
    alive = stopping or state is State.RUNNING
    return Worker(
        state=state,
        goal=goal if waits else Goal.DOWN,
        generation=3,
        deadline=100.0 if waits else None,
        ready_at=90.0 if alive else None,
        stop=Stop(Cause.STOP, "test", 10.0) if stopping else None,
    )


EXPECTED = {
    # state: the state after each of events(), in order
    State.INACTIVE: (
        "start inactive start inactive inactive inactive inactive inactive inactive inactive "
        "inactive inactive inactive inactive inactive inactive inactive inactive inactive inactive"
    ),
    State.FAILED: (
        "start failed start failed failed failed failed failed failed failed failed failed failed "
        "failed failed failed failed failed failed failed"
    ),
    State.START: (
        "start stop-sigterm stop-sigterm stop-sigkill stop-sigterm start start auto-restart running "
        "stop-sigterm start start start stop-sigterm start stop-sigterm stop-sigkill stop-sigkill "
        "auto-restart stop-sigterm"
    ),
    State.RUNNING: (
        "running stop-sigterm stop-sigterm stop-sigkill stop-sigterm running running running "
        "running stop-sigterm running running running stop-sigterm running stop-sigterm "
        "stop-sigkill stop-sigkill auto-restart stop-sigterm"
    ),
    State.STOP_SIGTERM: (
        "stop-sigterm stop-sigterm stop-sigterm stop-sigkill stop-sigterm stop-sigterm stop-sigterm "
        "stop-sigterm stop-sigterm stop-sigterm stop-sigterm stop-sigterm stop-sigterm stop-sigterm "
        "stop-sigterm stop-sigterm stop-sigkill stop-sigkill auto-restart stop-sigkill"
    ),
    State.STOP_SIGKILL: (
        "stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill "
        "stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill stop-sigkill "
        "stop-sigkill stop-sigkill stop-sigkill stop-sigkill auto-restart stop-sigkill"
    ),
    State.AUTO_RESTART: (
        "start inactive start auto-restart auto-restart inactive auto-restart auto-restart "
        "auto-restart auto-restart auto-restart auto-restart auto-restart auto-restart auto-restart "
        "auto-restart auto-restart auto-restart auto-restart start"
    ),
}

PAIRS = [
    (state, event, State(after))
    for state, row in EXPECTED.items()
    for event, after in zip(events(3), row.split(), strict=True)
]


def _pair_id(value: object) -> str:
    return str(value) if isinstance(value, State) else type(value).__name__


@pytest.mark.parametrize(("state", "event", "after"), PAIRS, ids=_pair_id)
def test_every_event_in_every_state_leads_where_it_should(state: State, event: Event, after: State) -> None:
    worker, effects = step(at(state), event, 100.0, NOTIFY)
    assert worker.state is after
    assert (worker.deadline is not None) == (after not in (State.INACTIVE, State.FAILED))
    started = worker.generation > 3
    assert started == any(isinstance(effect, Spawn) for effect in effects)
    assert started == (after is State.START and state is not State.START)


@pytest.mark.parametrize("state", list(State))
def test_news_of_an_earlier_life_are_dropped(state: State) -> None:
    for event in events(2):
        if hasattr(event, "generation"):
            assert step(at(state), event, 100.0, NOTIFY) == (at(state), ())


@pytest.mark.parametrize("state", list(State))
def test_a_deadline_that_has_moved_is_not_reached(state: State) -> None:
    assert step(at(state), DeadlineReached(), 99.9, NOTIFY) == (at(state), ())


def run(
    policy: Policy, *history: tuple[float, Event], worker: Worker | None = None
) -> tuple[Worker, list[Effect]]:
    worker, done = worker or Worker(), list[Effect]()
    for now, event in history:
        worker, effects = step(worker, event, now, policy)
        done += effects
    return worker, done


START: list[tuple[float, Event]] = [(0.0, StartRequested()), (0.0, Spawned(1))]
UP: list[tuple[float, Event]] = [*START, (1.0, WorkerReady(1))]


def test_a_command_is_ready_when_it_was_executed() -> None:
    worker, _ = run(Policy(ready=Ready.EXEC), *START)
    assert worker.state is State.RUNNING
    assert worker.deadline is None


def test_without_a_start_timeout_a_start_may_take_for_ever() -> None:
    worker, _ = run(Policy(ready=Ready.NOTIFY), *START)
    assert (worker.state, worker.deadline) == (State.START, None)


def test_a_worker_that_does_not_become_ready_ends_with_timeout() -> None:
    worker, done = run(NOTIFY, *START, (10.0, DeadlineReached()), (11.0, Exited(1, SIGTERM)))
    assert worker.exit is not None
    assert (worker.exit.result, worker.exit.who, worker.exit.was_ready) == (Result.TIMEOUT, Who.NANNYD, False)
    assert isinstance(done[1], AskToStop)


def test_extend_timeout_moves_the_deadline_of_a_start_but_never_shortens_it() -> None:
    worker, _ = run(NOTIFY, *START, (5.0, WorkerExtends(1, 60.0)), (6.0, WorkerExtends(1, 1.0)))
    assert worker.deadline == 65.0


def test_a_ping_moves_the_watchdog_and_its_absence_aborts() -> None:
    worker, done = run(NOTIFY, *UP, (4.0, WorkerAlive(1)), (6.0, DeadlineReached()))
    assert worker.state is State.RUNNING
    worker, effects = step(worker, DeadlineReached(), 9.0, NOTIFY)
    assert worker.state is State.STOP_SIGTERM
    assert isinstance(effects[0], AskToStop)
    assert effects[0].abort
    worker, _ = step(worker, Exited(1, Evidence(WaitStatus(signal=6, core=True))), 10.0, NOTIFY)
    assert worker.result is Result.WATCHDOG
    assert done == [Spawn(1)]


def test_stop_escalates_to_kill_at_80_percent_of_the_timeout() -> None:
    worker, done = run(NOTIFY, *UP, (2.0, StopRequested("SIGTERM")))
    assert worker.deadline == 10.0
    assert done[-1] == AskToStop(8.0, "SIGTERM")
    worker, effects = step(worker, DeadlineReached(), 10.0, NOTIFY)
    assert (worker.state, effects) == (State.STOP_SIGKILL, (Kill(),))
    worker, _ = step(worker, Exited(1, SIGKILL), 10.1, NOTIFY)
    assert (worker.state, worker.result, exit_code(worker)) == (
        State.INACTIVE,
        Result.TIMEOUT,
        ExitCode.CLEAN,
    )


def test_a_stop_during_back_off_ends_it() -> None:
    worker, done = run(NOTIFY, *UP, (2.0, Exited(1, SIGKILL)), (2.1, StopRequested("SIGTERM")))
    assert worker.ended
    assert exit_code(worker) is ExitCode.CLEAN
    assert done == [Spawn(1)]


def test_a_stop_during_start_is_answered() -> None:
    worker, _ = run(NOTIFY, *START, (1.0, StopRequested("SIGTERM")), (2.0, Exited(1, SIGTERM)))
    assert worker.ended
    assert worker.result is Result.SUCCESS


def test_a_restart_is_immediate_and_does_not_count() -> None:
    policy = replace(NOTIFY, restart=RestartPolicy(start_limit_burst=1))
    worker, done = run(policy, *UP, (2.0, RestartRequested("asked")), (3.0, Exited(1, SIGTERM)))
    assert (worker.state, worker.generation, worker.restarts) == (State.START, 2, 0)
    assert len(worker.starts) == 1
    assert done[-1] == Spawn(2)


def test_a_kill_with_a_timeout_asks_first_and_leaves_what_follows_to_the_policy() -> None:
    policy = replace(NOTIFY, restart=RestartPolicy(mode=RestartMode.ON_FAILURE))
    asked = [*UP, (2.0, KillRequested("asked", 5.0))]
    worker, done = run(policy, *asked)
    assert done[-1] == AskToStop(4.0, "asked")
    ended, _ = step(worker, Exited(1, SIGTERM), 3.0, policy)
    assert (ended.state, ended.result) == (State.INACTIVE, Result.SUCCESS)
    always, _ = run(NOTIFY, *asked, (3.0, Exited(1, EXITED_0)))
    assert (always.state, always.goal) == (State.AUTO_RESTART, Goal.UP)
    late, _ = run(policy, *asked, (6.0, DeadlineReached()), (6.1, Exited(1, SIGKILL)))
    assert (late.state, late.result) == (State.AUTO_RESTART, Result.TIMEOUT)


def test_a_later_request_can_shorten_a_stop_but_not_lengthen_it() -> None:
    stopping, _ = run(NOTIFY, *UP, (2.0, StopRequested("SIGTERM")))
    assert stopping.deadline == 10.0
    for request in (
        StopRequested("again", 2.5),
        RestartRequested("again", 2.5),
        KillRequested("again", 2.5),
    ):
        assert step(stopping, request, 3.0, NOTIFY)[0].deadline == 5.0
        assert step(stopping, replace(request, timeout=100.0), 3.0, NOTIFY)[0].deadline == 10.0
        if not isinstance(request, KillRequested):
            assert step(stopping, replace(request, timeout=None), 3.0, NOTIFY)[0].deadline == 10.0


def test_closing_gracefully_asks_nothing_of_the_worker_and_ends_with_it() -> None:
    closing, done = run(NOTIFY, *UP, (2.0, CloseGracefullyRequested("asked")))
    assert (closing.state, closing.goal, done) == (State.RUNNING, Goal.DOWN, [Spawn(1)])
    for evidence in (EXITED_0, EXITED_1, SIGKILL):
        worker, effects = step(closing, Exited(1, evidence), 3.0, NOTIFY)
        assert worker.ended
        assert (exit_code(worker), effects) == (ExitCode.CLEAN, ())
    for request in (StartRequested(), RestartRequested("asked")):
        assert step(closing, request, 3.0, NOTIFY)[0].goal is Goal.UP


def test_a_restart_clears_failed() -> None:
    policy = Policy(restart=RestartPolicy(mode=RestartMode.NO))
    worker, _ = run(policy, *START, (1.0, Exited(1, EXITED_1)))
    assert (worker.state, exit_code(worker)) == (State.FAILED, ExitCode.WORKER_FAILED)
    worker, _ = step(worker, RestartRequested("asked"), 2.0, policy)
    assert (worker.state, worker.goal, worker.start_limit_hit) == (State.START, Goal.UP, False)


def test_once_decided_memory_stays_the_result_even_if_the_worker_exits_0_or_meets_the_wall() -> None:
    oom = replace(SIGKILL, oom_kill=True, oom_own=True)
    for evidence in (EXITED_0, EXITED_1, SIGTERM, SIGKILL, oom):
        worker, _ = run(NOTIFY, *UP, (2.0, MemoryExceeded(1, "95 %")), (3.0, Exited(1, evidence)))
        assert worker.exit is not None
        assert (worker.exit.result, worker.exit.who) == (Result.MEMORY, Who.NANNYD)


def test_memory_stays_the_result_when_the_operator_stops_meanwhile() -> None:
    history = [
        *UP,
        (2.0, MemoryExceeded(1, "95 %")),
        (2.1, StopRequested("SIGTERM")),
        (2.2, KillRequested("SIGINT")),
    ]
    worker, _ = run(NOTIFY, *history, (3.0, Exited(1, SIGKILL)))
    assert (worker.state, worker.result) == (State.INACTIVE, Result.MEMORY)


def test_a_worker_that_meets_the_wall_while_stopping_was_ended_by_nannyd() -> None:
    stopping = [*UP, (2.0, StopRequested("SIGTERM"))]
    worker, done = run(
        NOTIFY, *stopping, (2.5, MemoryExceeded(1, "the wall", wall=True)), (3.0, Exited(1, SIGKILL))
    )
    assert done[-1] == Kill()
    assert worker.exit is not None
    assert (worker.exit.result, worker.exit.who, worker.exit.detail) == (
        Result.MEMORY,
        Who.NANNYD,
        "the wall",
    )


def test_a_second_request_makes_a_stop_a_kill() -> None:
    stopping = [*UP, (2.0, StopRequested("SIGINT")), (2.5, KillRequested("a second SIGINT"))]
    worker, done = run(NOTIFY, *stopping, (3.0, Exited(1, SIGKILL)))
    assert done[-1] == Kill()
    assert worker.exit is not None
    assert (worker.exit.result, worker.exit.who) == (Result.SIGNAL, Who.NANNYD)


def test_what_outlives_the_main_process_is_killed_unless_all_were_asked() -> None:
    asked = [*UP, (2.0, StopRequested("SIGTERM")), (2.5, MainExited(1))]
    assert run(NOTIFY, *asked)[0].state is State.STOP_SIGKILL
    group = replace(NOTIFY, kill_mode=KillMode.CONTROL_GROUP)
    assert run(group, *asked)[0].state is State.STOP_SIGTERM
    assert run(group, *UP, (2.5, MainExited(1)))[0].state is State.STOP_SIGKILL


def test_who_cannot_be_killed_is_killed_again_and_nothing_starts_beside_it() -> None:
    worker, _ = run(NOTIFY, *UP, (2.0, KillRequested("asked")))
    for _ in range(5):
        assert worker.deadline is not None
        worker, effects = step(worker, DeadlineReached(), worker.deadline, NOTIFY)
        assert (worker.state, effects) == (State.STOP_SIGKILL, (Kill(),))


def test_the_delay_grows_to_its_maximum_and_a_stable_run_resets_it() -> None:
    rules = RestartPolicy(
        delay=1.0, growth=2.0, max_delay=5.0, jitter=0.0, reset_after=60.0, start_limit_burst=0
    )
    policy = Policy(restart=rules)
    worker, now, delays = Worker(), 0.0, list[float]()
    worker, _ = step(worker, StartRequested(), now, policy)
    for uptime in (0.1, 0.1, 0.1, 0.1, 0.1, 100.0, 0.1):
        worker, _ = step(worker, Spawned(worker.generation), now, policy)
        now += uptime
        worker, _ = step(worker, Exited(worker.generation, EXITED_1), now, policy)
        assert worker.deadline is not None
        delays.append(round(worker.deadline - now, 6))
        now = worker.deadline
        worker, _ = step(worker, DeadlineReached(), now, policy)
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0, 1.0, 2.0]


def test_too_many_starts_end_in_failed() -> None:
    rules = RestartPolicy(delay=0.0, start_limit_burst=3, start_limit_interval=10.0)
    policy = Policy(restart=rules)
    worker, _ = step(Worker(), StartRequested(), 0.0, policy)
    for life in (1, 2, 3):
        assert worker.generation == life
        worker, _ = step(worker, Spawned(life), 0.0, policy)
        worker, _ = step(worker, Exited(life, EXITED_1), 0.1 * life, policy)
    assert (worker.state, worker.result) == (State.FAILED, Result.START_LIMIT_HIT)
    assert exit_code(worker) is ExitCode.START_LIMIT_HIT


def test_a_spawn_that_fails_follows_the_same_policy() -> None:
    always, _ = run(Policy(), (0.0, StartRequested()), (0.0, SpawnFailed(1, "no such file")))
    assert always.state is State.AUTO_RESTART
    never = Policy(restart=RestartPolicy(mode=RestartMode.NO))
    worker, _ = run(never, (0.0, StartRequested()), (0.0, SpawnFailed(1, "no such file")))
    assert (worker.state, worker.result) == (State.FAILED, Result.RESOURCES)
    assert exit_code(worker) is ExitCode.COULD_NOT_START


def test_success_without_restart_ends_cleanly() -> None:
    policy = Policy(restart=RestartPolicy(mode=RestartMode.ON_FAILURE))
    worker, _ = run(policy, *START, (5.0, Exited(1, EXITED_0)))
    assert worker.ended
    assert exit_code(worker) is ExitCode.CLEAN


def test_a_worker_that_is_ready_gets_time_to_drain_before_it_is_down() -> None:
    policy = replace(NOTIFY, drain_timeout=30.0)
    worker, done = run(policy, *UP, (2.0, StopRequested("SIGTERM")))
    assert done[-1] == AskToStop(38.0, "SIGTERM", drain=30.0)
    assert worker.deadline == 40.0
    worker, done = run(policy, (40.0, DeadlineReached()), worker=worker)
    assert (done, worker.deadline) == ([Kill()], 42.0)
    worker, _ = run(policy, (41.0, Exited(1, SIGKILL)), worker=worker)
    assert worker.exit is not None
    assert (worker.exit.result, worker.exit.detail) == (
        Result.TIMEOUT,
        "did not end within 38s of the stop signal (SIGTERM)",
    )


@pytest.mark.parametrize(
    ("event", "asked"),
    [
        (RestartRequested("test"), AskToStop(8.0, "test")),
        (KillRequested("test", 5.0), AskToStop(4.0, "test")),
        (MemoryExceeded(1, "test"), AskToStop(8.0, "test")),
        (StopRequested("test", 5.0), AskToStop(4.0, "test")),
        (StopRequested("test", 15.0), AskToStop(13.0, "test", drain=5.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nobody_else_drains_and_a_timeout_is_for_the_whole(event: Event, asked: AskToStop) -> None:
    _, done = run(replace(NOTIFY, drain_timeout=30.0), *UP, (2.0, event))
    assert done[-1] == asked


def test_a_worker_that_is_not_ready_has_nothing_to_drain() -> None:
    _, done = run(replace(NOTIFY, drain_timeout=30.0), *START, (2.0, StopRequested("test")))
    assert done[-1] == AskToStop(8.0, "test")


@pytest.mark.parametrize("end", [EXITED_0, EXITED_1])
def test_an_excused_end_does_not_count_but_the_delay_grows(end: Evidence) -> None:
    rules = RestartPolicy(RestartMode.ON_ABORT, delay=1.0, jitter=0.0, start_limit_burst=2)
    policy = Policy(restart=rules)
    worker, now, delays = Worker(), 0.0, []
    worker, _ = run(policy, *START)
    for life in range(1, 6):
        worker, _ = run(policy, (now, WorkerExcused(life)), (now, Exited(life, end)), worker=worker)
        assert worker.deadline is not None
        delays.append(worker.deadline - now)
        now = worker.deadline
        worker, _ = run(policy, (now, DeadlineReached()), (now, Spawned(life + 1)), worker=worker)
        assert not worker.excused
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert worker.starts == (0.0,)


def test_where_nothing_is_restarted_an_excuse_does_not_help() -> None:
    policy = Policy(restart=RestartPolicy(RestartMode.NO))
    worker, _ = run(policy, *START, (1.0, WorkerExcused(1)), (1.0, Exited(1, EXITED_1)))
    assert (worker.state, worker.goal) == (State.FAILED, Goal.DOWN)


def test_without_a_scheduler_nannyd_gives_up() -> None:
    worker, _ = run(NOTIFY, *START, (5.0, SchedulerMissing(1)), (5.0, Exited(1, EXITED_1)))
    assert worker.state is State.FAILED
    assert exit_code(worker) is ExitCode.NO_SCHEDULER
    again, _ = run(NOTIFY, (6.0, RestartRequested("test")), (6.0, SpawnFailed(2, "gone")), worker=worker)
    assert again.state is State.AUTO_RESTART


def test_a_stop_while_the_scheduler_is_missed_is_a_clean_end() -> None:
    history: list[tuple[float, Event]] = [(5.0, SchedulerMissing(1)), (5.0, StopRequested("test"))]
    worker, _ = run(NOTIFY, *START, *history, (6.0, Exited(1, EXITED_1)))
    assert exit_code(worker) is ExitCode.CLEAN


def test_every_state_has_a_word_of_systemd() -> None:
    assert set(ACTIVE_STATE) == set(State)


# --- Random histories against a simulated worker -----------------------------------------------------

requests = st.sampled_from(
    [
        StartRequested(),
        StopRequested("test"),
        StopRequested("test", 0.5),
        RestartRequested("test"),
        KillRequested("test"),
        KillRequested("test", None),
        CloseGracefullyRequested("test"),
        None,
        None,
        None,
    ]
)
rules = st.builds(
    RestartPolicy,
    mode=st.sampled_from(list(RestartMode)),
    delay=st.sampled_from([0.0, 0.5, 3.0]),
    reset_after=st.sampled_from([None, 1.0, 60.0]),
    start_limit_burst=st.sampled_from([0, 1, 3]),
)
policies = st.builds(
    Policy,
    restart=rules,
    ready=st.sampled_from(list(Ready)),
    start_timeout=st.sampled_from([None, 1.0, 5.0]),
    stop_timeout=st.sampled_from([1.0, 30.0]),
    watchdog=st.sampled_from([None, 2.0]),
    kill_mode=st.sampled_from(list(KillMode)),
    drain_timeout=st.sampled_from([0.0, 20.0]),
)
news = st.sampled_from(
    [
        "ready",
        "stopping",
        "excused",
        "no-scheduler",
        "alive",
        "hung",
        "extends",
        "memory",
        "wall",
        "main",
        "exit-0",
        "exit-1",
        "segv",
        "late",
    ]
)
turns = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 7.0, 100.0]), requests, news), max_size=60)


def tell(word: str, life: int) -> Event:
    events: dict[str, Event] = {
        "ready": WorkerReady(life),
        "stopping": WorkerStopping(life),
        "excused": WorkerExcused(life),
        "no-scheduler": SchedulerMissing(life),
        "alive": WorkerAlive(life),
        "hung": WorkerHung(life),
        "extends": WorkerExtends(life, 3.0),
        "memory": MemoryExceeded(life, "too much"),
        "wall": MemoryExceeded(life, "far too much", wall=True),
        "main": MainExited(life),
        "exit-0": Exited(life, EXITED_0),
        "exit-1": Exited(life, EXITED_1),
        "segv": Exited(life, Evidence(WaitStatus(signal=11, core=True))),
        "late": Exited(max(0, life - 1), EXITED_1),
    }
    return events[word]


class World:
    """One process at most, spawned and ended as effects and events say."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.now = policy, 0.0
        self.worker = Worker()
        self.alive = False
        self.effects: list[Effect] = []
        self.asked_at: float | None = None

    def send(self, event: Event) -> None:
        ends = isinstance(event, Exited) and event.generation == self.worker.generation
        if ends and not self.alive:
            return
        self.alive = self.alive and not ends
        self.worker, effects = step(self.worker, event, self.now, self.policy)
        self.check()
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Spawn(generation):
                    assert not self.alive, "a worker was started beside a living one"
                    self.alive, self.asked_at = True, None
                    self.send(Spawned(generation))
                case AskToStop():
                    assert self.alive
                    self.asked_at = self.now
                case Kill():
                    assert self.alive

    def check(self) -> None:
        worker = self.worker
        if worker.state in (State.INACTIVE, State.FAILED):
            assert worker.deadline is None
            assert not self.alive
            assert worker.goal is Goal.DOWN
        if worker.state in (State.STOP_SIGTERM, State.STOP_SIGKILL, State.AUTO_RESTART):
            assert worker.deadline is not None, "a state waits without a deadline"
        if worker.state is State.AUTO_RESTART:
            assert not self.alive
        if worker.goal is Goal.DOWN:
            assert worker.state is not State.AUTO_RESTART

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.worker.deadline is not None and self.worker.deadline <= end:
            self.now = max(self.now, self.worker.deadline)
            before = self.worker
            self.send(DeadlineReached())
            if before == self.worker:
                break
        self.now = max(self.now, end)


@settings(max_examples=400, deadline=None)
@given(policies, turns)
def test_no_history_leaves_two_workers_a_wait_without_end_or_a_lost_request(
    policy: Policy, history: list[tuple[float, Event | None, str]]
) -> None:
    world = World(policy)
    world.send(StartRequested())
    for seconds, request, word in history:
        world.pass_time(seconds)
        if world.alive:
            world.send(tell(word, world.worker.generation))
        if request is not None:
            world.send(request)
            if isinstance(request, StopRequested | CloseGracefullyRequested):
                assert world.worker.goal is Goal.DOWN
            if isinstance(request, StartRequested | RestartRequested):
                assert world.worker.goal is Goal.UP
    world.send(StopRequested("the end"))
    if world.alive:
        world.send(Exited(world.worker.generation, SIGTERM))
    assert world.worker.ended


@settings(max_examples=200, deadline=None)
@given(policies, st.lists(st.sampled_from(["stop", "restart", "memory", "start"]), max_size=20))
def test_an_obedient_worker_is_never_killed(policy: Policy, history: list[str]) -> None:
    """It becomes ready at once, pings, and exits as soon as it is asked to."""
    world = World(policy)
    world.send(StartRequested())
    for word in history:
        life = world.worker.generation
        if world.worker.state is State.START:
            world.send(WorkerReady(life))
        if world.alive:
            world.send(WorkerAlive(life))
        requests: dict[str, Event] = {
            "stop": StopRequested("test"),
            "restart": RestartRequested("test"),
            "memory": MemoryExceeded(life, "too much"),
            "start": StartRequested(),
        }
        world.send(requests[word])
        world.pass_time(0.1)
        if world.worker.state is State.STOP_SIGTERM:
            world.send(Exited(world.worker.generation, EXITED_0))
        world.pass_time(100.0 if policy.watchdog is None and policy.start_timeout is None else 0.5)
    assert not any(isinstance(effect, Kill) for effect in world.effects)


def test_the_table_above_covers_every_state_and_event() -> None:
    kinds = {type(event) for event in events(1)}
    assert kinds == set(Event.__args__)
    assert set(EXPECTED) == set(State)
    assert len(PAIRS) == len(list(itertools.product(State, events(1))))
