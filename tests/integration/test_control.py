"""The methods of io.nannyd.Nanny and io.systemd.service, of a real instance."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import idl
import pytest
import varlink
from harness import PATIENCE, Caller, Host, lives, send_signal
from varlink.scanner import Interface

from nannyd.core.errors import ExitCode
from nannyd.supervisor import control
from nannyd.supervisor.control import Control
from nannyd.supervisor.plugins import Plugins
from nannyd.supervisor.run import Runs

FILES = Path(control.__file__).parent
NANNY = Interface((FILES / "io.nannyd.Nanny.varlink").read_text())
SERVICE = Interface((FILES / "io.systemd.service.varlink").read_text())
NOTIFY = "[worker]\nready = 'notify'\n[restart]\ndelay = 0\n"
QUICK = "[restart]\ndelay = 0\n"


def checked(caller: Caller, method: str, **parameters: Any) -> dict[str, Any]:
    """Call, and judge the reply or the error by the description."""
    reply = caller.call(method, **parameters)
    if "error" not in reply:
        assert idl.wrong(NANNY, idl.methods(NANNY)[method].out_type, reply["parameters"]) == []
        return {"ok": reply["parameters"]}
    interface, _, name = reply["error"].rpartition(".")
    if interface == NANNY.name:
        assert idl.wrong(NANNY, idl.errors(NANNY)[name].type, reply["parameters"]) == []
    return {name: reply["parameters"]}


# --- File and code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["_nanny", "_service"])
def test_the_description_and_the_code_have_the_same_methods_and_parameters(which: str) -> None:
    bare = Control.__new__(Control)
    bare._plugins = Plugins.__new__(Plugins)
    bare._runs = Runs.__new__(Runs)
    made = getattr(Control, which)(bare)
    interface = {"_nanny": NANNY, "_service": SERVICE}[which]
    assert {
        name: {key: kind.value for key, kind in method.takes.items()} for name, method in made.items()
    } == {
        name: {key: idl.word(type_) for key, type_ in method.in_type.fields.items()}
        for name, method in idl.methods(interface).items()
    }


def test_the_description_has_the_errors_that_the_code_raises_and_no_others() -> None:
    sources = "".join(
        (FILES / name).read_text() for name in ("control.py", "waits.py", "plugins.py", "run.py")
    )
    assert set(re.findall(r'\berror\(\s*"(\w+)"', sources)) == set(idl.errors(NANNY))


def test_every_description_is_served_as_it_stands_in_its_file(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        served = caller.get("org.varlink.service.GetInfo")["interfaces"]
        assert served == ["org.varlink.service", "io.nannyd.Nanny", "io.systemd.service"]
        for name in served:
            described = caller.get("org.varlink.service.GetInterfaceDescription", interface=name)
            assert described["description"] == (FILES / f"{name}.varlink").read_text()
    assert run.stop() == 0


def test_the_python_package_varlink_is_a_client(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    pid = run.ready()
    with varlink.Client(f"unix:{nannyd.home.run / 'control'}") as client:
        client.get_interfaces()
        assert client.info["product"] == "nannyd@t"
        with client.open("io.nannyd.Nanny") as nanny, client.open("io.nannyd.Nanny") as watching:
            assert nanny.Status()["worker"]["processId"] == pid
            events = watching.Monitor(_more=True)
            assert next(events)["event"]["event"] == "monitoring"
            assert nanny.Restart(timeout=PATIENCE, reason="from Python")["processId"] != pid
            assert next(events)["event"]["event"] == "called"
            with pytest.raises(varlink.VarlinkError) as caught:
                nanny.Kill(timeout=-1.0)
            assert caught.value.error() == "io.nannyd.Nanny.InvalidArgument"
    assert run.stop() == 0


# --- Looking ------------------------------------------------------------------------------------------


def test_status_says_how_the_worker_is(nannyd: Host) -> None:
    run = nannyd.rude(vices="--eat 10M", config=f"{NOTIFY}[memory]\nlimit = '1GiB'\n")
    pid = run.ready()
    with run.connect() as caller:
        status = checked(caller, "Status")["ok"]
        assert (status["instance"], status["processId"], status["worker"]["processId"]) == ("t", run.pid, pid)
        assert (status["state"], status["activeState"], status["goal"]) == ("running", "active", "up")
        assert status["memory"]["limit"] == 1 << 30
        assert status["memory"]["terminate"] == int(0.95 * (1 << 30))
        assert 0 < status["memory"]["workingSet"] < 1 << 30
        assert status["lastExit"] is None
        send_signal(pid, signal.SIGKILL)
        run.ready()
        status = checked(caller, "Status")["ok"]
        assert (status["generation"], status["restarts"], status["restartsByResult"]) == (2, 1, {"signal": 1})
        assert (status["lastExit"]["result"], status["lastExit"]["signal"]) == ("signal", "SIGKILL")
        assert status["lastExit"]["who"] == "outside"
        ago = time.time_ns() // 1000 - status["lastExit"]["at"]
        assert 0 <= ago < PATIENCE * 1e6
    assert run.stop() == 0


def test_why_has_the_last_exit_and_what_led_to_it(nannyd: Host) -> None:
    run = nannyd("--restart.delay=30s", "--", "sh", "-c", "exit 7")
    run.wait_for("restarting")
    with run.connect() as caller:
        why = checked(caller, "Why")["ok"]
    assert (why["exit"]["exitStatus"], why["exit"]["result"], why["exit"]["who"]) == (
        7,
        "exit-code",
        "worker",
    )
    assert [event["event"] for event in why["events"]] == [
        "starting",
        "worker-started",
        "worker-ready",
        "worker-failed",
    ]
    assert run.stop() == 0


def test_why_leaves_the_lives_before_the_last_one_out(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--", "sleep", "60")
    for _ in range(3):
        send_signal(run.ready(), signal.SIGKILL)
    run.ready()
    with run.connect() as caller:
        why = checked(caller, "Why")["ok"]
    assert why["exit"]["generation"] == 3
    assert [it["event"] for it in why["events"]] == ["worker-started", "worker-ready", "worker-failed"]
    assert run.stop() == 0


def test_before_any_end_there_is_nothing_to_ask_why_for(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        assert checked(caller, "Why")["ok"] == {"exit": None, "events": []}
        assert checked(caller, "History")["ok"]["samples"] is not None
    assert run.stop() == 0


def test_records_come_newest_first_and_by_their_urgency(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    send_signal(run.ready(), signal.SIGKILL)
    run.ready()
    with run.connect() as caller:
        records = checked(caller, "GetLogs")["ok"]["records"]
        assert [it["event"] for it in records][:3] == ["worker-ready", "worker-started", "worker-failed"]
        assert records[-1]["event"] == "starting"
        assert [it["at"] for it in records] == sorted((it["at"] for it in records), reverse=True)
        assert checked(caller, "GetLogs", n=2)["ok"]["records"] == records[:2]
        urgent = checked(caller, "GetLogs", priority=4)["ok"]["records"]
        assert [it["event"] for it in urgent] == ["worker-failed"]
        assert checked(caller, "GetLogs", n=0)["ok"]["records"] == []
        assert "n" in checked(caller, "GetLogs", n=-1)["InvalidArgument"]["parameter"]
        assert "priority" in checked(caller, "GetLogs", priority=8)["InvalidArgument"]["parameter"]
        assert checked(caller, "GetLogs", follow=True) == {"ExpectedMore": {}}
    assert run.stop() == 0


def test_records_can_be_followed(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    pid = run.ready()
    with run.connect() as caller:
        caller.send("GetLogs", {"n": 1, "follow": True}, more=True)
        assert [it["event"] for it in caller.receive()["parameters"]["records"]] == ["worker-ready"]
        send_signal(pid, signal.SIGKILL)
        for event in ("worker-failed", "worker-started", "worker-ready"):
            reply = caller.receive()
            assert reply["continues"] is True
            assert [it["event"] for it in reply["parameters"]["records"]] == [event]
    assert run.stop() == 0


def test_monitor_tells_what_happens_as_it_happens(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    pid = run.ready()
    with run.connect() as caller, run.connect() as other:
        assert caller.call("Monitor")["error"] == "org.varlink.service.ExpectedMore"
        caller.send("Monitor", more=True)
        first = caller.receive()["parameters"]["event"]
        assert (first["event"], first["fields"]["state"]) == ("monitoring", "running")
        assert f"worker {pid} running" in first["message"]
        assert checked(other, "LogEvent", topic="deploy", message="version 3\x1b[31m") == {"ok": {}}
        heard = caller.receive()
        assert heard["continues"] is True
        event = heard["parameters"]["event"]
        assert idl.wrong(NANNY, NANNY.members["Event"], event) == []
        assert (event["event"], event["fields"]["topic"]) == ("log-event", "deploy")
        assert event["message"].startswith("deploy: version 3")
    assert run.stop() == 0


@pytest.mark.parametrize(
    ("method", "parameters"), [("Monitor", {}), ("GetLogs", {"follow": True, "n": 0, "priority": 3})]
)
def test_who_follows_hears_the_end_as_the_last_reply(
    nannyd: Host, method: str, parameters: dict[str, Any]
) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    with run.connect() as caller:
        caller.send(method, parameters, more=True)
        caller.receive()
        assert run.stop() == 0
        replies = [caller.receive()]
        while replies[-1].get("continues"):
            replies.append(caller.receive())
        last = replies[-1]["parameters"]
        assert last == {"records": []} if method == "GetLogs" else last["event"]["event"] == "finished"
        with pytest.raises(ConnectionResetError):
            caller.receive()


def test_a_monitor_that_goes_away_is_forgotten(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    for _ in range(100):  # more than there may be at a time
        with run.connect() as caller:
            caller.send("Monitor", more=True)
            assert caller.receive()["continues"]
    with run.connect() as caller:
        assert checked(caller, "LogEvent", topic="t", message="m") == {"ok": {}}
    assert run.stop() == 0


def test_who_reads_too_slowly_is_told_how_much_was_lost(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    with run.connect() as slow, run.connect() as other:
        slow.send("Monitor", more=True)
        slow.receive()
        for number in range(300):
            other.get("LogEvent", topic=str(number), message="m" * 10_000)
        heard = [slow.receive()["parameters"]["event"] for _ in range(3)]
        assert [it["fields"]["topic"] for it in heard] == ["0", "1", "2"]
        while heard[-1]["event"] != "events-lost":  # which needs no further event to be told
            heard.append(slow.receive()["parameters"]["event"])
        lost = heard[-1]["fields"]["lost"]
        assert len(heard) - 1 + lost == 300
        assert heard[-1]["message"] == f"{lost} events were lost: they were not read in time"
        other.get("LogEvent", topic="late", message="m")
        assert slow.receive()["parameters"]["event"]["fields"]["topic"] == "late"
    assert run.stop() == 0


def test_plan_and_explanation_are_those_in_force_and_secrets_are_masked(nannyd: Host) -> None:
    secret = "hush" * 3
    config = f'{QUICK}[nanny.environ]\nMY_TOKEN = "{secret}"\nPLAIN = "yes"\n'
    run = nannyd("--", "sleep", "60", config=config)
    run.ready()
    nannyd.write_config("broken")
    with run.connect() as caller:
        plan = checked(caller, "Plan")["ok"]
        assert plan["plan"]["settings"]["worker"]["command"] == ["sleep", "60"]
        assert 'command = ["sleep", "60"]' in plan["text"]
        explained = checked(caller, "Explain")["ok"]
        origin = {it["name"]: it["origin"] for it in explained["explanation"]["environment"]}
        assert origin["PLAIN"].startswith(str(nannyd.home.config / "t.toml"))
        assert secret not in str(plan) + str(explained)
        assert set(checked(caller, "Reload")) == {"InvalidConfiguration"}
        assert checked(caller, "Plan")["ok"] == plan
        nannyd.write_config("[worker]\nnice = 3\n")
        assert "worker.nice" in checked(caller, "Reload")["ok"]["changes"]
        assert checked(caller, "Plan")["ok"]["plan"]["settings"]["worker"]["nice"] == 3
    assert run.stop() == 0


# --- Steering -----------------------------------------------------------------------------------------


def test_restart_answers_when_the_next_worker_is_ready(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ready-after=0.3", config=NOTIFY)
    pid = run.ready()
    with run.connect() as caller:
        answer = checked(caller, "Restart", reason="new version")["ok"]
        assert answer["processId"] == checked(caller, "Status")["ok"]["worker"]["processId"] != pid
    assert not lives(pid)
    assert run.wait_for("called")["reason"] == "new version"
    assert "new version" in run.wait_for("stopping-worker")["reason"]
    assert run.stop() == 0


def ready_when_let(directory: Path) -> tuple[list[str], Path]:
    """Return the command of a worker that is ready at once in its first life, then when the file is there."""
    was, let = directory / "was", directory / "let"
    wait = f"if test -e {was}; then until test -e {let}; do sleep 0.05; done; fi; touch {was}"
    script = f"{wait}; systemd-notify --ready; exec sleep 60"
    return ["--worker.ready=notify", "--restart.delay=0", "--", "sh", "-c", script], let


def test_a_restart_that_is_late_is_told_so_and_goes_on(nannyd: Host, tmp_path: Path) -> None:
    command, let = ready_when_let(tmp_path)
    run = nannyd(*command)
    run.ready()
    with run.connect() as caller:
        late = checked(caller, "Restart", timeout=1.5)["TimedOut"]
        assert late == {"timeout": 1.5, "state": "start"}
        let.touch()
        assert checked(caller, "Instantiate")["ok"]["processId"] == run.ready()
    assert run.stop() == 0


def test_a_restart_whose_worker_fails_names_its_end(nannyd: Host, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/was && exit 9; touch {tmp_path}/was; systemd-notify --ready; exec sleep 60"
    run = nannyd("--restart.delay=20s", "--worker.ready=notify", "--", "sh", "-c", script)
    run.ready()
    with run.connect() as caller:
        failed = checked(caller, "Restart")["WorkerFailed"]["exit"]
    assert (failed["exitStatus"], failed["result"], failed["wasReady"]) == (9, "exit-code", False)
    assert run.stop() == 0


def test_a_restart_that_meets_the_start_limit_says_so(nannyd: Host, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/was && exit 9; touch {tmp_path}/was; systemd-notify --ready; exec sleep 60"
    options = ["--restart.delay=0", "--restart.start-limit-burst=1", "--worker.ready=notify"]
    run = nannyd(*options, "--", "sh", "-c", script)
    run.ready()
    with run.connect() as caller:
        hit = checked(caller, "Restart")["StartLimitHit"]
    assert (hit["burst"], hit["exit"]["exitStatus"]) == (1, 9)
    assert run.wait() == ExitCode.START_LIMIT_HIT


def test_a_restart_that_is_overtaken_by_a_stop_says_so(nannyd: Host) -> None:
    run = nannyd.rude("--worker.stop-timeout=1h", vices="--ignore-sigterm", config=NOTIFY)
    pid = run.ready()
    with run.connect() as caller:
        caller.send("Restart")
        run.wait_for("stopping-worker")
        run.signal(signal.SIGTERM)
        assert caller.receive()["error"] == "io.nannyd.Nanny.Superseded"
    send_signal(pid, signal.SIGKILL)
    assert run.wait() == 0


def test_a_restart_that_another_restart_overtakes_says_so(nannyd: Host, tmp_path: Path) -> None:
    command, let = ready_when_let(tmp_path)
    run = nannyd(*command)
    run.ready()
    with run.connect() as first, run.connect() as second:
        first.send("Restart", {"reason": "one"})
        run.wait_for("worker-started")
        second.send("Restart", {"reason": "two"})
        assert first.receive()["error"] == "io.nannyd.Nanny.Superseded"
        let.touch()
        assert second.receive()["parameters"]["processId"] == run.ready()
    assert run.stop() == 0


def test_an_instant_is_the_same_whenever_it_is_asked_for(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    send_signal(run.ready(), signal.SIGKILL)
    run.ready()
    with run.connect() as caller:
        answers = [caller.get("Status") for _ in range(20)]
    for status in answers[1:]:
        assert status["startedAt"] == answers[0]["startedAt"]
        assert status["worker"] == answers[0]["worker"]
        assert status["lastExit"] == answers[0]["lastExit"]
    assert run.stop() == 0


def test_kill_without_time_asks_nothing_and_the_policy_decides(nannyd: Host) -> None:
    run = nannyd.rude("--worker.stop-timeout=1s", vices="--ignore-sigterm", config=NOTIFY)
    pid = run.ready()
    with run.connect() as caller:
        exit_ = checked(caller, "Kill", timeout=0)["ok"]["exit"]
        assert (exit_["signal"], exit_["result"], exit_["who"]) == ("SIGKILL", "signal", "nannyd")
        assert not lives(pid)
        assert run.ready() != pid
    assert "stopping-worker" not in run.events()
    assert run.stop() == 0


def test_kill_asks_first_where_it_has_time(nannyd: Host) -> None:
    run = nannyd("--restart.mode=on-failure", "--", "sleep", "60")
    run.ready()
    with run.connect() as caller:
        exit_ = checked(caller, "Kill", timeout=PATIENCE, reason="enough")["ok"]["exit"]
    assert (exit_["signal"], exit_["result"]) == ("SIGTERM", "success")
    assert run.wait() == 0  # the policy wants no restart after success


def test_kill_of_nobody_answers_with_the_last_end(nannyd: Host) -> None:
    run = nannyd("--restart.delay=30s", "--", "false")
    run.wait_for("restarting")
    with run.connect() as caller:
        assert checked(caller, "Kill")["ok"]["exit"]["exitStatus"] == 1
        assert checked(caller, "Instantiate", timeout=0)  # whatever it answers, it does not wait
    assert run.stop() == 0


def test_instantiate_of_a_running_worker_answers_at_once_and_ends_a_back_off(
    nannyd: Host, tmp_path: Path
) -> None:
    script = f"test -e {tmp_path}/was && exec sleep 60; touch {tmp_path}/was; exit 1"
    run = nannyd("--restart.delay=60s", "--", "sh", "-c", script)
    run.wait_for("restarting")
    with run.connect() as caller:
        pid = checked(caller, "Instantiate")["ok"]["processId"]
        assert checked(caller, "Instantiate")["ok"]["processId"] == pid
        assert checked(caller, "Status")["ok"]["restarts"] == 1
    assert run.stop() == 0


def test_closing_gracefully_leaves_the_worker_alone_and_ends_with_it(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    pid = run.ready()
    with run.connect() as caller:
        assert checked(caller, "CloseGracefully", reason="scaling down") == {"ok": {}}
        status = checked(caller, "Status")["ok"]
        assert (status["goal"], status["state"], status["worker"]["processId"]) == ("down", "running", pid)
        assert "not to be restarted" in status["sentence"]
    send_signal(pid, signal.SIGKILL)
    assert run.wait() == 0
    assert run.events().count("worker-started") == 1


def test_terminate_answers_and_ends_nannyd(nannyd: Host) -> None:
    run = nannyd.rude("--worker.stop-timeout=60s", vices="--ignore-sigterm", config=NOTIFY)
    run.ready()
    with run.connect() as caller:
        exit_ = checked(caller, "Terminate", timeout=0.5, reason="done")["ok"]["exit"]
        assert (exit_["result"], exit_["who"]) == ("timeout", "nannyd")
        with pytest.raises(ConnectionResetError):
            caller.receive()
    assert run.wait() == 0


@pytest.mark.parametrize("by", ["Terminate", "SIGTERM"])
def test_who_starts_a_worker_does_not_undo_the_end_of_nannyd(nannyd: Host, by: str) -> None:
    run = nannyd.rude("--worker.stop-timeout=1h", vices="--ignore-sigterm", config=NOTIFY)
    pid = run.ready()
    with run.connect() as ending, run.connect() as starting:
        if by == "SIGTERM":
            send_signal(run.pid, signal.SIGTERM)
        else:
            ending.send(by)
        run.wait_for("stop-requested")
        for method in ("Restart", "Instantiate"):
            assert checked(starting, method) == {"Superseded": {"by": "the instance is to end"}}
        send_signal(pid, signal.SIGKILL)
        assert by == "SIGTERM" or ending.receive()["parameters"]["exit"]["signal"] == "SIGKILL"
    assert run.wait() == 0
    assert run.events().count("worker-started") == 1


@pytest.mark.parametrize("timeout", [-1, -0.001, 1e300])
def test_an_impossible_timeout_is_refused_and_nothing_is_done(nannyd: Host, timeout: float) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    with run.connect() as caller:
        for method in ("Kill", "Restart", "Terminate", "Instantiate"):
            refused = checked(caller, method, timeout=timeout)["InvalidArgument"]
            assert refused["parameter"] == "timeout"
    assert run.stop() == 0
    assert run.events().count("worker-started") == 1
    assert "called" not in run.events()


def test_a_caller_that_hangs_up_while_it_waits_does_no_harm(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ready-after=0.5", config=NOTIFY)
    run.ready()
    for method in ("Restart", "Kill", "Reload"):
        with run.connect() as caller:
            caller.send(method)
    run.wait_for("reloaded")
    with run.connect() as caller:
        assert "ok" in checked(caller, "Instantiate")
    assert run.stop() == 0


# --- The log, and what systemd's own tools ask --------------------------------------------------------


def test_events_of_others_have_a_size_and_no_control_characters(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    with run.connect() as caller:
        assert checked(caller, "LogEvent", topic="", message="m")["InvalidArgument"]["parameter"] == "topic"
        assert (
            checked(caller, "LogEvent", topic="t" * 201, message="m")["InvalidArgument"]["parameter"]
            == "topic"
        )
        refused = checked(caller, "LogEvent", topic="t", message="m" * 20_000)["InvalidArgument"]
        assert (refused["parameter"], refused["reason"]) == (
            "message",
            "has 20000 characters; 1 to 16384 are possible",
        )
        assert checked(caller, "LogEvent", topic="a\nb", message="c\x1b]0;d") == {"ok": {}}
    record = run.wait_for("log-event")
    assert record["message"] == "a b: c ]0;d"
    assert run.stop() == 0


def test_the_interface_of_systemds_services(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=QUICK)
    run.ready()
    with run.connect() as caller:
        assert caller.get("io.systemd.service.Ping") == {}
        assert caller.get("io.systemd.service.Reload") == {}
        assert f"HOME={nannyd.home.base}" in caller.get("io.systemd.service.GetEnvironment")["environment"]
        for level in (3, 7):
            assert caller.get("io.systemd.service.SetLogLevel", level=level) == {}
            assert caller.get("io.nannyd.Nanny.Status")["logLevel"] == level
        for impossible in (-1, 8, None):
            refused = caller.call("io.systemd.service.SetLogLevel", level=impossible)
            assert refused["error"] == "org.varlink.service.InvalidParameter"
        caller.get("io.systemd.service.SetLogLevel", level=3)
        caller.get("LogEvent", topic="t", message="unheard")
        caller.get("io.systemd.service.SetLogLevel", level=6)
        assert caller.get("GetLogs", n=1)["records"][0]["message"].startswith("SetLogLevel")
    assert run.stop() == 0
    assert "log-event" not in run.events()
