"""`nannyctl call`: functions in the agent of a real instance."""

from __future__ import annotations

import json
import re
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


def test_an_error_without_a_place_in_the_code_is_said_once(nannyd: Host, run: Nannyd) -> None:
    done = nannyctl(nannyd, "call", "a1", "plugins:nonesuch")
    assert done.stderr.count("AttributeError") == 1, done.stderr
    assert done.stderr.count("\n") == 1


def test_plugins_come_and_go(nannyd: Host, run: Nannyd) -> None:
    arguments = json.dumps({"key": "ADDED", "value": "1"})
    done = nannyctl(nannyd, "plugin-add", "a1", "manners:Variable", arguments, "--name=var")
    said = "plugin var was added; the worker was restarted for it\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert re.search(r"^ +Plugins: var$", nannyctl(nannyd, "status", "a1").stdout, re.MULTILINE)
    explained = nannyctl(nannyd, "explain", "a1").stdout
    names = [line.partition("=")[0] for line in explained.partition("# environment")[2].splitlines()[1:]]
    assert "ADDED" in names
    assert names == sorted(names)
    other = nannyctl(nannyd, "plugin-add", "a1", "manners:Variable", '{"key": "B", "value": "2"}', "--json")
    assert json.loads(other.stdout) == {"name": "Variable-1", "restarted": True}
    assert nannyctl(nannyd, "plugin-remove", "a1", "var").returncode == 0
    gone = nannyctl(nannyd, "plugin-remove", "a1", "var")
    assert (gone.returncode, gone.stderr) == (1, "a1: it has no plugin var\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["plugin-add", "a1"], 2, "write nannyctl plugin-add NAME TARGET [JSON]\n"),
        (["plugin-add", "a1", "x:Y", "[1]"], 2, "'[1]' is no JSON object; write '{\"key\": 1}'\n"),
        (["plugin-add", "a1", "x:Y", "{"], 2, "'{' is no JSON object; write '{\"key\": 1}'\n"),
        (["plugin-remove", "a1"], 2, "write nannyctl plugin-remove NAME PLUGIN\n"),
        (["plugin-add", "a1", "manners:Nonesuch"], 1, "AttributeError"),
    ],
)
def test_what_is_no_plugin_is_refused(
    nannyd: Host, run: Nannyd, words: list[str], status: int, said: str
) -> None:
    done = nannyctl(nannyd, *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_an_instance_that_does_not_run_is_said_to(nannyd: Host, run: Nannyd) -> None:
    done = nannyctl(nannyd, "call", "b2", "plugins:add")
    assert (done.returncode, done.stderr) == (1, "there is no instance b2\n")
