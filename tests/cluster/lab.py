"""Real schedulers and clients of the versions of distributed that nannyd is to get along with."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import PATIENCE, send_signal
from system import debian

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Host, Nannyd

NEWEST = "newest"
VERSIONS = (NEWEST, "2024.12.1")
"""The newest of the package index, as the development environment has it, and that of Debian 13."""


class ClusterError(Exception):
    """The client's code raised this."""


def interpreter(version: str) -> str:
    """Return a Python that has this *version* of distributed."""
    if version == NEWEST:
        return sys.executable
    wanted = [f"dask=={version}", f"distributed=={version}"]
    directory = debian.cached(
        f"distributed-{version}", (sys.version_info[:2], wanted), lambda path: _install(path, wanted)
    )
    return str(directory / "bin" / "python")


def _install(directory: Path, wanted: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = str(directory / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    subprocess.run([python, "-m", "compileall", "-qq", directory / "lib"], check=True)


class Process:
    """A scheduler or a client: its pid, its end of the line, and its log."""

    def __init__(self, pid: int, line: socket.socket, log: Path) -> None:
        """Take over *line*."""
        self.pid = pid
        self.log = log
        self._line = line
        self._pidfd = os.pidfd_open(pid)

    def receive(self) -> bytes:
        """Return what it says next."""
        self._line.settimeout(1.5 * PATIENCE)  # the client waits for others, who have theirs
        try:
            data = self._line.recv(1 << 20)
        except ConnectionResetError:  # it had not read everything
            data = b""
        assert data, f"it has ended:\n{self.log.read_text()}"
        return data

    def send(self, data: bytes) -> None:
        """Say *data*."""
        self._line.sendall(data)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def await_end(self, within: float = PATIENCE) -> None:
        """Wait until it is gone."""
        gone = select.select([self._pidfd], [], [], within)[0]
        assert gone, f"process {self.pid} still lives:\n{self.log.read_text()}"

    def end(self) -> None:
        """Kill it, if it lives, and forget it."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.await_end()
        os.close(self._pidfd)
        self._line.close()


class Zygote:
    """Forks schedulers and clients of one version."""

    def __init__(self, version: str, python: str = "") -> None:
        """Import distributed; *python* has it where there is no need to look for one."""
        self.version = version
        self.python = python or interpreter(version)
        self._wishes, theirs = socket.socketpair()
        with theirs:
            program = str(Path(__file__).with_name("zygote.py"))
            fd = theirs.fileno()
            environ = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
            self._process = subprocess.Popen(
                [self.python, program, str(fd)], pass_fds=[fd], env=environ, stdin=subprocess.DEVNULL
            )

    def fork(self, role: str, log: Path, **wish: Any) -> Process:
        """Start a process."""
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as file:
            message = json.dumps({"role": role, **wish}).encode()
            socket.send_fds(self._wishes, [message], [theirs.fileno(), file.fileno()])
            pid = int(self._wishes.recv(100))
        return Process(pid, ours, log)

    def close(self) -> None:
        """End it."""
        self._wishes.close()
        assert self._process.wait(PATIENCE) == 0


class Cluster:
    """A scheduler, and a client that runs what a test wants it to."""

    def __init__(self, zygote: Zygote, directory: Path) -> None:
        """Start nothing yet; *directory* is for logs."""
        self.version = zygote.version
        self.python = zygote.python
        self.security: dict[str, Any] = {}
        self.address = ""
        self._zygote = zygote
        self._directory = directory
        self._scheduler: Process | None = None
        self._client: Process | None = None

    # The scheduler

    def start_scheduler(
        self,
        *,
        config: dict[str, Any] | None = None,
        security: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Start one; *config* is Dask's, *security* is for `Security`, also the client's."""
        assert self._scheduler is None
        self.security = security or {}
        log = self._directory / "scheduler.log"
        self._scheduler = self._zygote.fork(
            "scheduler", log, config=config or {}, security=self.security, options=options
        )
        self.address = self._scheduler.receive().decode()
        return self.address

    def end_scheduler(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGTERM closes it on purpose, which it tells its workers."""
        assert self._scheduler is not None
        self._scheduler.signal(number)
        self._scheduler.await_end()
        self._scheduler.end()
        self._scheduler = None
        if self._client is not None:  # it may be busy with looking for the scheduler
            self._client.end()
            self._client = None

    def restart_scheduler(self, number: signal.Signals = signal.SIGKILL, **options: Any) -> str:
        """End it and start another at the same address."""
        port = int(self.address.rpartition(":")[2])
        self.end_scheduler(number)
        return self.start_scheduler(security=self.security, port=port, **options)

    def scheduler_log(self) -> str:
        """Return what it has logged."""
        return (self._directory / "scheduler.log").read_text()

    # The client

    def run(self, code: str, **values: Any) -> Any:
        """Run *code* in the client's process and return what its last expression gives there.

        `client` is the Client, `distributed` and `dask` are imported, *values* and earlier names are there.
        """
        if self._client is None:
            log = self._directory / "client.log"
            self._client = self._zygote.fork(
                "client", log, config={}, security=self.security, address=self.address
            )
        self._client.send(pickle.dumps((textwrap.dedent(code), values)).hex().encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self._client.receive()
        error, value = pickle.loads(bytes.fromhex(answer.decode()))
        if error is not None:
            raise ClusterError(error)
        return value

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return what the scheduler knows of its workers: address → `name`, `nthreads`, `nanny`, `pid` …."""
        found: dict[str, dict[str, Any]] = self.run(
            """
            def workers(dask_scheduler):
                return {ws.address: {"name": ws.name, "nthreads": ws.nthreads, "nanny": ws.nanny,
                                     "memory_limit": ws.memory_limit, "resources": dict(ws.resources),
                                     "local_directory": ws.local_directory, "status": ws.status.name,
                                     "pid": ws.pid, "services": dict(ws.services)}
                        for ws in dask_scheduler.workers.values()}
            client.run_on_scheduler(workers)
            """
        )
        return found

    def wait_for_workers(
        self, count: int = 1, true: Callable[[dict[str, Any]], object] = lambda _: True
    ) -> dict[str, dict[str, Any]]:
        """Wait until exactly *count* workers of which *true* holds are registered, and return them."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = {address: worker for address, worker in self.workers().items() if true(worker)}
            if len(found) == count:
                return found
            assert time.monotonic() < deadline, f"{found} and not {count}:\n{self.scheduler_log()}"
            time.sleep(0.02)

    def events(self, topic: str = "nannyd") -> list[dict[str, Any]]:
        """Return what was logged under *topic*."""
        found = self.run("[event for _, event in client.get_events(topic)]", topic=topic)
        return list(found)

    def nannyd(self, host: Host, *arguments: str, **others: Any) -> Nannyd:
        """Run `nannyd run` with this cluster's interpreter and scheduler."""
        chosen = [f"--worker.python={self.python}", f"--dask.scheduler={self.address}"]
        return host(*chosen, *arguments, **others)

    def close(self) -> None:
        """End both."""
        for process in (self._client, self._scheduler):
            if process is not None:
                process.end()


def kill(pid: int) -> None:
    """Kill a worker as the kernel would."""
    send_signal(pid, signal.SIGKILL)
