"""Programs that nobody here wrote, as workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from harness import (
    PATIENCE,
    Host,
    catches,
    children_of,
    eventually,
    lives,
    processes_marked,
    send_signal,
    stat_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where *program* is not installed; `make test` installs it where it may."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


# --- redis: notifies by sd_notify, forks to save -------------------------------------------------------

REDIS = """
[worker]
command = ["redis-server", "--supervised", "systemd", "--port", "0", "--unixsocket", "{socket}",
           "--dir", "{directory}", "--save", "", "--daemonize", "no"]
ready = "notify"
start-timeout = "60s"
stop-timeout = "60s"
[memory]
mode = "poll"
limit = "200M"
[restart]
delay = 0
"""


class Redis:
    """A client of so many words as are needed."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))

    def say(self, line: str) -> str:
        """Send an inline command and return the first line of the answer."""
        self._socket.sendall(line.encode() + b"\r\n")
        return self._socket.recv(1 << 16).decode().split("\r\n")[0]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@pytest.fixture
def redis_config(nannyd: Host) -> Iterator[Path]:
    """Write the configuration and return the path of redis's socket."""
    path = nannyd.home.base / "redis"
    nannyd.write_config(REDIS.format(socket=path, directory=nannyd.home.tmp))
    yield path
    path.unlink(missing_ok=True)  # who is killed leaves it


@needs("redis-server")
def test_redis_says_itself_when_it_is_ready_and_stops_when_asked(nannyd: Host, redis_config: Path) -> None:
    run = nannyd(systemd=True)
    run.ready()
    client = Redis(redis_config)  # ready means ready
    assert client.say("PING") == "+PONG"
    client.close()
    run.systemd.wait_for("STATUS", "worker: Ready to accept connections")
    assert run.stop() == 0
    ended = run.wait_for("worker-ended")
    assert (ended["result"], ended["who"], ended["exit_status"]) == ("success", "nannyd", 0)
    assert "Redis is now ready to exit, bye bye" in run.stdout.read_text()


@needs("redis-server")
def test_redis_that_grows_too_large_is_ended_and_started_anew(nannyd: Host, redis_config: Path) -> None:
    run = nannyd()
    first = run.ready()
    client = Redis(redis_config)
    client.say(f"SETRANGE large {193 * MIB} x")
    client.close()
    verdict = run.wait_for("memory-terminate", worker_pid=first)
    assert f"redis-server {first} " in verdict["largest"]
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["exit_status"]) == ("memory", 0)
    assert run.ready() != first
    client = Redis(redis_config)
    assert client.say("EXISTS large") == ":0"
    client.close()
    assert run.stop() == 0


@needs("redis-server")
def test_redis_that_is_killed_comes_back(nannyd: Host, redis_config: Path) -> None:
    run = nannyd()
    send_signal(run.ready(), 9)
    assert run.wait_for("worker-failed")["who"] == "outside"
    run.ready()
    client = Redis(redis_config)
    assert client.say("PING") == "+PONG"
    client.close()
    assert run.stop() == 0


# --- stress-ng: forks stressors, in sessions of their own, that allocate as fast as they can -----------


@needs("stress-ng")
def test_stress_ng_meets_the_limit_and_all_its_stressors_are_gone(nannyd: Host) -> None:
    stress = [
        "stress-ng",
        "--vm",
        "2",
        "--vm-bytes",
        "400M",
        "--vm-keep",
        "--temp-path",
        str(nannyd.home.tmp),
    ]
    options = ["--memory.mode=poll", "--memory.limit=150M", "--restart.mode=no", "--worker.stop-timeout=5s"]
    run = nannyd(*options, "--", *stress)
    pid = run.ready()
    eventually(lambda: len(children_of(pid)) >= 1, "it has stressors")
    run.wait_for("memory-terminate")
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"]) == ("memory", "nannyd")
    assert run.wait() == 1
    assert processes_marked(nannyd.home.mark) == []


def computes(pid: int) -> bool:
    """Say whether a process has been busy for some tenths of a second."""
    fields = stat_of(pid)
    return bool(fields) and int(fields[11]) > 20  # utime, in hundredths


