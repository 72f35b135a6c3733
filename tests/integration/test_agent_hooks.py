"""What plugins are told of the worker, and functions called in the agent.  The test is the supervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent_peer import AgentError
from harness import eventually

from nannyd.agent import WorkerExited
from nannyd.core import wire

if TYPE_CHECKING:
    from agent_peer import Agent

EXITED: dict[str, Any] = {
    "pid": 9,
    "generation": 3,
    "result": "signal",
    "who": "the worker itself",
    "status": None,
    "signal": "SIGSEGV",
    "uptime": 1.5,
    "memory_peak": 4096,
    "new_field": "of a later nannyd",
}


# --- hooks ------------------------------------------------------------------------------------------------


def test_plugins_are_told_of_the_worker(agent: Agent) -> None:
    agent.add("plugins:Plain", "p")
    agent.add("plugins:Async")
    agent.add("plugins:Duck")
    agent.story()
    agent.tell("worker_started", pid=9, generation=3, address=None)
    agent.tell("memory_warning", working_set=90, limit=100, anon=1, shmem=2, kernel=3, swap=None)
    agent.tell("worker_exiting", reason="memory")
    agent.tell("worker_exited", **EXITED)
    agent.tell("of_a_later_nannyd", pid=9)
    told: list[str] = []

    def all_told() -> bool:
        told.extend(agent.story())
        return len(told) >= 5

    eventually(all_told, "hooks were called")
    told.remove("async exited 9")
    exited = WorkerExited(**{key: value for key, value in EXITED.items() if key != "new_field"})
    assert told == [
        "plain started 9 3 None",
        "plain memory 90 of 100, swap None",
        "plain exiting memory",
        f"plain exited {exited}",
    ]
    assert [said["say"] for said in agent.said] == ["deprecated"]


def test_hooks_of_one_plugin_do_not_overlap_and_teardown_comes_after_them(agent: Agent) -> None:
    agent.add("plugins:Slow", "s")
    for generation in range(5):
        agent.tell("worker_started", generation=generation)
    agent.do("plugin_remove", name="s")
    expected = [f"{what} {generation}" for generation in range(5) for what in ("begin", "end")]
    assert agent.story() == expected


def test_hooks_in_quick_succession_are_all_called(agent: Agent) -> None:
    agent.add("plugins:Plain", "p")
    agent.story()
    for number in range(200):
        agent.tell("worker_exiting", reason=str(number))
    agent.do("plugin_remove", name="p")
    assert agent.story() == [*(f"plain exiting {number}" for number in range(200)), "plain teardown of w1"]
    assert agent.said == []


def test_hook_that_fails_is_told_of(agent: Agent) -> None:
    agent.add("plugins:Raising", "r", method="worker_started")
    agent.add("plugins:Raising", "s", method="worker_exiting", kind="SystemExit")
    agent.tell("worker_started", pid=9)
    agent.tell("worker_exiting", reason="x")
    agent.until(lambda: len(agent.said) == 2)
    errors = {said["error"]["where"]: said["error"] for said in agent.said}
    assert errors["plugin r"]["type"] == "ValueError"
    assert errors["plugin s"]["type"] == "SystemExit"
    assert "in worker_exiting" in errors["plugin s"]["traceback"]
    assert agent.do("ping") == {}


@pytest.mark.parametrize("is_async", [False, True])
def test_hook_past_its_deadline_is_told_of_and_the_next_is_not_called(
    agent: Agent, *, is_async: bool
) -> None:
    agent.add("plugins:Blocking", "b", method="worker_started", is_async=is_async)
    for number in range(3):
        agent.tell_within(0.2 if number else 2.0, "worker_started", pid=9)
        agent.until(lambda: len(agent.said) > number)  # noqa: B023
    assert [said["error"]["type"] for said in agent.said] == ["TimeoutError"] * 3
    assert ("_stubborn" if is_async else "in _block") in agent.said[0]["error"]["traceback"]
    assert agent.said[2]["error"]["message"] == "still busy; worker_started() is not called"
    assert agent.story().count("worker_started begins") == 1
    eventually(lambda: len(agent.threads()) == (not is_async), "one thread is left, of the first call")
    agent.do("plugin_remove", name="b")


@pytest.mark.parametrize("is_async", [False, True])
def test_plugin_with_a_hook_that_blocks_can_be_removed(agent: Agent, *, is_async: bool) -> None:
    agent.add("plugins:Blocking", "b", method="worker_started", is_async=is_async)
    agent.tell("worker_started", pid=9)
    agent.do("plugin_remove", name="b", timeout=2.0)
    assert [line for line in agent.story() if "begins" in line] == [
        "setup begins",
        "worker_started begins",
        "teardown begins",
    ]


# --- call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["plugins:add", "plugins:add_async"])
def test_function_is_called_with_its_arguments(agent: Agent, function: str) -> None:
    assert agent.call(function, 1, b=2) == 3
    assert agent.call(function, 1) == 1


@pytest.mark.parametrize("value", [None, True, 1.5, "é\N{ROCKET}\ud800\0\n", [1, [2]], {"a": {"b": []}}])
def test_any_json_comes_back(agent: Agent, value: object) -> None:
    assert agent.call("plugins:say", value) == value
    assert agent.call("plugins:say", what=value) == value


@pytest.mark.parametrize("kind", ["set", "nan", "circle", "object"])
def test_what_json_cannot_say_is_an_error(agent: Agent, kind: str) -> None:
    with pytest.raises(AgentError) as caught:
        agent.call("plugins:nothing_json_can_say", kind)
    assert caught.value["type"] in ("TypeError", "ValueError")
    assert caught.value["where"] == "call plugins:nothing_json_can_say"


def test_largest_request_is_understood(agent: Agent) -> None:
    request = {"id": 999, "do": "call", "target": "builtins:len", "args": [""], "kwargs": {}, "timeout": 10.0}
    size = wire.LINE_MAX - len(json.dumps(request)) - 1
    request["args"] = ["x" * size]
    agent.send(request)
    assert agent.answer(999) == {"value": size}


def test_large_value_travels_and_a_too_large_one_is_an_error(agent: Agent) -> None:
    assert len(agent.call("plugins:text", 1_000_000)) == 1_000_000
    with pytest.raises(AgentError, match="the result takes 1048578 bytes as JSON; at most 1047552 travel"):
        agent.call("plugins:text", 1 << 20)


def test_traceback_is_bounded_to_its_end(agent: Agent) -> None:
    with pytest.raises(AgentError) as caught:
        agent.call("plugins:fail", 900)
    assert (caught.value["type"], caught.value["message"]) == ("ValueError", "so deep")
    assert caught.value["traceback"].endswith("ValueError: so deep\n")
    with pytest.raises(AgentError) as caught:
        agent.add("plugins:Raising", "r", method="setup", size=1 << 20)
    assert len(caught.value["traceback"]) == len(caught.value["message"]) == wire.ERROR_MAX


@pytest.mark.parametrize("function", ["plugins:leave", "plugins:leave_async"])
def test_exit_is_only_an_error(agent: Agent, function: str) -> None:
    with pytest.raises(AgentError) as caught:
        agent.call(function)
    assert (caught.value["type"], caught.value["message"]) == ("SystemExit", "3")
    assert agent.do("ping") == {}


def test_calls_overlap(agent: Agent, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(10)]
    numbers = [
        agent.request("call", target="plugins:wait_for", args=[path], kwargs={}, timeout=None)
        for path in paths
    ]
    assert agent.call("plugins:add", 1) == 1
    for path, number in reversed(list(zip(paths, numbers, strict=True))):
        Path(path).touch()
        assert agent.answer(number) == {"value": path}
    eventually(lambda: agent.threads() == [], "no thread is left")


def test_call_past_its_deadline_is_cancelled(agent: Agent) -> None:
    agent.call("plugins:add", 1)  # the deadline is for the import, too
    with pytest.raises(AgentError) as caught:
        agent.do("call", target="plugins:wait_for_ever", args=[], kwargs={}, timeout=1.0)
    assert caught.value["type"] == "TimeoutError"
    assert "in wait_for_ever" in caught.value["traceback"]
    eventually(lambda: agent.story() == ["cancelled"], "it was cancelled")


def test_unknown_request_is_an_error(agent: Agent) -> None:
    with pytest.raises(AgentError) as caught:
        agent.do("dance")
    assert (caught.value["where"], caught.value["type"]) == ("agent dance", "ValueError")
