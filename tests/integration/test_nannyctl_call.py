"""`nannyctl call`: functions in the agent of a real instance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from operator_terminal import nannyctl, run_instance

if TYPE_CHECKING:
    from harness import Host, Nannyd


@pytest.fixture
def run(nannyd: Host) -> Nannyd:
    run = run_instance(nannyd, "--", "sleep", "1000", name="a1")
    run.ready()
    return run


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["add", "[40, 2]"], "42"),
        (["add", '{"a": 1}'], "1"),
        (["add_async", '{"a": 1, "b": -3}'], "-2"),
        (["say", '[{"what": ["ü", null]}]'], '{"what": ["ü", null]}'),
        (["extend_path", '["/nonesuch"]'], "null"),
        (["nanny_in_the_middle", '{"a": 1, "b": 2}'], '[1, "a1", 2, 3]'),
    ],
)
def test_the_result_is_printed_as_json(nannyd: Host, run: Nannyd, arguments: list[str], printed: str) -> None:
    function, *given = arguments
    done = nannyctl(nannyd, "call", "a1", f"plugins:{function}", *given)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{printed}\n", "")
    assert json.loads(done.stdout) == json.loads(printed)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["plugins:fail"], 1, "Traceback (most recent call last)"),
        (["plugins:fail"], 1, "a1: call plugins:fail: ValueError: so deep"),
        (["plugins:nonesuch"], 1, "a1: call plugins:nonesuch: AttributeError"),
        (["plugins:add", "[]"], 1, "TypeError: missing a required argument: 'a'"),
        (["plugins:die"], 1, "exited with status 7"),
        (["plugins:wait_for_ever", "--timeout=200ms"], 1, "TimeoutError"),
        (["plugins:add", "1"], 2, "'1' is no JSON list or object"),
        (["plugins:add", "[1"], 2, "'[1' is no JSON list or object"),
        ([], 2, "write nannyctl call NAME MODULE:FUNCTION [JSON]"),
        (["plugins:add", "[]", "[]"], 2, "write nannyctl call NAME MODULE:FUNCTION [JSON]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_failed_is_said(nannyd: Host, run: Nannyd, arguments: list[str], status: int, said: str) -> None:
    done = nannyctl(nannyd, "call", "a1", *arguments)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert said in done.stderr


def test_an_instance_that_does_not_run_is_said_to(nannyd: Host, run: Nannyd) -> None:
    done = nannyctl(nannyd, "call", "b2", "plugins:add")
    assert (done.returncode, done.stderr) == (1, "there is no instance b2\n")