@needs("stress-ng")
def test_stress_ng_stops_when_asked(nannyd: Host) -> None:
    stress = ["stress-ng", "--cpu", "2", "--temp-path", str(nannyd.home.tmp)]
    run = nannyd("--memory.limit=none", "--", *stress)
    pid = run.ready()
    # One that is asked within moments calls its run unsuccessful (2), as it may.
    eventually(lambda: [computes(child) for child in children_of(pid)] == [True] * 2, "they compute")
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["result"] == "success"


# --- gunicorn: a master with workers, which it forks again when they die -------------------------------

APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def _get(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := sock.recv(1 << 16):
            answer += chunk
    return answer


def _gunicorn(nannyd: Host, *options: str) -> tuple[list[str], Path]:
    pytest.importorskip("gunicorn")
    (nannyd.home.base / "application.py").write_text(APPLICATION)
    path = nannyd.home.base / "gunicorn"
    arguments = [
        "--workers",
        "3",
        "--bind",
        f"unix:{path}",
        "--chdir",
        str(nannyd.home.base),
        "--no-control-socket",
    ]
    return [*options, "--", sys.executable, "-m", "gunicorn", *arguments, "application"], path


def _workers_of(master: int) -> list[int]:
    """Return gunicorn's workers when all have their handlers: before, a SIGTERM would be lost on them."""

    def all_up() -> bool:
        workers = children_of(master)
        return len(workers) == 3 and all(catches(pid, signal.SIGABRT) for pid in workers)

    eventually(all_up, "gunicorn has its workers")
    return children_of(master)


@pytest.mark.parametrize("mode", ["mixed", "control-group"])
def test_gunicorns_workers_are_gone_when_it_has_stopped(nannyd: Host, mode: str) -> None:
    command, path = _gunicorn(nannyd, f"--worker.kill-mode={mode}", "--worker.stop-timeout=60s")
    run = nannyd(*command)
    master = run.ready()
    workers = _workers_of(master)
    assert _get(path).endswith(b"ok")
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["result"] == "success"
    assert not any(lives(pid) for pid in workers)
    path.unlink(missing_ok=True)


def test_gunicorns_workers_do_not_outlive_their_master(nannyd: Host) -> None:
    command, path = _gunicorn(nannyd, "--restart.delay=0", "--worker.stop-timeout=5s")
    run = nannyd(*command)
    master = run.ready()
    workers = _workers_of(master)
    send_signal(master, 9)
    following = run.ready()
    assert following != master
    assert not any(lives(pid) for pid in workers)
    _workers_of(following)
    eventually(lambda: path.exists() and b"ok" in _answer(path), "the next one serves")
    assert run.stop() == 0
    path.unlink(missing_ok=True)


def _answer(path: Path) -> bytes:
    try:
        return _get(path)
    except ConnectionRefusedError:  # the name is the former master's
        return b""


# --- Everyday ones -------------------------------------------------------------------------------------


def test_a_python_http_server_serves_and_stops(nannyd: Host) -> None:
    script = (
        "import http.server, os, socket\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "notify.sendto(f'READY=1\\nSTATUS=port {server.server_port}'.encode(), os.environ['NOTIFY_SOCKET'])\n"
        "server.serve_forever()\n"
    )
    run = nannyd("--worker.ready=notify", "--", sys.executable, "-c", script, systemd=True)
    run.ready()
    status = run.systemd.wait_for("STATUS", "worker: port ").fields["STATUS"]
    with socket.create_connection(("127.0.0.1", int(status.rpartition(" ")[2])), timeout=PATIENCE) as sock:
        sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.0 200")
    assert run.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_program_that_changes_its_user_is_still_the_workers(nannyd: Host) -> None:
    script = (
        "import os, signal; os.setgid(65534); os.setuid(65534); print('changed', flush=True); signal.pause()"
    )
    run = nannyd("--", sys.executable, "-I", "-S", "-c", script)
    pid = run.ready()
    eventually(lambda: "changed" in run.stdout.read_text(), "it is another user's")
    assert run.stop() == 0
    assert not lives(pid)
