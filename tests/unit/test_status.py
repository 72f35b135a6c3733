"""The sentence of `systemctl status`."""

from __future__ import annotations

import pytest

from nannyd.core.exits import Cause, Exit, Result, Stop, WaitStatus, Who
from nannyd.core.lifecycle import Goal, State, Worker
from nannyd.core.memory import Reading
from nannyd.supervisor.status import Facts, sentence, share

GIB = 1 << 30
FULL = Facts(pid=4242, reading=Reading(int(2.1 * GIB)), limit=4 * GIB)
KILLED = Exit(2, Result.SIGNAL, Who.OUTSIDE, status=WaitStatus(signal=9), was_ready=True)


def worker(state: State, **others: object) -> Worker:
    """Return a worker in *state*."""
    return Worker(state=state, goal=Goal.UP, generation=3, **others)  # type: ignore[arg-type]


SENTENCES = [
    (worker(State.RUNNING, restarts=2), FULL, "worker 4242 running, 2.1 of 4.0 GiB (52 %), 2 restarts"),
    (worker(State.RUNNING, restarts=1), Facts(pid=1), "worker 1 running, 1 restart"),
    (worker(State.RUNNING), FULL, "worker 4242 running, 2.1 of 4.0 GiB (52 %)"),
    (worker(State.START), FULL, "worker 4242 starting, 2.1 of 4.0 GiB (52 %)"),
    (Worker(), Facts(), "down"),
    (
        worker(State.RUNNING),
        Facts(pid=7, reading=Reading(512), weaker="no cgroup", note="3 jobs"),
        "worker 7 running, 512 B, memory only polled: no cgroup; worker: 3 jobs",
    ),
    (
        worker(State.STOP_SIGTERM, stop=Stop(Cause.MEMORY, "memory.terminate: too much", 30.0)),
        FULL,
        "worker 4242 stopping (memory.terminate: too much)",
    ),
    (
        worker(State.STOP_SIGKILL, stop=Stop(Cause.STOP, "SIGTERM", 30.0, escalated=True)),
        FULL,
        "worker 4242 being killed (SIGTERM)",
    ),
    (worker(State.STOP_SIGKILL), FULL, "worker 4242 being killed"),
    (
        worker(State.AUTO_RESTART, deadline=103.5, exit=KILLED, restarts=3),
        Facts(),
        "worker was killed by SIGKILL (signal, by outside); next start in 3.5s, 3 restarts",
    ),
    (
        worker(State.FAILED, exit=KILLED),
        Facts(),
        "failed: worker was killed by SIGKILL (signal, by outside)",
    ),
    (
        worker(State.FAILED, exit=KILLED, start_limit_hit=True),
        Facts(),
        "failed: worker was killed by SIGKILL (signal, by outside); start-limit-hit",
    ),
    (
        worker(State.FAILED, exit=KILLED, no_scheduler=True),
        Facts(),
        "failed: worker was killed by SIGKILL (signal, by outside); no scheduler",
    ),
    (
        worker(State.FAILED, exit=Exit(1, Result.RESOURCES, Who.NANNYD, "cannot execute 'x': No such file")),
        Facts(),
        "failed: worker could not be started: cannot execute 'x': No such file",
    ),
    (worker(State.FAILED), Facts(), "failed: worker never started"),
]


@pytest.mark.parametrize(("worker", "facts", "text"), SENTENCES)
def test_the_sentence_says_what_is(worker: Worker, facts: Facts, text: str) -> None:
    assert sentence(worker, facts, 100.0) == text


@pytest.mark.parametrize("state", list(State))
def test_there_is_a_sentence_for_every_state(state: State) -> None:
    assert sentence(worker(state), Facts(), 0.0)


@pytest.mark.parametrize(
    ("used", "limit", "text"),
    [
        (0, GIB, "0 B of 1.0 GiB (0 %)"),
        (300 << 20, GIB, "300.0 MiB of 1.0 GiB (29 %)"),
        (GIB // 2, GIB // 2, "512.0 of 512.0 MiB (100 %)"),
        (GIB, None, "1.0 GiB"),
    ],
)
def test_a_share_names_a_unit_once_where_both_have_it(used: int, limit: int | None, text: str) -> None:
    assert share(used, limit) == text
