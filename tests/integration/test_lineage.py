"""Real processes of a worker whose nannyd is no subreaper: found by session, mark and descent."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ESCAPES, end_of, eventually, printed

from nannyd.core.exits import WaitStatus
from nannyd.supervisor.lineage import Lineage
from nannyd.supervisor.spawn import Child, Program, spawn

RUDE = str(Path(__file__).parents[1] / "workers" / "rude.py")


@pytest.fixture
def lineage(tmp_path: Path) -> Iterator[Lineage]:
    loop = asyncio.new_event_loop()
    lineage = Lineage(loop, f"NANNYD_LOCAL_DIRECTORY={tmp_path}\0")
    yield lineage
    lineage.kill()
    eventually(lineage.is_empty, "nobody is left")
    lineage.close()
    loop.close()


def start(lineage: Lineage, directory: Path, *argv: str) -> Child:
    environ = {"PATH": "/usr/bin:/bin", "NANNYD_LOCAL_DIRECTORY": str(directory)}
    child = spawn(Program(argv, environ, None, None, None, None, stdout=1, stderr=2), None)
    lineage.begin(child.pid)
    return child


def rude(lineage: Lineage, directory: Path, *vices: str) -> Child:
    return start(
        lineage, directory, sys.executable, "-I", "-S", RUDE, "--print-pids", str(directory / "pids"), *vices
    )


@pytest.mark.parametrize(("vices", "count"), ESCAPES)
def test_nobody_escapes(lineage: Lineage, tmp_path: Path, vices: list[str], count: int) -> None:
    child = rude(lineage, tmp_path, *vices)
    everyone = printed(tmp_path / "pids", count)
    assert not lineage.is_empty()
    eventually(lambda: sorted(lineage.pids()) == everyone, "everyone is known")
    assert all(lineage.contains(pid) for pid in everyone)
    lineage.kill()
    assert end_of(child) == WaitStatus(signal=9)
    eventually(lineage.is_empty, "nobody is left")
    assert lineage.contains(child.pid) is None


def test_orphans_outlive_their_worker_until_they_are_killed(lineage: Lineage, tmp_path: Path) -> None:
    child = rude(lineage, tmp_path, "--fork-and-leave", "2", "--setsid", "--exit-status", "0")
    orphans = [pid for pid in printed(tmp_path / "pids", 3) if pid != child.pid]
    assert end_of(child) == WaitStatus(code=0)
    told: list[bool] = []
    lineage.watch_empty(lambda: told.append(True))
    assert sorted(lineage.pids()) == orphans
    assert told == []
    lineage.kill()
    eventually(lineage.is_empty, "nobody is left")
    lineage.watch_empty(lambda: told.append(True))
    assert told == [True]


def test_one_that_was_seen_stays_one_without_session_mark_and_parent(
    lineage: Lineage, tmp_path: Path
) -> None:
    script = f"env -i setsid sleep 600 & echo $! > {tmp_path}/pids; sleep 600"
    child = start(lineage, tmp_path, "sh", "-c", script)
    (pid,) = printed(tmp_path / "pids", 1)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it is a program")
    assert pid in lineage.pids()
    child.signal(9)
    assert end_of(child) == WaitStatus(signal=9)
    assert pid in lineage.pids()


def test_others_are_none_of_them(lineage: Lineage, tmp_path: Path) -> None:
    child = start(lineage, tmp_path, "sleep", "600")
    with subprocess.Popen(["sleep", "600"]) as other:
        assert lineage.contains(other.pid) is False
        assert lineage.contains(os.getpid()) is False
        assert lineage.contains(1) is False
        lineage.kill()
        assert end_of(child) == WaitStatus(signal=9)
        assert other.poll() is None
        other.kill()
