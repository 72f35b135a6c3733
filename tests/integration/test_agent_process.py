"""The process of the agent: its requests, plugins and deadlines.  The test is the supervisor."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agent_peer import Agent, AgentError
from harness import PATIENCE, WORKERS, descriptors_of, eventually, interpreters, lives, read_lines, status_of

from nannyd.core import wire

if TYPE_CHECKING:
    from collections.abc import Callable

# --- setup and teardown -----------------------------------------------------------------------------------


def test_preloads_then_plugins_are_set_up_in_order_and_torn_down_in_reverse(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    preload = (
        "import plugins\n{} nannyd_setup(nanny): plugins.STORY.append(f'setup {{__name__}} {{nanny.name}}')\n"
    )
    preload += "{} nannyd_teardown(nanny): plugins.STORY.append(f'teardown {{__name__}}')\n"
    (tmp_path / "first.py").write_text(preload.format("def", "async def"))
    (tmp_path / "second.py").write_text(preload.format("async def", "def"))
    agent = launch_agent()
    agent.specify(
        preload=[str(tmp_path / "first.py"), str(tmp_path / "second.py")],
        plugins=[
            {"name": "p", "target": "plugins:Plain", "kwargs": {"label": "p"}},
            {"name": None, "target": "plugins:Async", "kwargs": {}},
            {"name": "q", "target": "plugins:Plain", "kwargs": {"label": "q"}},
        ],
    )
    assert agent.do("setup", again=False) == {"failed": [], "plugins": ["p", "the-async-one", "q"]}
    order = ["setup first w1", "setup second w1", "p setup of w1", "async setup of w1", "q setup of w1"]
    assert agent.story() == order
    assert agent.do("teardown") == {"failed": []}
    order = ["q teardown of w1", "async teardown", "p teardown of w1", "teardown second", "teardown first"]
    assert agent.story() == order
    assert agent.do("teardown") == {"failed": []}
    assert agent.story() == []
    assert agent.hang_up() == 0
    assert agent.output == ""


def test_a_failure_in_setup_is_told_and_does_not_stop_the_rest(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("def nannyd_setup(nanny):\n    1 / 0\n")
    agent = launch_agent()
    agent.specify(
        preload=[str(tmp_path / "bad.py"), "no.such.module"],
        plugins=[
            {"name": "r", "target": "plugins:Raising", "kwargs": {"method": "setup"}},
            {"name": "p", "target": "plugins:Plain", "kwargs": {}},
        ],
    )
    answer = agent.do("setup", again=False)
    assert answer["plugins"] == [None, "p"]
    assert [(error["where"], error["type"]) for error in answer["failed"]] == [
        (f"preload {tmp_path}/bad.py", "ZeroDivisionError"),
        ("preload no.such.module", "ModuleNotFoundError"),
        ("plugin r", "ValueError"),
    ]
    assert "1 / 0" in answer["failed"][0]["traceback"]
    assert str(Path(wire.__file__).parent.parent) not in answer["failed"][0]["traceback"]
    agent.story()
    assert agent.do("teardown") == {"failed": []}
    assert agent.story() == ["plain teardown of w1"]


def test_failures_of_teardown_are_told_and_do_not_stop_the_rest(agent: Agent) -> None:
    agent.add("plugins:Plain", "p")
    agent.add("plugins:Raising", "r", method="teardown")
    agent.add("plugins:Raising", "s", method="teardown", kind="SystemExit")
    agent.story()
    (first, second) = agent.do("teardown")["failed"]
    assert (first["where"], first["type"], second["where"]) == ("plugin s", "SystemExit", "plugin r")
    assert agent.story() == ["plain teardown of w1"]


def test_blocked_teardowns_leave_time_for_the_others(agent: Agent) -> None:
    agent.add("plugins:Plain", "p")
    agent.add("plugins:Blocking", "b", method="teardown")
    agent.add("plugins:Blocking", "c", method="teardown", is_async=True)
    agent.story()
    failed = agent.do("teardown", timeout=3.0)["failed"]
    assert [(error["where"], error["type"]) for error in failed] == [
        ("plugin c", "TimeoutError"),
        ("plugin b", "TimeoutError"),
    ]
    told = agent.story()
    assert "plain teardown of w1" in told
    assert "is not to be cancelled" in told


def test_teardown_during_setup_waits_for_what_is_under_way_and_lets_nothing_else_begin(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    os.mkfifo(mood := tmp_path / "mood")
    notes = str(tmp_path / "notes")
    kwargs = {"path": notes, "label": "one", "mood": str(mood)}
    agent = launch_agent()
    agent.specify(
        plugins=[
            {"name": "one", "target": "manners:Moody", "kwargs": kwargs},
            {"name": "two", "target": "manners:Noting", "kwargs": {"path": notes, "label": "two"}},
        ]
    )
    setup = agent.request("setup", again=False)
    eventually(lambda: read_lines(Path(notes)), "the setup is under way")
    teardown = agent.request("teardown")
    agent.do("ping")
    mood.write_text("good")
    assert agent.answer(setup) == {"failed": [], "plugins": ["one", None]}
    assert agent.answer(teardown) == {"failed": []}
    assert read_lines(Path(notes)) == ["one is in a mood", "one setup w1 4242", "one teardown"]


def test_many_large_failures_fit_one_line(launch_agent: Callable[..., Agent]) -> None:
    agent = launch_agent()
    kwargs = {"method": "setup", "size": 1 << 20}
    plugins = [{"name": f"r{n}", "target": "plugins:Raising", "kwargs": kwargs} for n in range(30)]
    agent.specify(plugins=plugins)
    failed = agent.do("setup", again=False)["failed"]
    assert [error["where"] for error in failed] == [f"plugin r{n}" for n in range(30)]
    assert all(error["message"].startswith("it is broken") for error in failed)


# --- plugin_add and plugin_remove -------------------------------------------------------------------------


def test_plugin_is_named_by_who_adds_it_else_by_itself_else_by_its_class(agent: Agent) -> None:
    assert agent.add("plugins:Async", "mine")["name"] == "mine"
    assert agent.add("plugins:Async")["name"] == "the-async-one"
    assert [agent.add("plugins:Plain")["name"] for _ in range(3)] == ["Plain-1", "Plain-2", "Plain-3"]
    agent.do("plugin_remove", name="Plain-2")
    assert agent.add("plugins:Plain")["name"] == "Plain-2"


def test_same_name_replaces_and_tears_down_first(agent: Agent) -> None:
    agent.add("plugins:Plain", "p", label="old")
    agent.add("plugins:Plain", "p", label="new")
    agent.do("plugin_remove", name="p")
    assert agent.story() == ["old setup of w1", "old teardown of w1", "new setup of w1", "new teardown of w1"]


def test_one_that_replaces_another_comes_last(agent: Agent) -> None:
    agent.add("plugins:Plain", "p", label="old")
    agent.add("plugins:Plain", "q", label="q")
    agent.add("plugins:Plain", "p", label="new")
    agent.story()
    assert agent.do("teardown") == {"failed": []}
    assert agent.story() == ["new teardown of w1", "q teardown of w1"]


def test_what_cannot_be_made_does_not_replace(agent: Agent) -> None:
    agent.add("plugins:Plain", "p")
    with pytest.raises(AgentError):
        agent.add("plugins:Raising", "p", method="__init__")
    assert agent.story() == ["plain setup of w1"]
    agent.do("plugin_remove", name="p")


def test_old_one_that_fails_to_go_is_told_of_and_replaced(agent: Agent) -> None:
    agent.add("plugins:Raising", "p", method="teardown")
    agent.add("plugins:Plain", "p")
    (said,) = agent.said
    assert (said["say"], said["error"]["where"], said["error"]["type"]) == ("error", "plugin p", "ValueError")
    assert agent.story()[-1] == "plain setup of w1"


def test_restart_is_wanted_when_added_but_not_when_set_up_again(agent: Agent) -> None:
    request = {"target": "plugins:Plain", "name": "p"}
    assert agent.do("plugin_add", **request, kwargs={"restart": True}, again=False)["restart"] is True
    assert agent.do("plugin_add", **request, kwargs={"restart": True}, again=True)["restart"] is False
    assert agent.do("plugin_add", **request, kwargs={}, again=False)["restart"] is False


def test_duck_typed_plugin_works_with_a_warning(agent: Agent) -> None:
    agent.add("plugins:Duck")
    message = "plugin Duck-1: plugins:Duck does not inherit from nannyd.agent.NannyPlugin, as it should"
    assert agent.said == [{"say": "deprecated", "message": message}]
    assert agent.story() == ["duck setup of w1"]
    agent.do("plugin_remove", name="Duck-1")


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("plugins:Nothing", "TypeError", "plugin 'plugins:Nothing': has neither setup() nor teardown()"),
        ("plugins:Missing", "AttributeError", "plugin 'plugins:Missing': module 'plugins' has no attribute"),
        ("plugins:STORY", "TypeError", "plugin 'plugins:STORY': is no class, but"),
        ("missing:Plugin", "ModuleNotFoundError", "plugin 'missing:Plugin': No module named 'missing' for /"),
        (
            "nothing",
            "ValueError",
            "plugin 'nothing': is neither of the form 'package.module:Class' nor an entry",
        ),
    ],
)
def test_what_is_no_plugin_is_refused(agent: Agent, target: str, kind: str, message: str) -> None:
    with pytest.raises(AgentError) as caught:
        agent.add(target)
    assert (caught.value["where"], caught.value["type"]) == (f"plugin {target}", kind)
    assert caught.value["message"].startswith(message)
    assert agent.do("ping") == {}


@pytest.mark.parametrize("method", ["__init__", "setup"])
@pytest.mark.parametrize("kind", ["ValueError", "SystemExit", "Rude"])
def test_plugin_that_raises_is_answered_with_the_error_and_not_kept(
    agent: Agent, method: str, kind: str
) -> None:
    with pytest.raises(AgentError) as caught:
        agent.add("plugins:Raising", "r", method=method, kind=kind)
    expected = {"Rude": ("plugins._Rude", "(its __str__ fails)")}.get(kind, (kind, "it is broken"))
    assert (caught.value["type"], caught.value["message"]) == expected
    assert "plugins.py" in caught.value["traceback"]
    assert "in _raise" in caught.value["traceback"]
    with pytest.raises(AgentError) as caught:
        agent.do("plugin_remove", name="r")
    assert (caught.value["type"], caught.value["where"]) == ("KeyError", "plugin r")


def test_removal_that_raises_is_answered_with_the_error_and_done(agent: Agent) -> None:
    agent.add("plugins:Raising", "r", method="teardown")
    for kind in ("ValueError", "KeyError"):
        with pytest.raises(AgentError) as caught:
            agent.do("plugin_remove", name="r")
        assert caught.value["type"] == kind
    assert agent.add("plugins:Raising", method="") == {"name": "Raising-1", "restart": False}
    with pytest.raises(AgentError):
        agent.add("plugins:Raising", method="setup")
    assert agent.add("plugins:Raising", method="") == {"name": "Raising-2", "restart": False}


@pytest.mark.parametrize("is_async", [False, True])
def test_plugin_that_blocks_holds_up_nobody(agent: Agent, *, is_async: bool) -> None:
    kwargs = {"method": "setup", "is_async": is_async}
    number = agent.request("plugin_add", name="b", target="plugins:Blocking", kwargs=kwargs, again=False)
    agent.add("plugins:Plain", "p")
    assert agent.call("plugins:add", 1, 2) == 3
    agent.do("plugin_remove", name="p")
    assert not agent.is_answered(number)


@pytest.mark.parametrize("is_async", [False, True])
def test_plugin_that_blocks_is_answered_at_its_deadline_with_where_it_is(
    agent: Agent, *, is_async: bool
) -> None:
    kwargs = {"method": "setup", "is_async": is_async}
    request = {"name": "b", "target": "plugins:Blocking", "kwargs": kwargs, "again": False}
    agent.call("plugins:add", 1)  # the deadline is for the import, too
    with pytest.raises(AgentError) as caught:
        agent.do("plugin_add", **request, timeout=1.0)
    assert caught.value["type"] == "TimeoutError"
    assert re.fullmatch(r"did not end within (1|0\.\d+) s", caught.value["message"])
    assert ("_stubborn" if is_async else "_block") in caught.value["traceback"]
    assert "work.py" not in caught.value["traceback"]
    assert agent.do("teardown", timeout=5.0) == {"failed": []}


def test_plugin_that_blocks_when_it_is_looked_at_holds_up_nobody(agent: Agent) -> None:
    agent.call("plugins:add", 1)  # the deadline is for the import, too
    with pytest.raises(AgentError, match="in __getattribute__"):
        agent.do("plugin_add", name=None, target="plugins:Awkward", kwargs={}, again=False, timeout=1.0)
    assert agent.do("ping") == {}


def test_import_that_blocks_is_answered_at_its_deadline(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import threading\nthreading.Event().wait()\n")
    agent.call("plugins:extend_path", str(tmp_path))
    with pytest.raises(AgentError) as caught:
        agent.do("plugin_add", name="e", target="endless:P", kwargs={}, again=False, timeout=1.0)
    assert "endless.py" in caught.value["traceback"]
    assert agent.do("ping") == {}


def test_adding_and_removing_one_name_at_once_is_done_in_order(agent: Agent) -> None:
    numbers = []
    for label in "abc":
        add = {"name": "p", "target": "plugins:Plain", "kwargs": {"label": label}, "again": False}
        numbers.append(agent.request("plugin_add", **add))
        agent.answer(numbers[-1])
        numbers.append(agent.request("plugin_remove", name="p"))
    for number in numbers[1::2]:
        assert agent.answer(number) == {}
    told = agent.story()
    assert told == [f"{label} {what} of w1" for label in "abc" for what in ("setup", "teardown")]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_overlaps_each_plugin_lives_one_life_after_the_other(agent: Agent, seed: int) -> None:
    dice = random.Random(seed)
    numbers = []
    for label in range(60):
        name = dice.choice("abc")
        kwargs = {
            "label": f"{name}{label}",
            "pause": dice.choice([0, 0, 0.002, 0.01]),
            "fails": dice.choice(["", "", "", "setup", "teardown", "hook"]),
            "is_async": dice.random() < 0.5,
        }
        target = "plugins:Sleepy"
        numbers.append(agent.request("plugin_add", name=name, target=target, kwargs=kwargs, again=False))
        if dice.random() < 0.5:
            numbers.append(agent.request("plugin_remove", name=dice.choice("abc")))
        if dice.random() < 0.5:
            agent.tell("worker_exiting", reason="x")
    agent.until(lambda: all(agent.is_answered(number) for number in numbers))
    agent.do("teardown")
    told = agent.story()
    for name in "abc":
        lines = [line.split(" ", 1) for line in told if line.startswith(name)]
        letters = {"setup": "S", "teardown": "T", "hook": "H"}
        story = "".join(
            {"begins": letter, "ends": letter.lower(), "fails": "!"}[end]
            for _, line in lines
            for what, end in [line.split()]
            for letter in [letters[what]]
        )
        assert re.fullmatch("(S!|Ss(Hh|H!)*T[t!])*", story), story
        assert all(len(set(labels)) == 1 for labels in _lives(lines))
    eventually(lambda: agent.call("plugins:hosted") == 0, "no plugin is left")


def _lives(lines: list[list[str]]) -> list[list[str]]:
    """Return, for each life that begins with a setup, the labels of all its lines."""
    found: list[list[str]] = []
    for label, what in lines:
        if what == "setup begins":
            found.append([])
        found[-1].append(label)
    return found


def test_thousand_crashing_plugins_leave_nothing_behind(agent: Agent) -> None:
    def crash(number: int) -> None:
        method = ("__init__", "setup")[number % 2]
        kind = ("ValueError", "SystemExit", "Rude")[number % 3]
        with pytest.raises(AgentError):
            agent.add("plugins:Raising", f"r{number}" if number % 5 else None, method=method, kind=kind)

    for number in range(100):  # whatever is allocated once
        crash(number)
    agent.story()
    before = descriptors_of(agent.pid)
    memory = int(status_of(agent.pid)["RssAnon"].split()[0])
    for number in range(1000):
        crash(number)
    eventually(lambda: agent.threads() == [], "no thread is left")
    assert descriptors_of(agent.pid) == before
    eventually(lambda: agent.call("plugins:hosted") == 0, "no plugin is left")
    assert len(agent.story()) == 500
    assert int(status_of(agent.pid)["RssAnon"].split()[0]) - memory < 2048
    assert agent.output == ""


def test_entry_points_are_available_by_name_and_not_set_up_by_themselves(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    package = tmp_path / "site" / "shop-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[nannyd.plugins]\nshop-plugin = plugins:Plain\n")
    agent = launch_agent(environ={"PYTHONPATH": str(tmp_path / "site")})
    agent.specify()
    assert agent.do("setup", again=False) == {"failed": [], "plugins": []}
    assert agent.add("shop-plugin", label="shop") == {"name": "Plain-1", "restart": False}
    assert agent.story() == ["shop setup of w1"]


def test_entry_points_can_be_switched_off(launch_agent: Callable[..., Agent]) -> None:
    agent = launch_agent()
    agent.specify(entry_points=False)
    with pytest.raises(AgentError, match=r"plugin 'x': is not of the form 'package\.module:Class'"):
        agent.add("x")


# --- the process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["plugins:Plain", "plugins:Leaking", "plugins:LoopBlocking"])
def test_end_of_the_channel_is_the_end_at_once(agent: Agent, target: str) -> None:
    agent.request("plugin_add", name="p", target=target, kwargs={}, again=False)
    if target == "plugins:LoopBlocking":
        agent.until(lambda: agent.asked)
    else:
        agent.do("ping")
    assert agent.hang_up() == 0
    assert agent.output == ""


def test_exit_where_nobody_catches_it_is_the_end_whatever_was_leaked(agent: Agent) -> None:
    agent.add("plugins:ExitingLater")
    agent.tell("worker_started", pid=9)
    assert agent.process.wait(PATIENCE) == 1
    assert agent.output.endswith("SystemExit: 3\n")


def test_forked_child_does_not_hold_the_channel(agent: Agent, tmp_path: Path) -> None:
    agent.call("plugins:fork", str(tmp_path / "go"))
    (child,) = agent.children()
    assert descriptors_of(child).keys() < descriptors_of(agent.pid).keys()
    assert wire.CHANNEL_FD not in descriptors_of(child)
    (tmp_path / "go").touch()
    eventually(lambda: not lives(child), "the child ends")


def test_descriptor_is_not_inherited_by_programs(agent: Agent) -> None:
    assert agent.call("subprocess:getoutput", "ls -l /proc/self/fd").count("socket:") == 0


def test_process_is_what_python_m_would_make_it(launch_agent: Callable[..., Agent], parts: str) -> None:
    agent = launch_agent()
    agent.specify(environ={"ADDED": "1"})
    found = agent.call("plugins:environment")
    assert found["argv"] == ["w1"]
    assert (found["path"][0], found["path"][-1]) == (str(WORKERS), parts)
    assert found["environ"]["ADDED"] == "1"
    assert found["cwd"] == str(WORKERS)


def test_what_is_printed_comes_at_once(agent: Agent) -> None:
    agent.call("builtins:print", "hello")
    assert agent.output == "hello\n"


def test_another_protocol_is_refused(launch_agent: Callable[..., Agent]) -> None:
    agent = launch_agent()
    agent.specify(protocol=99)
    assert agent.process.wait(PATIENCE) == 1
    assert "RuntimeError: the supervisor speaks protocol 99, but the agent in" in agent.output


@pytest.mark.parametrize("python", interpreters())
def test_agent_runs_under_every_supported_python(launch_agent: Callable[..., Agent], python: str) -> None:
    agent = launch_agent(python=python)
    agent.specify(plugins=[{"name": "p", "target": "plugins:Plain", "kwargs": {}}])
    assert agent.do("setup", again=False) == {"failed": [], "plugins": ["p"]}
    agent.add("plugins:Async")
    agent.add("plugins:Environment")
    with pytest.raises(AgentError, match="it is broken"):
        agent.add("plugins:Raising", method="setup")
    with pytest.raises(AgentError, match="_stubborn"):
        agent.do(
            "plugin_add",
            name="b",
            target="plugins:Blocking",
            kwargs={"method": "setup", "is_async": True},
            again=False,
            timeout=1.0,
        )
    assert agent.call("plugins:ask", "restart", {}) is None
    assert agent.call("plugins:ask_async", "kill", {}) is None
    agent.tell("worker_started", pid=9)
    assert agent.do("teardown") == {"failed": []}
    assert "plain started 9 None None" in agent.story()
    assert agent.hang_up() == 0
    assert agent.output == ""


def test_agent_runs_in_a_venv_without_nannyd(launch_agent: Callable[..., Agent], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "nannyd").mkdir()
    (site / "nannyd" / "__init__.py").write_text("raise ImportError('another nannyd')")
    shutil.copy(WORKERS / "plugins.py", site)
    agent = launch_agent(python=str(venv / "bin" / "python"), environ={"HOME": os.environ["HOME"]})
    agent.specify()
    assert agent.add("plugins:Plain") == {"name": "Plain-1", "restart": False}
    assert agent.call("plugins:add", 1) == 1
