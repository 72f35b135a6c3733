"""The agent of a real instance: preloads, plugins and functions, beside a worker that does not notice."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import idl
import pytest
from harness import (
    Caller,
    Host,
    descriptors_of,
    environ_of,
    eventually,
    lives,
    read_lines,
    send_signal,
    status_of,
)
from varlink.scanner import Interface

from nannyd.config.explain import toml
from nannyd.core.errors import ExitCode
from nannyd.supervisor import control

NANNY = Interface((Path(control.__file__).parent / "io.nannyd.Nanny.varlink").read_text())
NEXT = "[restart]\ndelay = 0\n"


def plugin(caller: Caller, target: str, name: str | None = None, **kwargs: Any) -> dict[str, Any]:
    return caller.call("PluginAdd", name=name, target=f"manners:{target}", kwargs=kwargs)


def call(caller: Caller, target: str, **parameters: Any) -> dict[str, Any]:
    return caller.call("Call", target=f"manners:{target}", **parameters)


def agent_of(caller: Caller) -> dict[str, Any]:
    status = caller.get("Status")
    assert idl.wrong(NANNY, idl.methods(NANNY)["Status"].out_type, status) == []
    found: dict[str, Any] = status["agent"]
    return found


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def test_without_anything_for_it_there_is_no_agent(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        assert agent_of(caller) == {
            "state": "inactive",
            "processId": None,
            "memory": None,
            "restarts": 0,
            "plugins": [],
        }
    assert run.stop() == 0
    assert "agent-started" not in run.events()


def test_a_function_is_called_in_the_agent_and_the_agent_goes_when_it_is_idle(nannyd: Host) -> None:
    run = nannyd("--agent.idle-timeout=0.3s", "--", "sleep", "60")
    pid = run.ready()
    with run.connect() as caller:
        assert call(caller, "add", arguments={"args": [1, 2]})["parameters"] == {"result": {"value": 3}}
        assert call(caller, "add", arguments={"kwargs": {"a": 5}})["parameters"] == {"result": {"value": 6}}
        agent = call(caller, "pid")["parameters"]["result"]["value"]
        assert agent not in (pid, run.pid)
        eventually(lambda: not lives(agent), "the agent has ended")
        eventually(lambda: agent_of(caller)["state"] == "inactive", "nannyd knows")
        assert call(caller, "pid")["parameters"]["result"]["value"] != agent
        assert caller.get("Status")["worker"]["processId"] == pid
    assert run.stop() == 0
    assert "agent-failed" not in run.events()


def test_a_function_that_fails_answers_with_its_traceback(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        failed = call(caller, "fail")
        assert failed["error"] == "io.nannyd.Nanny.CodeFailed"
        assert failed["parameters"]["type"] == "KeyError"
        assert 'raise KeyError("nothing there")' in failed["parameters"]["traceback"]
        assert call(caller, "nobody")["error"] == "io.nannyd.Nanny.CodeFailed"
        late = call(caller, "slow", timeout=0.3)
        assert late["error"] == "io.nannyd.Nanny.CodeFailed"
        assert "Timeout" in late["parameters"]["type"]
        refused = call(caller, "add", arguments={"args": {}})
        assert refused["parameters"]["parameter"] == "arguments"
    assert run.stop() == 0


def test_preloads_come_before_plugins_before_the_worker_and_go_in_reverse(nannyd: Host, notes: Path) -> None:
    preload = nannyd.home.base / "first.py"
    preload.write_text(
        "from manners import note\n"
        f"def nannyd_setup(nanny, argv): note({str(notes)!r}, f'preload setup {{argv}} {{nanny.pid}}')\n"
        f"def nannyd_teardown(nanny): note({str(notes)!r}, 'preload teardown')\n"
    )
    plugins = [
        {"class": "manners:Noting", "kwargs": {"path": str(notes), "label": it}} for it in ("one", "two")
    ]
    config = f"""
    [nanny]
    preload = ["{preload}"]
    preload-argv = ["--x"]
    plugins = {toml(plugins)}
    """
    run = nannyd("--", "sleep", "60", config=config)
    pid = run.ready()
    with run.connect() as caller:
        assert agent_of(caller)["plugins"] == ["one", "two"]
    eventually(lambda: f"two worker_started {pid}" in read_lines(notes), "both were told")
    assert run.stop() == 0
    lines = read_lines(notes)
    assert lines[:3] == ["preload setup ['--x'] None", "one setup t None", "two setup t None"]
    assert lines.index("two teardown") < lines.index("one teardown") < lines.index("preload teardown")
    records = [record["nannyd_event"] for record in run.records]
    assert records.index("agent-started") < records.index("worker-started")
    assert run.events().count("worker-started") == 1


@pytest.mark.parametrize(("how", "status"), [("fail", ExitCode.COULD_NOT_START), ("ignore", 0)])
def test_a_preload_that_fails_fails_the_start_if_it_is_to(nannyd: Host, how: str, status: int) -> None:
    config = f"[nanny]\npreload = ['no_such_module']\npreload-failure = '{how}'\n"
    run = nannyd("--", "sleep", "60", config=config)
    failed = run.wait_for("plugin-failed")
    assert "no_such_module" in failed["where"]
    assert "ModuleNotFoundError" in failed["error"]
    if how == "ignore":
        run.ready()
        assert run.stop() == status
    else:
        assert run.wait() == status
        assert "worker-started" not in run.events()
        assert "no_such_module" in run.all("finished")[0]["reason"]


def test_a_plugin_restarts_the_worker_when_added_and_changes_its_environment(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    pid = run.ready()
    with run.connect() as caller:
        added = plugin(caller, "Variable", name="var", key="ADDED", value="1")["parameters"]
        assert added == {"name": "var", "restarted": True}
        worker = caller.get("Status")["worker"]["processId"]
        assert worker != pid
        assert environ_of(worker)["ADDED"] == "1"
        explained = caller.get("Explain")
        assert "ADDED=1  # plugin var" in explained["text"]
        (entry,) = [it for it in explained["explanation"]["environment"] if it["name"] == "ADDED"]
        assert (entry["value"], entry["origin"]) == ("1", "plugin var")
        # The agent's crash does not touch the worker, and the variable outlives it.
        send_signal(agent_of(caller)["processId"], signal.SIGKILL)
        run.wait_for("agent-failed")
        run.wait_for("agent-started")
        eventually(lambda: agent_of(caller)["restarts"] == 1, "it is back")
        assert caller.get("Status")["worker"]["processId"] == worker
        assert environ_of(caller.get("Restart")["processId"])["ADDED"] == "1"
        assert caller.call("PluginRemove", name="var")["parameters"] == {}
        assert "ADDED" not in environ_of(caller.get("Restart")["processId"])
        assert caller.call("PluginRemove", name="var")["error"] == "io.nannyd.Nanny.NoSuchPlugin"
    assert run.stop() == 0


def test_a_plugin_hears_of_the_worker(nannyd: Host, notes: Path) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    pid = run.ready()
    with run.connect() as caller:
        assert plugin(caller, "Noting", path=str(notes))["parameters"]["restarted"] is False
        send_signal(pid, signal.SIGKILL)
        second = run.ready()
        caller.get("Restart", reason="again")
        third = run.ready()
        told = [
            f"noting worker_exited {pid} signal",
            f"noting worker_started {second}",
            "noting worker_exiting Restart: again",
            f"noting worker_exited {second} success",
            f"noting worker_started {third}",
        ]
        eventually(lambda: len([it for it in read_lines(notes) if "worker_" in it]) == len(told), "all of it")
        assert [it for it in read_lines(notes) if "worker_" in it] == told
    assert run.stop() == 0


def test_plugins_that_fail_or_crash_or_hang_hurt_only_themselves(nannyd: Host, notes: Path) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    pid = run.ready()
    with run.connect() as caller:
        broken = plugin(caller, "Broken")
        assert (broken["error"], broken["parameters"]["type"]) == ("io.nannyd.Nanny.CodeFailed", "ValueError")
        assert "not today" in broken["parameters"]["traceback"]
        plugin(caller, "Noting", path=str(notes))
        first = agent_of(caller)["processId"]
        assert call(caller, "die")["error"] == "io.nannyd.Nanny.AgentFailed"
        eventually(lambda: agent_of(caller)["state"] == "running", "it is back")
        assert agent_of(caller)["processId"] != first
        eventually(lambda: len([it for it in read_lines(notes) if "setup" in it]) == 2, "set up again")
        assert caller.get("Status")["worker"]["processId"] == pid
        assert agent_of(caller)["plugins"] == ["noting"]
    assert run.stop() == 0


def test_an_agent_that_hangs_is_killed_and_comes_back_with_its_plugins(nannyd: Host, notes: Path) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT, systemd=True)
    pid = run.ready()
    with run.connect() as caller:
        plugin(caller, "Noting", path=str(notes))
        hung = agent_of(caller)["processId"]
        assert call(caller, "block", timeout=0.2)["error"] == "io.nannyd.Nanny.AgentFailed"
        assert "was killed: it does not answer" in run.wait_for("agent-failed")["detail"]
        eventually(lambda: agent_of(caller)["plugins"] == ["noting"], "its plugin is back")
        eventually(lambda: agent_of(caller)["state"] == "running", "it is back")
        assert agent_of(caller)["processId"] != hung
        assert caller.get("Status")["worker"]["processId"] == pid
    run.systemd.wait_for("STATUS", "the agent has failed")
    assert run.stop() == 0


def test_a_thousand_plugins_that_cannot_be_set_up_leave_nothing_behind(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    run.ready()
    with run.connect() as caller:
        for _ in range(50):
            assert plugin(caller, "Broken")["parameters"]["type"] == "ValueError"
        pids = run.pid, agent_of(caller)["processId"]

        def held() -> list[tuple[int, int]]:
            return [(len(descriptors_of(pid)), threads_of(pid)) for pid in pids]

        # A thread that has told its outcome lives on for a moment.
        eventually(lambda: [threads for _, threads in held()] == [1, 2], "the threads of plugins have ended")
        before, sizes = held(), list(map(rss_of, pids))
        for _ in range(950):
            assert plugin(caller, "Broken")["parameters"]["type"] == "ValueError"
        eventually(lambda: held() == before, "all was given back")
        assert all(rss_of(pid) - size < 1 << 20 for pid, size in zip(pids, sizes, strict=True))
        assert agent_of(caller)["plugins"] == []
    assert run.stop() == 0


def threads_of(pid: int) -> int:
    return int(status_of(pid)["Threads"])


def rss_of(pid: int) -> int:
    """Return bytes."""
    return int(status_of(pid)["VmRSS"].split()[0]) * 1024


def test_the_plugins_that_come_with_nannyd(nannyd: Host, notes: Path, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "uploaded.py").write_text("VALUE = 'it is here'\n")
    program = "import os, time, uploaded; open(os.environ['OUT'], 'w').write(uploaded.VALUE); time.sleep(60)"
    run = nannyd(
        "--", sys.executable, "-c", program, config="[restart]\ndelay = '100ms'\nstart-limit-burst = 0\n"
    )
    run.wait_for("worker-failed")  # it lacks a module and a variable
    with run.connect() as caller:
        for target, kwargs in (
            ("UploadDirectory", {"path": str(modules), "restart": False}),
            ("Environ", {"environ": {"OUT": str(tmp_path / "out")}}),
            ("OnExit", {"command": ["sh", "-c", f"echo $RESULT $WHO $EXIT_SIGNAL >> {notes}"]}),
        ):
            answer = caller.call("PluginAdd", target=f"nannyd.agent.plugins:{target}", kwargs=kwargs)
            assert "error" not in answer, answer
        eventually(lambda: read_lines(tmp_path / "out") == ["it is here"], "the worker has both")
        send_signal(caller.get("Status")["worker"]["processId"], signal.SIGKILL)
        # After what the worker's first ends, of which it was also told.
        eventually(
            lambda: any(it.startswith("signal outside") for it in read_lines(notes)), "somebody was told"
        )
        explained = caller.get("Explain")["text"]
        assert f"OUT={tmp_path}/out  # plugin Environ" in explained
        assert "PYTHONPATH=" in explained
    assert run.stop() == 0
    assert list(nannyd.home.base.rglob("upload-*")) == []


def test_variables_that_nannyd_sets_itself_are_not_for_plugins(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    run.ready()
    with run.connect() as caller:
        for name in ("NANNYD_INSTANCE", "NOTIFY_SOCKET", "FREE"):
            assert "error" not in call(caller, "set_variable", arguments={"kwargs": {"name": name}})
        environ = environ_of(caller.get("Restart")["processId"])
        assert environ["FREE"] == "mine"
        assert environ["NANNYD_INSTANCE"] == "t"
        assert environ["NOTIFY_SOCKET"] != "mine"
        assert "NANNYD_INSTANCE=mine" not in caller.get("Explain")["text"]
    assert run.stop() == 0


def test_a_function_may_restart_the_worker(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    pid = run.ready()
    with run.connect() as caller:
        answer = call(caller, "restart_worker")
        assert "error" not in answer, answer
        assert caller.get("Status")["worker"]["processId"] != pid
    assert run.stop() == 0


def test_a_second_sigint_does_not_wait_for_a_teardown(nannyd: Host) -> None:
    preload = nannyd.home.base / "stubborn.py"
    preload.write_text(
        "import time\ndef nannyd_setup(nanny): pass\ndef nannyd_teardown(nanny): time.sleep(3600)\n"
    )
    run = nannyd.rude(
        vices="--ignore-sigterm", config=f"[worker]\nready='notify'\n[nanny]\npreload = ['{preload}']\n"
    )
    run.ready()
    run.signal(signal.SIGINT)
    run.wait_for("stop-requested")
    run.insist(signal.SIGINT)
    assert run.wait() == 0


def test_a_crash_of_nannyd_leaves_no_agent(nannyd: Host, notes: Path) -> None:
    run = nannyd("--", "sleep", "60", config=NEXT)
    run.ready()
    with run.connect() as caller:
        plugin(caller, "Noting", path=str(notes))
        agent = agent_of(caller)["processId"]
    run.crash()
    eventually(lambda: not lives(agent), "the agent ends with its supervisor")
    again = nannyd("--", "sleep", "60")  # and ends what is left of the worker
    again.ready()
    assert again.stop() == 0


def test_the_interpreter_is_the_workers(nannyd: Host) -> None:
    run = nannyd(f"--worker.python={sys.executable}", "--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        agent = call(caller, "pid")["parameters"]["result"]["value"]
        assert Path(f"/proc/{agent}/exe").resolve() == Path(sys.executable).resolve()
    assert run.stop() == 0
