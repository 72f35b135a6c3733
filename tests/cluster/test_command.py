"""`python -m nannyd.dask`, the command line of `dask worker`, at a real scheduler."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, Home, await_end, processes_marked

from nannyd.core.errors import ExitCode

from .lab import kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lab import Cluster


class Command:
    """Starts the command in a home of its own."""

    def __init__(self, cluster: Cluster, home: Home) -> None:
        """Start nothing yet."""
        self.home = home
        self._cluster = cluster
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start it with *arguments*, for the interpreter of the cluster."""
        chosen = [f"--worker.python={self._cluster.python}", "--config-dir", str(self.home.config)]
        command = [sys.executable, "-P", "-m", "nannyd.dask", *arguments, *chosen, "--no-dashboard"]
        with (self.home.base / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.home.environ(), **(environ or {})},
                cwd=self.home.base,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        """Return what was said on standard error."""
        return (self.home.base / "log").read_text()

    def await_nobody(self) -> None:
        """Wait until nothing is left of all that was started."""
        self._wait_until(lambda: not processes_marked(self.home.mark))

    def await_words(self, words: str, count: int = 1) -> None:
        """Wait until the log has *words* for the *count*th time."""
        self._wait_until(lambda: self.log().count(words) == count)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


@pytest.fixture
def command(empty_cluster: Cluster) -> Iterator[Command]:
    """Return what starts the command; afterwards nothing is left of it."""
    command = Command(empty_cluster, Home.make())
    yield command
    for process in command.processes:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE)
    command.await_nobody()
    subprocess.run(["rm", "-rf", "--", str(command.home.base)], check=True)


def parent_of(pid: int) -> int:
    """Return the pid of the parent."""
    match = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def test_one_worker_is_supervised_by_the_very_process(cluster: Cluster, command: Command) -> None:
    process = command(cluster.address, "--name", "alice", "--nthreads=3", "--memory-limit", "400MB")
    ((_, worker),) = cluster.wait_for_workers().items()
    assert (worker["name"], worker["nthreads"], worker["memory_limit"]) == ("alice", 3, 400_000_000)
    assert parent_of(worker["pid"]) == process.pid
    process.terminate()
    assert process.wait(PATIENCE) == 0
    cluster.wait_for_workers(0)


def test_several_workers_are_one_command(cluster: Cluster, command: Command) -> None:
    pid_file = command.home.base / "pid"
    arguments = [
        "--nworkers=2",
        "--nthreads=1",
        "--name=7",
        "--resources",
        "GPU=2",
        "--pid-file",
        str(pid_file),
    ]
    process = command(cluster.address, *arguments)
    workers = cluster.wait_for_workers(2)
    assert {worker["name"] for worker in workers.values()} == {"7-0", "7-1"}
    assert {tuple(worker["resources"].items()) for worker in workers.values()} == {(("GPU", 2.0),)}
    assert len({worker["nanny"] for worker in workers.values()}) == 2
    assert pid_file.read_text() == f"{process.pid}\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert not pid_file.exists()
    cluster.wait_for_workers(0)


def test_workers_end_with_a_command_that_is_killed(cluster: Cluster, command: Command) -> None:
    process = command(cluster.address, "--nworkers=2", "--nthreads=1")
    cluster.wait_for_workers(2)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    command.await_nobody()
    cluster.wait_for_workers(0)


def test_one_that_fails_does_not_take_the_others_with_it(cluster: Cluster, command: Command) -> None:
    process = command(cluster.address, "--nworkers=2", "--nthreads=1", "--dask.reconnect=false")
    first, second = cluster.wait_for_workers(2).values()
    command.await_words(" is ready after ", 2)
    nanny = parent_of(first["pid"])
    kill(first["pid"])
    await_end(nanny)
    ((_, left),) = cluster.wait_for_workers(1).items()
    assert left["pid"] == second["pid"]
    assert process.poll() is None
    process.terminate()
    assert process.wait(PATIENCE) == ExitCode.WORKER_FAILED, command.log()


def test_the_scheduler_of_dasks_own_variable_is_found(cluster: Cluster, command: Command) -> None:
    command("--name=k8s", environ={"DASK_SCHEDULER_ADDRESS": cluster.address})
    ((_, worker),) = cluster.wait_for_workers().items()
    assert worker["name"] == "k8s"


def test_a_scheduler_that_does_not_come_is_an_exit_status(empty_cluster: Cluster, command: Command) -> None:
    process = command("tcp://127.0.0.1:1", "--death-timeout", "500ms")
    assert process.wait(PATIENCE) == ExitCode.NO_SCHEDULER, command.log()


@pytest.mark.parametrize("option", ["--pid-file", "--local-directory"])
def test_what_cannot_be_written_is_a_mistake(empty_cluster: Cluster, command: Command, option: str) -> None:
    (command.home.base / "file").touch()
    process = command("tcp://127.0.0.1:1", option, str(command.home.base / "file" / "x"))
    assert process.wait(PATIENCE) == 2
    assert f"argument {option}: {command.home.base}/file/x: Not a directory" in command.log()


def test_a_mistake_is_answered_as_any_other_of_nannyds(empty_cluster: Cluster, command: Command) -> None:
    process = command("tcp//127.0.0.1:1", "--interface=lo", "--host=x")
    assert process.wait(PATIENCE) == ExitCode.CONFIG
    assert "write for example tcp://10.0.0.1:8786" in command.log()
    assert "--dask.interface: stands beside dask.host" in command.log()
