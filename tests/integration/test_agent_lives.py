"""One life of the agent after the other: what was to be set up in one, and what is in the next."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import Caller, Host, eventually, read_lines, send_signal

from nannyd.config.explain import toml

if TYPE_CHECKING:
    from pathlib import Path


def noting(notes: Path, label: str, mood: Path | None = None) -> dict[str, Any]:
    """Return a configured plugin, with or without moods."""
    if mood is None:
        return {"class": "manners:Noting", "kwargs": {"path": str(notes), "label": label}}
    return {"class": "manners:Moody", "kwargs": {"path": str(notes), "label": label, "mood": str(mood)}}


def config_of(*plugins: dict[str, Any], failure: str = "fail") -> str:
    return f'[nanny]\nplugins = {toml(list(plugins))}\npreload-failure = "{failure}"\n'


def agent_of(caller: Caller) -> dict[str, Any]:
    found: dict[str, Any] = caller.get("Status")["agent"]
    return found


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    path = tmp_path / "mood"
    path.write_text("good")
    return path


def test_a_failed_plugin_does_not_take_the_place_of_the_next(nannyd: Host, notes: Path, mood: Path) -> None:
    mood.write_text("raise")
    config = config_of(noting(notes, "one", mood), noting(notes, "two"), failure="ignore")
    run = nannyd("--", "sleep", "60", config=config)
    run.ready()
    with run.connect() as caller:
        assert agent_of(caller)["plugins"] == ["two"]
        send_signal(agent_of(caller)["processId"], signal.SIGKILL)
        eventually(lambda: sum(it.startswith("two setup") for it in read_lines(notes)) == 2, "the second")
        assert read_lines(notes).count("one is in a mood") == 1
    assert run.stop() == 0
    assert read_lines(notes)[-1] == "two teardown"


def test_a_plugin_that_ends_the_agent_while_it_is_set_up_is_tried_again(
    nannyd: Host, notes: Path, mood: Path
) -> None:
    mood.write_text("die")
    config = config_of(noting(notes, "one"), noting(notes, "two", mood), failure="ignore")
    run = nannyd("--", "sleep", "60", config=config)
    run.ready()
    run.wait_for("agent-failed")
    mood.write_text("good")
    with run.connect() as caller:
        eventually(lambda: agent_of(caller)["plugins"] == ["one", "two"], "both are set up")
    assert run.stop() == 0
    assert read_lines(notes)[-2:] == ["two teardown", "one teardown"]


def test_each_end_of_the_agent_is_told_once_and_answered_by_one_restart(
    nannyd: Host, notes: Path, mood: Path
) -> None:
    run = nannyd("--", "sleep", "60", config=config_of(noting(notes, "one"), noting(notes, "two", mood)))
    run.ready()
    with run.connect() as caller:
        mood.write_text("die die good")
        send_signal(agent_of(caller)["processId"], signal.SIGKILL)
        eventually(lambda: sum(it.startswith("two setup") for it in read_lines(notes)) == 2, "it is set up")
        assert agent_of(caller)["restarts"] == 3
    assert run.stop() == 0
    told = [record["detail"] for record in run.all("agent-failed")]
    assert len(told) == len(set(told)) == 3


def test_a_stop_during_setup_takes_down_what_was_set_up(nannyd: Host, notes: Path, mood: Path) -> None:
    mood.unlink()
    os.mkfifo(mood)
    config = config_of(noting(notes, "one"), noting(notes, "two", mood), noting(notes, "three"))
    run = nannyd("--", "sleep", "60", config=config)
    eventually(lambda: "two is in a mood" in read_lines(notes), "the second is being set up")
    run.signal(signal.SIGTERM)
    run.wait_for("stop-requested")
    mood.write_text("good")
    assert run.wait() == 0
    done = [it.split()[:2] for it in read_lines(notes) if "mood" not in it]
    begun = [label for label, what in done if what == "setup"]
    assert begun[:2] == ["one", "two"]
    assert [label for label, what in done if what == "teardown"] == begun[::-1]
    assert "worker-started" not in run.events()


def test_a_setup_that_never_ends_does_not_keep_others_from_their_teardown(
    nannyd: Host, notes: Path, mood: Path
) -> None:
    mood.unlink()
    os.mkfifo(mood)
    run = nannyd("--", "sleep", "60", config=config_of(noting(notes, "one"), noting(notes, "two", mood)))
    eventually(lambda: "two is in a mood" in read_lines(notes), "the second is being set up")
    assert run.stop() == 0
    assert read_lines(notes) == ["one setup t None", "two is in a mood", "one teardown"]
    assert run.all("agent-failed") == []


def test_a_hook_that_blocks_the_agent_is_found_out(nannyd: Host, notes: Path) -> None:
    config = config_of({"class": "manners:Blocking"}, noting(notes, "one"))
    run = nannyd("--", "sleep", "60", config=config)
    pid = run.ready()
    assert "does not answer" in run.wait_for("agent-failed")["detail"]
    run.wait_for("agent-started")
    with run.connect() as caller:
        eventually(lambda: sum(it.startswith("one setup") for it in read_lines(notes)) == 2, "set up again")
        assert caller.get("Status")["worker"]["processId"] == pid
    assert run.stop() == 0


def test_a_call_without_a_deadline_that_blocks_the_agent_ends(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        failed = caller.call("Call", target="manners:block")
        assert failed["error"] == "io.nannyd.Nanny.AgentFailed"
        assert "does not answer" in failed["parameters"]["reason"]
    assert run.stop() == 0


def test_an_agent_that_ends_while_it_is_pinged_was_not_killed(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    pid = run.ready()
    with run.connect() as caller:
        failed = caller.call("Call", target="manners:die_when_pinged", timeout=0.1)
        assert failed["error"] == "io.nannyd.Nanny.AgentFailed"
        assert "exited with status 7" in run.wait_for("agent-failed")["detail"]
        assert caller.get("Status")["worker"]["processId"] == pid
    assert run.stop() == 0


def test_an_agent_that_is_slow_to_come_up_has_the_time_of_a_call_for_the_call(
    nannyd: Host, tmp_path: Path
) -> None:
    """As on a busy machine: it is the interpreter that takes longer than the call may."""
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 4\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    run = nannyd(f"--worker.python={slow}", "--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        answer = caller.get("Call", target="manners:add", arguments={"args": [1]}, timeout=1.0)
        assert answer == {"result": {"value": 2}}
    assert run.stop() == 0


# --- Variables --------------------------------------------------------------------------------------------


def variables(caller: Caller) -> dict[str, tuple[str, str]]:
    """Return what plugins have set, as it is explained: value and origin."""
    environment = caller.get("Explain")["explanation"]["environment"]
    return {
        it["name"]: (it["value"], it["origin"]) for it in environment if it["origin"].startswith("plugin ")
    }


def test_a_variable_that_two_plugins_set_is_that_of_the_other_when_one_is_gone(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config="[restart]\ndelay = 0\n")
    run.ready()
    with run.connect() as caller:

        def add(name: str) -> None:
            kwargs = {"key": "LEVEL", "value": f"of {name}"}
            caller.get("PluginAdd", name=name, target="manners:Variable", kwargs=kwargs)

        for name in ("a", "b", "c"):
            add(name)
        assert variables(caller) == {"LEVEL": ("of c", "plugin c")}
        caller.get("PluginRemove", name="a")
        assert variables(caller) == {"LEVEL": ("of c", "plugin c")}
        caller.get("PluginRemove", name="c")
        assert variables(caller) == {"LEVEL": ("of b", "plugin b")}
        seen = caller.get("Call", target="manners:seen")["result"]["value"]
        assert seen == {"LEVEL": "of b"}
        caller.get("PluginRemove", name="b")
        assert variables(caller) == {}
    assert run.stop() == 0


def test_a_replaced_plugin_takes_back_what_it_had_set_before_a_crash_of_the_agent(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config="[restart]\ndelay = 0\n")
    pid = run.ready()
    with run.connect() as caller:
        caller.get("PluginAdd", name="p", target="manners:Learning")
        send_signal(pid, signal.SIGKILL)
        eventually(lambda: variables(caller) == {"LEARNT": ("much", "plugin p")}, "it has set it")
        send_signal(agent_of(caller)["processId"], signal.SIGKILL)
        run.wait_for("agent-failed")
        eventually(lambda: agent_of(caller)["state"] == "running", "it is back")
        assert variables(caller) == {"LEARNT": ("much", "plugin p")}
        kwargs = {"key": "OTHER", "value": "1"}
        caller.get("PluginAdd", name="p", target="manners:Variable", kwargs=kwargs)
        assert variables(caller) == {"OTHER": ("1", "plugin p")}
        assert caller.get("Call", target="manners:seen")["result"]["value"] == {"OTHER": "1"}
    assert run.stop() == 0
