"""Reload: a new plan as a whole, or the old one and all errors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from harness import PATIENCE, Host, children_of, environ_of, eventually, lives, send_signal

CONFIG = """
[worker]
stop-timeout = "{stop}"
nice = {nice}
[memory]
mode = "poll"
limit = "{limit}"
[restart]
delay = "{delay}"
jitter = 0
"""
FIRST = {"stop": "10s", "nice": "0", "limit": "400M", "delay": "0"}


def config(**changes: str) -> str:
    """Return the configuration with *changes*."""
    return CONFIG.format(**FIRST | changes)


def test_what_can_change_live_does(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ignore-sigterm", config=config(stop="1h"))
    pid = run.ready()
    nannyd.write_config(config(stop="500ms", limit="500M"))
    done = run.reload()
    assert (done.returncode, done.stderr) == (0, "")
    changes = run.wait_for("reloaded")["changes"]
    assert "worker.stop-timeout" in changes
    assert "memory.limit" in changes
    assert "from the next worker on" not in changes
    assert lives(pid)
    assert run.stop() == 0
    assert run.wait_for("stopping-worker")["grace"] == "400ms"


def test_a_lower_limit_is_in_force_at_once(nannyd: Host) -> None:
    run = nannyd.rude(vices="--eat 80M --rate 400M", config=config())
    pid = run.ready()
    eventually(lambda: "ate" in run.stdout.read_text(), "it has eaten")
    nannyd.write_config(config(limit="60M"))
    assert run.reload().returncode == 0
    run.wait_for("memory-terminate", worker_pid=pid)
    assert run.wait_for("worker-failed")["result"] == "memory"
    assert run.stop() == 0


def test_the_restart_policy_changes_live(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config())
    pid = run.ready()
    nannyd.write_config(config(delay="30s"))
    assert run.reload().returncode == 0
    send_signal(pid, signal.SIGKILL)
    assert run.wait_for("restarting")["delay"] == "30s"
    assert run.stop() == 0


def test_what_needs_a_new_worker_is_said_and_comes_with_it(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config(), systemd=True)
    pid = run.ready()
    nannyd.write_config(config(nice="5"))
    assert run.reload().returncode == 0
    assert "worker.nice from the next worker on" in run.wait_for("reloaded")["changes"]
    assert lives(pid)
    send_signal(pid, signal.SIGKILL)
    assert os.getpriority(os.PRIO_PROCESS, run.ready()) == 5
    assert run.stop() == 0


def test_another_command_comes_with_the_next_worker(nannyd: Host) -> None:
    nannyd.write_config(config().replace("[worker]", '[worker]\ncommand = ["sleep", "60"]'))
    run = nannyd()
    pid = run.ready()
    nannyd.write_config(config().replace("[worker]", '[worker]\ncommand = ["sleep", "61"]'))
    assert run.reload().returncode == 0
    assert "worker.command from the next worker on" in run.wait_for("reloaded")["changes"]
    send_signal(pid, signal.SIGKILL)
    pid = run.ready()
    assert environ_of(pid)  # from now on /proc shows what was executed
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0061\x00"
    assert run.stop() == 0


def test_errors_leave_the_old_plan_in_force_and_are_all_told(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ignore-sigterm", config=config(stop="500ms"), systemd=True)
    pid = run.ready()
    run.systemd.wait_for("READY")
    said = len(run.systemd.messages)
    nannyd.write_config(config(stop="soon", limit="lots", nice="99"))
    done = run.reload()
    assert done.returncode == 78
    file = nannyd.home.config / "t.toml"
    for key, value in (("worker.stop-timeout", "'soon'"), ("memory.limit", "'lots'"), ("worker.nice", "99")):
        assert f"{file}: {key}: " in done.stderr
        assert value in done.stderr
    failed = run.wait_for("reload-failed")
    assert failed["problems"].strip() == done.stderr.strip()
    # systemd hears that it is over all the same.
    run.systemd.wait_for("RELOADING", "1", after=said)
    run.systemd.wait_for("READY", "1", after=said)
    assert lives(pid)
    nannyd.write_config(config(stop="500ms"))
    assert run.reload().returncode == 0
    assert run.wait_for("reloaded")["changes"] == "nothing changed"
    assert run.stop() == 0
    assert run.wait_for("stopping-worker")["grace"] == "400ms"


def test_a_launcher_that_was_killed_is_told_as_that(nannyd: Host) -> None:
    """As by the kernel, where the unit has no memory left: it is the first to go."""
    run = nannyd("--", "sleep", "60", config=config())
    pid = run.ready()
    file = nannyd.home.config / "t.toml"
    file.unlink()
    os.mkfifo(file)  # it waits for somebody to write
    run.signal(signal.SIGHUP)
    eventually(lambda: set(children_of(run.process.pid)) > {pid}, "the launcher")
    (launcher,) = set(children_of(run.process.pid)) - {pid}
    send_signal(launcher, signal.SIGKILL)
    assert run.wait_for("reload-failed")["problems"].startswith("the launcher was killed")
    nannyd.write_config(config(delay="1s"))
    assert run.reload().returncode == 0
    assert lives(pid)
    assert run.stop() == 0


def test_sighup_reloads_too(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config(), systemd=True)
    run.ready()
    run.systemd.wait_for("READY")
    said = len(run.systemd.messages)
    before = time.monotonic()
    nannyd.write_config(config(stop="5s"))
    run.signal(signal.SIGHUP)
    assert run.wait_for("reloaded")["changes"].startswith("worker.stop-timeout")
    reloading = run.systemd.wait_for("RELOADING", "1", after=said)
    moment = int(reloading.fields["MONOTONIC_USEC"]) / 1e6
    assert before <= moment <= reloading.at
    ready = run.systemd.wait_for("READY", "1", after=said)
    assert ready.at > reloading.at
    nannyd.write_config("nonsense")
    run.signal(signal.SIGHUP)
    assert "is not TOML" in run.wait_for("reload-failed")["problems"]
    assert run.stop() == 0


def test_a_reload_has_the_arguments_and_the_environment_of_the_start(nannyd: Host) -> None:
    run = nannyd(
        "--memory.limit=300M",
        "--env",
        "A=1",
        "--",
        "sleep",
        "60",
        config=config(),
        environ={"NANNYD_WORKER__STOP_TIMEOUT": "7s"},
    )
    run.ready()
    nannyd.write_config(config(limit="999M", stop="99s", delay="1s"))
    done = run.reload()
    assert done.returncode == 0
    # What options and variables decide stays as they say.
    assert run.wait_for("reloaded")["changes"] == "restart.delay now"
    assert run.stop() == 0


def test_a_reload_finds_a_relative_config_dir_where_the_start_did(nannyd: Host) -> None:
    nannyd.home.config.rename(nannyd.home.base / "elsewhere")
    nannyd.home.config.mkdir()
    run = nannyd("--config-dir", "elsewhere", "--", "sleep", "60")
    run.ready()
    (nannyd.home.base / "elsewhere" / "t.toml").write_text(config())
    done = run.reload()
    assert (done.returncode, done.stderr) == (0, "")
    assert run.wait_for("reloaded")["changes"] != "nothing changed"
    assert run.stop() == 0


def test_a_plan_larger_than_a_pipe_arrives_whole(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", environ={f"BIG_{count}": "x" * 100_000 for count in range(6)})
    run.ready()
    nannyd.write_config(config())
    done = run.reload()
    assert (done.returncode, done.stderr) == (0, "")
    assert run.stop() == 0


def test_reloads_that_come_together_are_all_answered_by_the_next_one(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config())
    run.ready()
    file = nannyd.home.config / "t.toml"
    file.unlink()
    os.mkfifo(file)  # the first launcher waits for somebody to write
    callers = []
    for _ in range(8):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(str(nannyd.home.run / "control"))
        caller.sendall(b'{"method":"io.nannyd.Nanny.Reload"}\0')
        callers.append(caller)
        run.wait_for("called")
    # The first has begun; the others, which came meanwhile, share the second.
    writers: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: by nobody
            writers.append(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    eventually(is_read, "the first launcher reads the configuration")
    nannyd.write_config(config())
    with os.fdopen(writers[0], "w") as gate:
        gate.write(config())
    answers = [
        caller.makefile("rb").read(len(b'{"parameters":{"changes":"nothing changed"}}\0'))
        for caller in callers
    ]
    assert answers == [b'{"parameters":{"changes":"nothing changed"}}\0'] * 8
    for caller in callers:
        caller.close()
    run.signal(signal.SIGHUP)
    for _ in range(3):
        run.wait_for("reloaded")
    assert run.stop() == 0
    assert run.events().count("reloaded") == 3


def test_all_who_wait_for_a_reload_hear_that_it_failed(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config())
    run.ready()
    nannyd.write_config("[memory]\nlimit = 1\n")
    command = [sys.executable, "-m", "nannyd", "reload", "t"]
    asking = [subprocess.Popen(command, env=run.environ, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in asking:
        assert "memory.limit" in process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 78
    assert run.stop() == 0


def test_a_reload_before_the_first_ready_does_not_make_it_ready(nannyd: Host) -> None:
    run = nannyd.rude("--worker.ready=notify", vices="--never-ready", config=config(), systemd=True)
    run.started()
    assert run.reload().returncode == 0
    run.wait_for("reloaded")
    assert run.stop() == 0
    assert run.systemd.all("READY") == []


def test_a_reload_during_the_back_off_is_answered(nannyd: Host) -> None:
    run = nannyd("--", "false", config=config(delay="60s"))
    run.wait_for("restarting")
    nannyd.write_config(config(delay="1s"))
    assert run.reload().returncode == 0
    assert run.stop(30) == 0


def test_sigterm_during_a_reload_is_answered(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config())
    run.ready()
    run.signal(signal.SIGHUP)
    assert run.stop() == 0


def test_the_launcher_of_a_reload_is_not_taken_for_the_workers(nannyd: Host) -> None:
    # The worker dies while the launcher runs: its group is empty all the same, and the reload succeeds.
    run = nannyd("--", "sleep", "60", config=config())
    for _ in range(3):
        pid = run.ready()
        run.signal(signal.SIGHUP)
        send_signal(pid, signal.SIGKILL)
        run.wait_for("worker-failed")
    eventually(lambda: run.events().count("reloaded") + run.events().count("reload-failed") >= 1, "a reload")
    assert "reload-failed" not in run.events()
    assert run.stop() == 0


def test_reload_of_what_does_not_run_says_so(nannyd: Host) -> None:
    run = nannyd("--restart.mode=no", "--", "true")
    run.wait()
    done = run.reload()
    assert done.returncode == 1
    assert "t is not running" in done.stderr


def test_what_needs_a_new_nannyd_is_said(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=config())
    run.ready()
    nannyd.write_config(config().replace('mode = "poll"', 'mode = "auto"'))
    assert run.reload().returncode == 0
    assert "memory.mode after a restart of nannyd" in run.wait_for("reloaded")["changes"]
    assert run.stop() == 0


def test_a_reload_does_not_take_an_instance_into_a_cluster(nannyd: Host) -> None:
    run = nannyd(config='[worker]\ncommand = ["sleep", "60"]\n')
    pid = run.ready()
    nannyd.write_config('[dask]\nscheduler = "tcp://127.0.0.1:9"\n')
    assert run.reload().returncode != 0
    assert "joins or leaves a cluster" in run.wait_for("reload-failed")["message"]
    assert lives(pid)
    assert run.stop() == 0
