"""What a reload changes, and when that takes effect."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import replace
from typing import Any

import pytest

from nannyd.core.dask import Cause, Then
from nannyd.core.memory import Thresholds
from nannyd.core.plan import (
    AgentPlan,
    DaskPlan,
    KillMode,
    LogFormat,
    MemoryMode,
    MemoryPlan,
    Plan,
    Plugin,
    PreloadFailure,
    PythonWorker,
    Ready,
    WorkerPlan,
    from_json,
    to_json,
)
from nannyd.core.reload import When, changes, is_possible
from nannyd.core.restart import RestartMode, RestartPolicy

GIB = 1 << 30

PLAN = Plan(
    name="w",
    worker=WorkerPlan(
        command=["/usr/bin/worker"],
        python=None,
        ready=Ready.EXEC,
        working_directory=None,
        local_directory=None,
        umask=None,
        nice=None,
        oom_score_adj=0,
        start_timeout=None,
        stop_signal=int(signal.SIGTERM),
        stop_timeout=30.0,
        kill_mode=KillMode.MIXED,
        watchdog=None,
    ),
    memory=MemoryPlan(
        MemoryMode.AUTO, Thresholds(4 * GIB, int(3.2 * GIB), int(3.8 * GIB), 4 * GIB), 0, "memory.limit"
    ),
    restart=RestartPolicy(),
    agent=AgentPlan("/usr/bin/python3", [], [], [], PreloadFailure.FAIL, 512 << 20, 60.0),
    environ={"A": "1"},
    late_environ={},
    log_format=LogFormat.AUTO,
    log_level="info",
    arguments=["run", "w"],
)

WORKER: dict[str, tuple[Any, When]] = {
    "command": (["/usr/bin/other"], When.NEXT_WORKER),
    "python": (PythonWorker("a:B", [], {}, [], []), When.NEXT_WORKER),
    "ready": (Ready.NOTIFY, When.NEXT_WORKER),
    "working_directory": ("/srv", When.NEXT_WORKER),
    "local_directory": ("/srv", When.NEXT_WORKER),
    "umask": (0o27, When.NEXT_WORKER),
    "nice": (5, When.NEXT_WORKER),
    "oom_score_adj": (100, When.NEXT_WORKER),
    "start_timeout": (5.0, When.NOW),
    "stop_signal": (int(signal.SIGINT), When.NOW),
    "stop_timeout": (5.0, When.NOW),
    "kill_mode": (KillMode.CONTROL_GROUP, When.NOW),
    "watchdog": (5.0, When.NEXT_WORKER),
}
AGENT: dict[str, tuple[Any, str, When]] = {
    "preload": (["m"], "nanny.preload", When.RESTART),
    "preload_argv": ([["--x"]], "nanny.preload-argv", When.RESTART),
    "plugins": ([Plugin(None, "a:B", {"x": 1})], "nanny.plugins", When.RESTART),
    "preload_failure": (PreloadFailure.IGNORE, "nanny.preload-failure", When.RESTART),
    "memory_limit": (None, "agent.memory-limit", When.NOW),
    "idle_timeout": (5.0, "agent.idle-timeout", When.NOW),
}
REST: dict[str, tuple[Any, When]] = {
    "environ": ({"A": "2"}, When.NEXT_WORKER),
    "late_environ": ({"B": "2"}, When.NEXT_WORKER),
    "log_level": ("debug", When.NOW),
    "log_format": (LogFormat.JSON, When.RESTART),
    "name": ("other", When.RESTART),
}


def with_thresholds(**others: Any) -> Plan:
    """Return the plan with other thresholds."""
    memory = replace(PLAN.memory, thresholds=replace(PLAN.memory.thresholds, **others))
    return replace(PLAN, memory=memory)


def test_nothing_changes_in_the_same_plan() -> None:
    assert changes(PLAN, from_json(to_json(PLAN))) == {}


def test_the_table_below_knows_every_setting_of_a_worker() -> None:
    assert set(WORKER) == {field.name for field in dataclasses.fields(WorkerPlan)}
    assert {*AGENT, "python"} == {field.name for field in dataclasses.fields(AgentPlan)}


@pytest.mark.parametrize("key", WORKER)
def test_a_changed_setting_of_the_worker_is_told_with_when(key: str) -> None:
    value, when = WORKER[key]
    new = replace(PLAN, worker=replace(PLAN.worker, **{key: value}))
    assert changes(PLAN, new) == {f"worker.{key.replace('_', '-')}": when}


@pytest.mark.parametrize("key", AGENT)
def test_a_changed_setting_of_the_agent_is_told_with_when(key: str) -> None:
    value, name, when = AGENT[key]
    new = replace(PLAN, agent=replace(PLAN.agent, **{key: value}))
    assert from_json(to_json(new)) == new
    assert changes(PLAN, new) == {name: when}


@pytest.mark.parametrize("key", REST)
def test_a_changed_part_of_the_plan_is_told_with_when(key: str) -> None:
    value, when = REST[key]
    changed: dict[str, Any] = {key: value}
    assert changes(PLAN, replace(PLAN, **changed)) == {key.replace("_", "-"): when}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RestartPolicy)])
def test_the_whole_restart_policy_changes_now(field: str) -> None:
    value: Any = RestartMode.NO if field == "mode" else 17
    new = replace(PLAN, restart=replace(PLAN.restart, **{field: value}))
    assert changes(PLAN, new) == {f"restart.{field.replace('_', '-')}": When.NOW}


def test_a_new_limit_is_one_change_though_all_thresholds_move_with_it() -> None:
    old = PLAN.memory.thresholds
    half = {field.name: getattr(old, field.name) // 2 for field in dataclasses.fields(old)}
    assert changes(PLAN, with_thresholds(**half)) == {"memory.limit": When.NOW}


@pytest.mark.parametrize(("name", "share"), [("warn", 0.5), ("terminate", 0.9), ("max", 0.99)])
def test_a_new_fraction_is_a_change_of_its_own(name: str, share: float) -> None:
    assert changes(PLAN, with_thresholds(**{name: int(4 * GIB * share)})) == {f"memory.{name}": When.NOW}
    assert changes(PLAN, with_thresholds(**{name: None})) == {f"memory.{name}": When.NOW}


def test_no_limit_any_more_is_a_change() -> None:
    found = changes(PLAN, with_thresholds(limit=None, warn=None, terminate=None, max=None))
    assert found["memory.limit"] is When.NOW
    assert set(found.values()) == {When.NOW}


def test_the_way_memory_is_watched_changes_with_nannyd() -> None:
    new = replace(PLAN, memory=replace(PLAN.memory, mode=MemoryMode.POLL))
    assert changes(PLAN, new) == {"memory.mode": When.RESTART}


def test_what_nobody_set_is_not_told() -> None:
    new = replace(PLAN, arguments=["run", "w", "--x"], secrets=["A"])
    assert changes(PLAN, new) == {}


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    python = PythonWorker("a:B", [1], {"k": {"x": [None]}}, ["p"], [["-v"]])
    plan = replace(PLAN, worker=replace(PLAN.worker, python=python), secrets=["A"], late_environ={"X": "ü\n"})
    assert from_json(to_json(plan)) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "w"}', to_json(PLAN).replace('"auto"', '"x"')])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(text)


DASK = DaskPlan({Cause.RETIRE: Then.END, Cause.LIFETIME: Then.RESTART}, 30.0, {"blocked_handlers": []})
KWARGS: dict[str, Any] = {
    "scheduler": "tcp://10.0.0.1:8786",
    "options": {"name": "w", "nthreads": 2, "port": None, "lifetime": None},
    "config": {},
    "security": {},
    "nanny": {"host": None, "port": None},
}


def in_cluster(dask: DaskPlan = DASK, **others: Any) -> Plan:
    """Return a Dask worker's plan with *others* of its keyword arguments."""
    python = PythonWorker("d:W", [], KWARGS | others, [], [])
    return replace(PLAN, dask=dask, worker=replace(PLAN.worker, python=python))


