"""How an end is judged: what, and by whom."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from typing import Any

import pytest

from nannyd.core.exits import Cause, Evidence, Exit, Result, Stop, WaitStatus, Who, classify, describe

OK = WaitStatus(code=0)
FAILED = WaitStatus(code=3)
TERM = WaitStatus(signal=signal.SIGTERM)
KILL = WaitStatus(signal=signal.SIGKILL)
SEGV = WaitStatus(signal=signal.SIGSEGV)
CORE = WaitStatus(signal=signal.SIGSEGV, core=True)
USR1 = WaitStatus(signal=signal.SIGUSR1)


def judge(status: WaitStatus, stop: Stop | Cause | None = None, **found: Any) -> Exit:
    """Judge one end; the evidence is that of a leaf unless *found* says otherwise."""
    decided = Stop(stop, "the reason", 10.0) if isinstance(stop, Cause) else stop
    evidence = replace(Evidence(status), **found)
    return classify(7, decided, evidence, was_ready=True)


UNASKED = [
    (OK, Result.SUCCESS, Who.WORKER),
    (FAILED, Result.EXIT_CODE, Who.WORKER),
    (WaitStatus(code=143), Result.EXIT_CODE, Who.WORKER),  # nobody asked: it is a failure like another
    (TERM, Result.SUCCESS, Who.OUTSIDE),
    (WaitStatus(signal=signal.SIGHUP), Result.SUCCESS, Who.OUTSIDE),
    (WaitStatus(signal=signal.SIGINT), Result.SUCCESS, Who.OUTSIDE),
    (WaitStatus(signal=signal.SIGPIPE), Result.SUCCESS, Who.OUTSIDE),
    (KILL, Result.SIGNAL, Who.OUTSIDE),
    (USR1, Result.SIGNAL, Who.OUTSIDE),
    (SEGV, Result.SIGNAL, Who.WORKER),
    (CORE, Result.CORE_DUMP, Who.WORKER),
    (WaitStatus(signal=signal.SIGABRT, core=True), Result.CORE_DUMP, Who.WORKER),
    (WaitStatus(signal=signal.SIGQUIT, core=True), Result.CORE_DUMP, Who.OUTSIDE),
]

ASKED = [
    (OK, Result.SUCCESS, Who.NANNYD),
    (FAILED, Result.EXIT_CODE, Who.WORKER),
    (WaitStatus(code=143), Result.SUCCESS, Who.NANNYD),  # what a shell makes of SIGTERM
    (TERM, Result.SUCCESS, Who.NANNYD),
    (USR1, Result.SUCCESS, Who.NANNYD),  # the stop signal may be any
    (KILL, Result.SIGNAL, Who.OUTSIDE),  # nannyd did not send that one: it says `escalated` when it does
    (CORE, Result.CORE_DUMP, Who.WORKER),
]


@pytest.mark.parametrize(("status", "result", "who"), UNASKED)
def test_an_end_that_nobody_asked_for(status: WaitStatus, result: Result, who: Who) -> None:
    exit_ = judge(status)
    assert (exit_.result, exit_.who, exit_.status) == (result, who, status)
    assert (exit_.generation, exit_.was_ready) == (7, True)


@pytest.mark.parametrize(("status", "result", "who"), ASKED)
@pytest.mark.parametrize("cause", [Cause.STOP, Cause.RESTART])
def test_an_end_that_was_asked_for(cause: Cause, status: WaitStatus, result: Result, who: Who) -> None:
    exit_ = judge(status, cause)
    assert (exit_.result, exit_.who) == (result, who)
    assert (exit_.detail == "the reason") is (result is Result.SUCCESS)


DECIDED = {
    Cause.MEMORY: Result.MEMORY,
    Cause.WATCHDOG: Result.WATCHDOG,
    Cause.START_TIMEOUT: Result.TIMEOUT,
}
EVERY_STATUS = [OK, FAILED, TERM, KILL, SEGV, CORE]


@pytest.mark.parametrize(("cause", "status"), list(itertools.product(DECIDED, EVERY_STATUS)))
@pytest.mark.parametrize("oom_kill", [True, False])
def test_what_nannyd_decided_stays_decided(cause: Cause, status: WaitStatus, *, oom_kill: bool) -> None:
    exit_ = judge(status, cause, oom_kill=oom_kill, oom_own=oom_kill, error="last words")
    assert (exit_.result, exit_.who, exit_.detail) == (DECIDED[cause], Who.NANNYD, "the reason")


def test_a_kill_is_nannyds() -> None:
    exit_ = judge(KILL, Cause.KILL)
    assert (exit_.result, exit_.who, exit_.detail) == (Result.SIGNAL, Who.NANNYD, "the reason")


@pytest.mark.parametrize("cause", [Cause.STOP, Cause.RESTART, Cause.ANNOUNCED])
def test_who_does_not_stop_in_time_is_a_timeout(cause: Cause) -> None:
    exit_ = judge(KILL, Stop(cause, "SIGTERM", 30.0, escalated=True))
    assert (exit_.result, exit_.who) == (Result.TIMEOUT, Who.NANNYD)
    assert exit_.detail == "did not end within 24s of the stop signal (SIGTERM)"


def test_a_worker_that_announced_its_end_ended_by_itself() -> None:
    assert judge(OK, Cause.ANNOUNCED).who is Who.WORKER
    assert judge(FAILED, Cause.ANNOUNCED).result is Result.EXIT_CODE
    assert judge(TERM, Cause.ANNOUNCED).who is Who.OUTSIDE


# Who was it?  The kernel's evidence comes before the wait status.
OOM = [
    ({"oom_kill": True, "oom_own": True}, Who.OWN_LIMIT, "the worker met its memory.max"),
    (
        {"oom_kill": True, "oom_ancestor": "/app.slice"},
        Who.ANCESTOR_LIMIT,
        "/app.slice met its memory.max",
    ),
    ({"oom_kill": True}, Who.HOST, "the host ran out of memory"),
    ({"oomd": True}, Who.OOMD, "systemd-oomd killed the worker's cgroup"),
    ({"oomd": True, "oom_kill": True, "oom_own": True}, Who.OOMD, "systemd-oomd killed the worker's cgroup"),
    # Its own limit is nearer than an ancestor's that was met, too.
    (
        {"oom_kill": True, "oom_own": True, "oom_ancestor": "/a"},
        Who.OWN_LIMIT,
        "the worker met its memory.max",
    ),
]


@pytest.mark.parametrize(("found", "who", "detail"), OOM)
@pytest.mark.parametrize("status", [KILL, FAILED, OK], ids=["killed", "failed", "succeeded"])
def test_an_oom_kill_in_the_group_is_the_result_however_the_main_process_ended(
    status: WaitStatus, found: dict[str, Any], who: Who, detail: str
) -> None:
    exit_ = judge(status, **found)
    assert (exit_.result, exit_.who, exit_.detail) == (Result.OOM_KILL, who, detail)


def test_an_oom_kill_during_a_stop_is_no_clean_stop() -> None:
    assert judge(KILL, Cause.STOP, oom_kill=True).result is Result.OOM_KILL


@pytest.mark.parametrize(
    ("counted", "host_oom_kills", "who"),
    [
        (True, True, Who.OUTSIDE),  # the leaf would have counted it
        (False, False, Who.OUTSIDE),  # nobody on this host was OOM-killed meanwhile
        (False, True, Who.UNKNOWN),  # it may have been this one
    ],
)
def test_a_sigkill_that_may_have_been_the_oom_killers_is_nobodys(
    who: Who, *, counted: bool, host_oom_kills: bool
) -> None:
    exit_ = judge(KILL, counted=counted, host_oom_kills=host_oom_kills)
    assert (exit_.result, exit_.who) == (Result.SIGNAL, who)


def test_the_workers_own_words_are_the_detail_where_nothing_better_is_known() -> None:
    assert judge(FAILED, error="ValueError: x").detail == "ValueError: x"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (OK, "exited with status 0"),
        (FAILED, "exited with status 3"),
        (KILL, "was killed by SIGKILL"),
        (CORE, "was killed by SIGSEGV and dumped core"),
        (WaitStatus(signal=signal.SIGRTMIN + 5), f"was killed by signal {signal.SIGRTMIN + 5}"),
        (None, "could not be started"),
    ],
)
def test_an_end_in_words(status: WaitStatus | None, words: str) -> None:
    assert describe(Exit(1, Result.SIGNAL, Who.OUTSIDE, status=status)) == words
