"""The rude child is as rude as it says: other tests rely on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUDE = Path(__file__).parent.parent / "workers" / "rude.py"
PATIENCE = 60.0


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the notify socket of all rude children of the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


@pytest.fixture
def rude(tmp_path: Path, notify: socket.socket) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a rude child; all of its descendants are killed in the end."""
    pids = tmp_path / "pids"
    pids.touch()
    started: list[subprocess.Popen[bytes]] = []

    def rude(*options: str, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(RUDE), *options, "--print-pids", str(pids)]
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), **environ}
        started.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE))
        return started[-1]

    yield rude
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    for pid in [int(line) for line in pids.read_text().split()]:
        if is_rude(pid):
            os.kill(pid, signal.SIGKILL)  # noqa: TID251 (it was just seen to be ours)


def is_rude(pid: int) -> bool:
    """Say whether *pid* lives and is a rude child."""
    try:
        return b"rude.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def descendants(tmp_path: Path, count: int) -> list[int]:
    """Wait for *count* descendants and return their pids."""
    deadline = time.monotonic() + PATIENCE
    while len(pids := [int(line) for line in (tmp_path / "pids").read_text().split()][1:]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pids


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--exit-status 3", 3),
        ("--die-after 0.05", 0),
        ("--die-after-ready 0.05 --exit-status 4", 4),
        ("--die-after 0.05 --never-ready --exit-status 5", 5),
        ("--signal-self SIGSEGV", -signal.SIGSEGV),
        ("--signal-self SIGTERM --ignore-sigterm", -signal.SIGTERM),
        ("--close-output --exit-status 3", 3),
    ],
)
def test_dies_as_told(rude: Callable[..., subprocess.Popen[bytes]], options: str, status: int) -> None:
    assert rude(*options.split()).wait(PATIENCE) == status


def test_is_ready_when_told(rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket) -> None:
    began = time.monotonic()
    rude("--ready-after", "0.3")
    assert notify.recv(100) == b"READY=1"
    assert time.monotonic() - began >= 0.3


def test_handles_sigterm_slowly(
    rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket, tmp_path: Path
) -> None:
    process = rude("--sigterm-handler", str(tmp_path / "marks"), "--sigterm-delay", "0.2", "--eat", "10M")
    notify.recv(100)
    began = time.monotonic()
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - began >= 0.2
    assert began <= float((tmp_path / "marks").read_text().removeprefix("SIGTERM ")) <= time.monotonic()


def test_ignores_sigterm(rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket) -> None:
    process = rude("--ignore-sigterm")
    notify.recv(100)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


def test_eats_at_the_rate_told(rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket) -> None:
    process = rude("--eat", "40M", "--rate", "100M")
    notify.recv(100)
    assert process.stdout is not None
    ate = re.search(rb"ate 41943040 bytes in ([\d.]+) s", process.stdout.readline())
    assert ate is not None
    assert float(ate[1]) >= 0.4
    assert 40 << 20 <= anonymous(process.pid) < 80 << 20


def test_begins_to_eat_when_told(rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket) -> None:
    process = rude("--at-usr1", "--eat", "40M")
    notify.recv(100)
    assert anonymous(process.pid) < 40 << 20
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert b"ate 41943040 bytes" in process.stdout.readline()
    assert anonymous(process.pid) >= 40 << 20


def test_leaves_children_that_are_nobodys(
    rude: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    options = ["--fork-and-leave", "2", "--double-fork", "--setsid", "--die-after-ready", "0.2"]
    process = rude(*options)
    pids = descendants(tmp_path, 2)
    assert process.wait(PATIENCE) == 0
    for pid in pids:
        assert is_rude(pid)
        assert os.getsid(pid) == pid
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        assert int(fields[1]) != process.pid


def test_forks_a_tree(rude: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    rude("--fork-tree", "5", "--eat-each", "5M")
    pids = descendants(tmp_path, 5)
    deadline = time.monotonic() + PATIENCE
    while not all(anonymous(pid) >= 5 << 20 for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shows_its_environment_and_when_it_began(
    rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket, tmp_path: Path
) -> None:
    before = time.monotonic()
    rude(
        "--print-environ", str(tmp_path / "environ"), "--exec-marker", str(tmp_path / "marks"), COLOUR="grün"
    )
    notify.recv(100)
    assert json.loads((tmp_path / "environ").read_text())["COLOUR"] == "grün"
    assert before <= float((tmp_path / "marks").read_text()) <= time.monotonic()


@pytest.mark.parametrize(("options", "fed"), [([], True), (["--hang-watchdog"], False)])
def test_feeds_the_watchdog_unless_told_not_to(
    rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket, options: list[str], *, fed: bool
) -> None:
    rude(*options, WATCHDOG_USEC="100000")
    assert notify.recv(100) == b"READY=1"
    notify.settimeout(0.3 if not fed else PATIENCE)
    if fed:
        assert [notify.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    else:
        with pytest.raises(TimeoutError):
            notify.recv(100)


def test_floods_what_reads_and_survives_what_does_not(
    rude: Callable[..., subprocess.Popen[bytes]], notify: socket.socket
) -> None:
    process = rude("--flood-log", "forever")
    notify.recv(100)
    assert process.stdout is not None
    assert len(process.stdout.read(1 << 20)) == 1 << 20
    process.stdout.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