def test_what_follows_in_a_cluster_is_judged_by_the_plan_in_force() -> None:
    after = {Cause.RETIRE: Then.RESTART, Cause.LIFETIME: Then.RESTART}
    new = in_cluster(DaskPlan(after, 5.0, {"blocked_handlers": ["run"]}))
    assert changes(in_cluster(), new) == {
        "dask.blocked-handlers": When.NEXT_AGENT,
        "dask.drain-timeout": When.NOW,
        "dask.on-retire": When.NOW,
    }


def test_arguments_of_a_dask_worker_are_told_as_the_settings_that_they_are() -> None:
    options = {"name": "w", "nthreads": 4, "port": 9000, "lifetime": "1 day", "host": "lo"}
    new = in_cluster(
        options=options, config={"a.b": 1}, security={"tls_ca_file": "/x"}, scheduler="tcp://b:1"
    )
    names = ("config", "host", "nthreads", "scheduler", "tls", "worker-port", "worker.lifetime")
    assert changes(in_cluster(), new) == {f"dask.{name}": When.NEXT_WORKER for name in names}


def test_where_the_nanny_listens_changes_with_nannyd() -> None:
    options = {**KWARGS["options"], "host": "lo"}
    new = in_cluster(options=options, nanny={"host": "lo", "port": 8788})
    assert changes(in_cluster(), new) == {
        "dask.host": When.NEXT_WORKER,
        "dask.host of the nanny": When.RESTART,
        "dask.port": When.RESTART,
    }


def test_an_instance_joins_and_leaves_a_cluster_by_a_restart() -> None:
    assert is_possible(PLAN, PLAN)
    assert is_possible(replace(PLAN, dask=DASK), replace(PLAN, dask=DASK))
    assert not is_possible(PLAN, replace(PLAN, dask=DASK))
    assert not is_possible(replace(PLAN, dask=DASK), PLAN)
