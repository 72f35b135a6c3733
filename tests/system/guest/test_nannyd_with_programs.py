"""Programs that nobody here wrote, as workers."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import run_command, shell, switches, wait_until

if TYPE_CHECKING:
    import subprocess

    from .instances import NannydFactory


def redis(*command: str) -> subprocess.CompletedProcess[str]:
    return run_command("redis-cli", "-s", "/run/nannyd/w/redis", *command, check=False)


def test_redis_says_itself_when_it_is_ready_and_ends_in_order_at_its_limit(nannyd: NannydFactory) -> None:
    options = "--supervised systemd --port 0 --unixsocket /run/nannyd/w/redis --dir /var/lib/nannyd/w"
    command = ["/usr/bin/redis-server", *options.split(), "--save", "", "--enable-debug-command", "yes"]
    instance = nannyd(
        f"""
        [worker]
        command = {json.dumps(command)}
        ready = "notify"
        [memory]
        limit = "96M"
        warn = 0.5
        terminate = 0.7
        """
    )
    assert redis("ping").stdout == "PONG\n"
    wait_until(lambda: "worker: Ready to accept connections" in instance.status, "redis's own status")
    for number in range(100):  # redis looks for signals ten times a second, and needs room until then
        if "OK" not in redis("debug", "populate", "50", f"key{number}", "20000").stdout:
            break
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WHO"], record["EXIT_STATUS"]) == ("memory", "nannyd", "0")
    assert instance.events("memory-terminate")[0]["LARGEST"].startswith("redis-server ")
    instance.wait_for_event("worker-ready", 2)
    assert redis("ping").stdout == "PONG\n"
    instance.stop()
    assert instance.wait_for_event("worker-ended")["EXIT_STATUS"] == "0"


def test_stress_ng_is_ended_at_its_limit_with_all_it_forked(nannyd: NannydFactory) -> None:
    command = ["/usr/bin/stress-ng", "--vm", "2", "--vm-bytes", "400M", "--vm-keep", "--temp-path"]
    instance = nannyd(
        f"""
        [worker]
        command = {json.dumps([*command, "/var/lib/nannyd/w"])}
        stop-timeout = "5s"
        [memory]
        limit = "96M"
        [restart]
        delay = "30s"
        """
    )
    cgroup = instance.cgroup
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WHO"]) == ("memory", "nannyd")
    assert "stress-ng" in instance.wait_for_event("memory-terminate")["LARGEST"]
    wait_until(lambda: [path.name for path in cgroup.glob("*/")] == ["supervisor"], "the end of the leaf")


def get(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect("/run/nannyd/w/web")
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_gunicorn_serves_and_goes_with_its_workers(nannyd: NannydFactory) -> None:
    options = "--workers 2 --bind unix:/run/nannyd/w/web --pythonpath /var/lib/nannyd/w app:app"
    instance = nannyd(
        f"""
        [worker]
        command = {json.dumps(["/usr/bin/gunicorn", *options.split()])}
        ready = "notify"
        working-directory = "/var/lib/nannyd/w"
        """,
        start=False,
    )
    instance.state.mkdir(parents=True)
    (instance.state / "app.py").write_text(
        "def app(environ, start):\n    start('200 OK', [])\n    return [b'it works']\n"
    )
    instance.start()
    wait_until(lambda: "worker: Gunicorn arbiter booted" in instance.status, "gunicorn's own status")
    assert get("/").endswith("it works")

    def processes() -> list[str]:
        return (instance.leaf / "cgroup.procs").read_text().split()

    wait_until(lambda: len(processes()) == 3, "gunicorn and its two workers")
    pids = processes()
    instance.stop()
    assert instance.wait_for_event("worker-ended")["RESULT"] == "success"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Shells, which speak to nannyd by systemd-notify(1)


def test_every_life_of_a_shell_worker_becomes_ready(nannyd: NannydFactory) -> None:
    lives = 50
    instance = nannyd(
        f"""
        [worker]
        command = {shell("systemd-notify --ready; exit 1")}
        ready = "notify"
        [restart]
        delay = 0
        start-limit-burst = {lives}
        """,
    )
    instance.wait_for("failed")
    assert len(instance.events("worker-started")) == len(instance.events("worker-ready")) == lives
    assert instance.show("ExecMainStatus") == "69"


@pytest.mark.timeout(300)
def test_every_message_of_a_shell_arrives_and_another_instance_sleeps_meanwhile(
    nannyd: NannydFactory,
) -> None:
    """With --no-block, systemd-notify has often ended when its message is read: it still was the worker's."""
    idle = nannyd("[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n", name="idle")
    script = """
        number=0
        while [ $number -lt 1000 ]; do
            systemd-notify --no-block --ready --status="message $((number + 1))" || echo failed
            systemd-notify --ready --status="message $((number + 2))" || echo failed
            number=$((number + 2))
        done
        echo through
        exec sleep 99
    """
    began, before = time.monotonic(), switches(idle.main_pid)
    busy = nannyd(f'[worker]\ncommand = {shell(script)}\nready = "notify"\n')
    busy.journal.wait_for("through", busy.name, timeout=240)
    wait_until(lambda: busy.status.endswith("; worker: message 1000"), "the last message")
    assert not busy.events("foreign-message")
    assert busy.journal.messages(busy.name, SYSLOG_IDENTIFIER="w") == ["through"]
    seconds, woken = time.monotonic() - began, switches(idle.main_pid) - before
    print(f"idle supervisor: {woken} wake-ups in {seconds:.0f} s")
    assert woken <= 5 + seconds / 15  # what belongs to the start, the watchdog's


def test_what_strangers_say_is_not_heard_although_they_are_gone(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\ncommand = {shell('exec sleep 99')}\n")
    environ = Path(f"/proc/{instance.worker}/environ").read_bytes().split(b"\0")
    address = next(line for line in environ if line.startswith(b"NOTIFY_SOCKET=")).decode()
    for _ in range(20):
        run_command("env", address, "systemd-notify", "--no-block", "--status=a stranger")
    wait_until(lambda: len(instance.events("foreign-message")) == 20, "all of them in the journal")
    assert "stranger" not in instance.status
