"""`nannyctl` beside real instances: what a person sees, and what comes of what she does."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import RUDE, connected, eventually, lives
from operator_terminal import NANNYCTL, Terminal, environ, nannyctl, run_instance
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from nannyd.supervisor.connection import Limits
from nannyd.supervisor.rights import Right

if TYPE_CHECKING:
    from harness import Host, Nannyd

PATIENTLY = "--timeout=20s"
"""A list waits for nobody who is silent for a moment, unless it is told to: a machine may be busy."""
SLEEP = ("--memory.limit=200M", "--restart.delay=0", "--", "sleep", "1000")


def two(host: Host) -> tuple[Nannyd, Nannyd]:
    """Return two instances whose workers are ready."""
    runs = run_instance(host, *SLEEP, name="a1"), run_instance(host, *SLEEP, name="b2")
    for run in runs:
        run.ready()
    return runs


def test_what_is_configured_is_known_without_a_service_manager(nannyd: Host) -> None:
    configuration = nannyd.home.base / "etc" / "nannyd"
    configuration.mkdir(parents=True)
    (configuration / "a1.toml").write_text("[worker]\ncommand = ['sleep', '1000']\n")
    config = {"XDG_CONFIG_HOME": str(configuration.parent)}
    told = "0 instances listed. Pass --all to see 1 more that never ran.\n"
    assert nannyctl(nannyd, "list", **config).stdout == told
    assert nannyctl(nannyd, "list", "a*", **config).stdout == "0 instances listed.\n"
    assert nannyctl(nannyd, "list", "--all", **config).stdout.endswith("\n1 instance listed.\n")
    (one,) = json.loads(nannyctl(nannyd, "list", "--all", "--json", **config).stdout)
    assert (one["name"], one["state"], one["reason"]) == ("a1", "inactive", "never started")
    assert nannyctl(nannyd, "status", "a1", **config).returncode == 3
    done = nannyctl(nannyd, "start", "a1", **config)
    right = f"nannyd run a1 --config-dir={configuration}"
    said = f"a1: it does not run, and no systemd is here to start it; write {right}\n"
    assert (done.returncode, done.stderr) == (1, said)
    for verb in ("plan", "explain"):
        done = nannyctl(nannyd, verb, "a1", **config)
        assert (done.returncode, "1000" in done.stdout) == (0, True), done.stderr


# --- list ---------------------------------------------------------------------------------------------


def test_list_has_a_line_for_each(nannyd: Host) -> None:
    runs = two(nannyd)
    lines = Terminal(nannyd, PATIENTLY, width=100).read().splitlines()
    assert lines[0].split() == ["NAME", "STATE", "WORKER", "UPTIME", "MEMORY", "RESTARTS", "LAST"]
    for run, line in zip(runs, lines[1:3], strict=True):
        pid = run.all("worker-started")[-1]["worker_pid"]
        assert re.fullmatch(rf"  {run.name}    running +{pid} +[\w ]+s  .*/200\.0 MiB .* 0  -", line)
    assert lines[3:] == ["", "2 instances listed."]
    assert "\x1b[32;1mrunning\x1b[0m" in Terminal(nannyd, "list", PATIENTLY).coloured()


def test_a_terminal_that_does_not_know_its_width_has_80_columns(nannyd: Host) -> None:
    two(nannyd)
    lines = [Terminal(nannyd, "status", "a1", width=width).read().splitlines() for width in (0, 80)]
    assert max(map(len, lines[0])) == max(map(len, lines[1])) == 80


def test_a_pipe_gets_neither_colours_nor_bars_nor_dots_at_the_end_of_lines(nannyd: Host) -> None:
    two(nannyd)
    done = nannyctl(nannyd, "list", PATIENTLY, COLUMNS="20")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("×", "").isascii()
    assert "\x1b" not in done.stdout
    bare = nannyctl(nannyd, "list", "-q", "a*").stdout
    assert [line.split()[0] for line in bare.splitlines()] == ["a1"]


def test_one_that_hangs_is_shown_as_such_and_not_waited_for(nannyd: Host) -> None:
    hung, well = two(nannyd)
    hung.signal(signal.SIGSTOP)
    try:
        listed = nannyctl(nannyd, "list").stdout.splitlines()
        assert re.fullmatch(r"● a1 +not answering +- +- +- +- +not answering", listed[1])
        assert re.match(r"  b2 +running", nannyctl(nannyd, "list", "--timeout=3").stdout.splitlines()[2])
        metrics = nannyctl(nannyd, "metrics", "--timeout=3")
        assert 'nannyd_up{instance="a1"} 0.0\nnannyd_up{instance="b2"} 1.0\n' in metrics.stdout
        done = nannyctl(nannyd, "restart", "a1", "b2")
        assert (done.returncode, done.stderr) == (1, "a1: not answering\n")
        well.wait_for("worker-ready")
        status = nannyctl(nannyd, "status", "a1", "--timeout=300ms")
        assert status.returncode == 3
        assert "not answering" in status.stdout
    finally:
        hung.signal(signal.SIGCONT)


@pytest.mark.parametrize("verb", ["plan", "explain"])
def test_one_that_hangs_is_not_asked_again(nannyd: Host, verb: str) -> None:
    path = nannyd.home.base / "nannyd" / "a1" / "control"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        done = nannyctl(nannyd, verb, "a1")
        assert (done.returncode, done.stderr) == (1, "a1: not answering\n")
        hung.setblocking(False)
        hung.accept()[0].close()
        with pytest.raises(BlockingIOError):
            hung.accept()
    path.unlink()


def test_one_to_which_too_many_are_connected_is_not_taken_for_gone(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    run.ready()
    with contextlib.ExitStack() as stack:
        limits = Limits()
        for _ in range(limits.together[Right.ALL] // limits.connections[Right.ALL]):
            stack.enter_context(connected(run.socket, limits.connections[Right.ALL]))
        (one,) = json.loads(nannyctl(nannyd, "list", "--json", PATIENTLY).stdout)
        assert (one["state"], one["activeState"]) == ("not answering", "active")
        assert "too many are connected" in one["reason"]
        for verb in ("status", "restart", "kill", "stop", "logs", "why", "monitor"):
            done = nannyctl(nannyd, verb, "a1")
            assert "too many are connected" in done.stdout + done.stderr, done
            assert done.returncode == (3 if verb == "status" else 1)
    assert nannyctl(nannyd, "restart", "a1").returncode == 0


def test_one_that_was_killed_is_shown_as_failed(nannyd: Host) -> None:
    dead, _ = two(nannyd)
    dead.crash()
    listed = nannyctl(nannyd, "list", PATIENTLY).stdout.splitlines()
    assert re.match(r"× a1 +failed .* nannyd is gone and has left its socket \(nobody listens", listed[1])
    assert nannyctl(nannyd, "status", "a1").returncode == 3
    done = nannyctl(nannyd, "restart", "a1")
    said = "a1: it does not run, and no systemd is here to restart it; write nannyd run a1\n"
    assert (done.returncode, done.stderr) == (1, said)
    run_instance(nannyd, *SLEEP, name="a1").ready()
    assert re.match(r"  a1 +running", nannyctl(nannyd, "list", PATIENTLY).stdout.splitlines()[1])


# --- status, why ----------------------------------------------------------------------------------------


def test_status_tells_what_a_person_wants_to_know(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    worker = run.ready()
    text = Terminal(nannyd, "status", "a1", width=120).read()
    assert text.startswith("● a1\n    Active: active (running) since ")
    assert f'    Status: "worker {worker} running, ' in text
    assert re.search(rf" Processes: └─{worker} .* sleep 1000\n", text)
    assert "            limit 200.0 MiB: --memory.limit; polled (" in text
    assert text.endswith(f"worker {worker} is ready after {run.records[-1]['after']}\n")
    assert "1;32m●" in Terminal(nannyd, "status", "a1").coloured().replace("32;1m", "1;32m")
    (found,) = json.loads(nannyctl(nannyd, "status", "a1", "--json").stdout)
    assert found["status"]["worker"]["processId"] == worker
    assert [process["command"] for process in found["processes"]] == ["sleep 1000"]
    assert found["events"][-1]["event"] == "worker-ready"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["status", "nonesuch"], 4, "there is no instance nonesuch"),
        (["restart", "nonesuch"], 1, "there is no instance nonesuch"),
        (["status", "z*"], 4, "no instance matches 'z*'"),
        (["kill", "../a1"], 1, "there is no instance ../a1"),
        (["frobnicate"], 2, "Unknown command verb 'frobnicate'."),
        (["list", "--reason=x"], 2, "nannyctl list does not take --reason."),
        (["restart"], 2, "nannyctl restart needs the name of an instance"),
        (["restart", "a", "--timeout=soon"], 2, "'soon' is not a duration; write 5, 500ms or 1min 30s"),
        (["list", "--frob"], 2, "unrecognized arguments: --frob"),
    ],
)
def test_what_is_not_there_or_not_understood_is_said(
    nannyd: Host, arguments: list[str], status: int, words: str
) -> None:
    done = nannyctl(nannyd, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr


def test_why_tells_how_the_last_life_ended(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    first = run.ready()
    assert nannyctl(nannyd, "why", "a1").stdout == "● a1: no life of its worker is over yet\n"
    assert nannyctl(nannyd, "kill", "a1", "--timeout=0", "--reason=a try").returncode == 0
    run.wait_for("worker-ready")
    text = nannyctl(nannyd, "why", "a1").stdout
    assert text.startswith("● a1: life 1 was killed by SIGKILL\n    Result: signal, by nannyd\n")
    assert "   Because: Kill: a try\n" in text
    assert f"worker {first} was killed by SIGKILL" in text
    (told,) = json.loads(nannyctl(nannyd, "why", "a1", "--json").stdout)
    assert (told["name"], told["exit"]["generation"], told["exit"]["signal"]) == ("a1", 1, "SIGKILL")


def test_what_a_worker_says_of_itself_does_not_reach_the_terminal_raw(nannyd: Host) -> None:
    evil = "import os, socket, time\n"
    evil += "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    evil += r"s.sendto('READY=1\nSTATUS=\x1b[2J\x9bHi\r'.encode(), os.environ['NOTIFY_SOCKET'])"
    evil += "\ntime.sleep(1000)\n"
    run = run_instance(nannyd, "--worker.ready=notify", "--", RUDE[0], "-c", evil, name="a1")
    run.ready()
    for verb in (["status", "a1"], ["monitor", "a1"], ["status", "--json", "a1"]):
        terminal = Terminal(nannyd, *verb)
        terminal.expect("u001b\\[2J.u009bHi|Hi")
        if verb[0] == "monitor":
            terminal.child.sendintr()
        seen = str(terminal.child.before) + str(terminal.child.after) + terminal.coloured()
        assert "\x1b[2J" not in seen
        assert "\x9b" not in seen


# --- metrics --------------------------------------------------------------------------------------------


def test_metrics_are_read_as_openmetrics_and_by_the_older_format(nannyd: Host) -> None:
    run, _ = two(nannyd)
    assert nannyctl(nannyd, "kill", "a1", "--timeout=0").returncode == 0
    run.wait_for("worker-ready")
    text = nannyctl(nannyd, "metrics").stdout
    families = {family.name: family for family in openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["nannyd_worker_restarts"].type == "counter"
    restarts = families["nannyd_worker_restarts"].samples
    assert {s.name for s in restarts} == {"nannyd_worker_restarts_total"}
    assert [s.labels for s in restarts if s.value == 1] == [{"instance": "a1", "result": "signal"}]
    # What has not happened yet is there, for Prometheus to see it happen.
    assert {"instance": "b2", "result": "memory"} in [s.labels for s in restarts if s.value == 0]
    assert families["nannyd_memory_limit_bytes"].unit == "bytes"
    assert {s.value for s in families["nannyd_memory_limit_bytes"].samples} == {200 << 20}
    states = [s for s in families["nannyd_state"].samples if s.value == 1]
    assert [s.labels for s in states] == [{"instance": n, "state": "running"} for n in ("a1", "b2")]
    # What node_exporter's textfile collector reads has these types only.
    assert {family.type for family in families.values()} <= {"counter", "gauge"}
    assert sum(len(family.samples) for family in prometheus(text)) == text.count("\nnannyd_")


# --- What changes something -------------------------------------------------------------------------------


def test_restart_returns_when_the_next_worker_is_ready(nannyd: Host) -> None:
    runs = two(nannyd)
    before = [run.all("worker-started")[-1]["worker_pid"] for run in runs]
    done = nannyctl(nannyd, "restart", "*", "--reason=new secrets")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    listed = json.loads(nannyctl(nannyd, "list", "--json", PATIENTLY).stdout)
    assert [one["state"] for one in listed] == ["running", "running"]
    for run, old in zip(runs, before, strict=True):
        assert not lives(old)
        assert run.wait_for("stopping-worker")["reason"] == "Restart: new secrets"


def test_restart_that_takes_too_long_says_so(nannyd: Host) -> None:
    run = run_instance(nannyd, "--worker.ready=notify", "--", *RUDE, "--never-ready", name="a1")
    run.started()
    done = nannyctl(nannyd, "restart", "a1", "--timeout=500ms")
    assert done.returncode == 1
    assert re.match(r"a1: not within 500ms; it is \S+, and what was asked for goes on\n", done.stderr)
    (told,) = json.loads(nannyctl(nannyd, "restart", "a1", "--timeout=0.1", "--json").stdout)
    assert (told["name"], told["done"], told["reply"]) == ("a1", False, None)
    assert told["error"].startswith("not within 100ms")


def test_start_does_not_wait_for_the_delay(nannyd: Host) -> None:
    late = ("--restart.delay=1h", "--restart.max-delay=1h", "--restart.jitter=0")
    run = run_instance(nannyd, *late, "--restart.mode=always", "--", "true", name="a1")
    run.wait_for("restarting")
    text = nannyctl(nannyd, "status", "a1")
    assert text.returncode == 3
    assert "activating (auto-restart)" in text.stdout
    assert re.search(r"Next start: .*; (59min \d+s|1h) left", text.stdout)
    nannyctl(nannyd, "start", "a1")
    run.started()


def test_drain_and_kill_end_the_instance_and_monitor_sees_it(nannyd: Host) -> None:
    run, other = two(nannyd)
    monitor = Terminal(nannyd, "monitor", "a1", "b2", width=200)
    monitor.expect(r"b2: .*worker \d+ running")
    assert nannyctl(nannyd, "drain", "a1", "--reason=upgrade").returncode == 0
    assert lives(run.pid)
    assert nannyctl(nannyd, "kill", "a1").returncode == 0
    assert run.wait() == 0
    monitor.expect("-- a1 is gone --")
    assert nannyctl(nannyd, "stop", "b2").returncode == 0
    assert other.wait() == 0
    monitor.expect("-- b2 is gone --")
    assert monitor.end() == 0


def test_stop_returns_when_nannyd_is_gone(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    run.ready()
    done = nannyctl(nannyd, "stop", "a1", "--reason=holidays")
    assert (done.returncode, done.stderr) == (0, "")
    assert not lives(run.pid)
    assert run.wait() == 0
    assert "holidays" in run.wait_for("stop-requested")["message"]
    assert nannyctl(nannyd, "list").stdout == "0 instances listed.\n"


def test_monitor_as_json_is_an_object_a_line_and_an_interrupt_ends_it(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    run.ready()
    monitor = Terminal(nannyd, "monitor", "--all", "--json", width=2000)
    monitor.expect("\r\n")
    first = json.loads(monitor.child.before or "")
    assert (first["name"], first["event"]) == ("a1", "monitoring")
    monitor.child.sendintr()
    assert monitor.end() == 130


def test_reload_puts_in_force_and_says_what_or_fails_and_says_why(nannyd: Host) -> None:
    configuration = "[worker]\ncommand = ['sleep', '1000']\n"
    nannyd.write_config(configuration, "a1")
    run = run_instance(nannyd, name="a1")
    run.ready()
    nannyd.write_config(configuration + "[restart]\ndelay = '7s'\n", "a1")
    done = nannyctl(nannyd, "reload", "a1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"a1: .*restart\.delay", done.stdout)
    nannyd.write_config(configuration + "[restart]\ndelay = 'soon'\n[memory]\nlimit = 'lots'\n", "a1")
    done = nannyctl(nannyd, "reload", "a1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("a1: the configuration is wrong, the old one stays in force\n")
    assert "restart.delay: 'soon' is not a duration" in done.stderr
    assert "memory.limit: 'lots' is not a size" in done.stderr


def test_plan_and_explain_show_what_is_in_force(nannyd: Host) -> None:
    nannyd.write_config("[worker]\ncommand = ['sleep', '1000']\n[memory]\nlimit = '100M'\n", "a1")
    run = run_instance(nannyd, name="a1")
    run.ready()
    nannyd.write_config("[worker]\ncommand = ['sleep', '9']\n", "a1")
    plan = nannyctl(nannyd, "plan", "a1").stdout
    assert plan.startswith("# a1, as it is in force\n")
    assert 'command = ["sleep", "1000"]' in plan
    assert json.loads(nannyctl(nannyd, "plan", "a1", "--json").stdout)["memory"]["limit"] == 100 << 20
    explained = nannyctl(nannyd, "explain", "a1").stdout
    assert re.search(r'memory\.limit = "104857600B" +# .*/a1\.toml', explained)
    assert json.loads(nannyctl(nannyd, "explain", "a1", "--json").stdout)["source"] == "self"


def test_the_level_of_the_log_is_shown_and_set(nannyd: Host) -> None:
    two(nannyd)
    assert nannyctl(nannyd, "log-level", "a1").stdout == "info\n"
    assert nannyctl(nannyd, "log-level", "a1", "debug").returncode == 0
    assert nannyctl(nannyd, "log-level", "--all").stdout == "a1: debug\nb2: info\n"
    done = nannyctl(nannyd, "log-level", "a1", "loud")
    assert done.returncode == 1
    assert done.stderr.startswith("'loud' is not a level; write one of emerg, alert,")


def test_whoever_reads_may_stop_reading(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    run.ready()
    with subprocess.Popen(
        [*NANNYCTL, "monitor", "a1"],
        env=environ(nannyd),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as monitor:
        assert monitor.stdout is not None
        assert monitor.stderr is not None
        assert "running" in monitor.stdout.readline()
        monitor.stdout.close()
        assert nannyctl(nannyd, "restart", "a1").returncode == 0
        eventually(lambda: monitor.poll() is not None, "monitor ends when nobody reads it")
        assert (monitor.returncode, monitor.stderr.read()) == (0, "")


def test_a_full_disk_is_no_bug(nannyd: Host) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*NANNYCTL, "metrics"],
            env=environ(nannyd),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "standard output cannot be written: No space left on device\n",
    )


def test_who_wants_to_hear_nothing_is_obeyed(nannyd: Host) -> None:
    run = run_instance(nannyd, *SLEEP, name="a1")
    worker = run.ready()
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *NANNYCTL, "restart", "a1"]
    assert subprocess.run(closed, env=environ(nannyd), check=False).returncode == 0
    assert run.ready() != worker
