"""The supervisors to compare, each of them as a process that keeps one worker running.

Entering one starts it; leaving it ends it and whatever it started, and nothing else.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from . import procs
from .procs import BenchmarkError, Births

STOP_TIMEOUT = 10.0
WORKER_LIMIT = "400MiB"
SOURCES = Path(__file__).parent


class Peer:
    """A supervisor in a directory of its own."""

    name: ClassVar[str]
    """The column of the table."""
    uptime: ClassVar[float] = 1.3
    """Seconds a worker has to live before its end counts as the end of a sound worker."""
    at_rest: ClassVar[int] = 1
    """How many processes of its own are always there."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        """Prepare to run in *directory*, with *environ* added to the environment."""
        self.directory = directory
        self.within: Sequence[str] = ()
        """What its command line is put after: a program that executes it elsewhere."""
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "log"

    def command(self) -> Sequence[str | Path]:
        """Return the command line; files that it names are written now."""
        raise NotImplementedError

    def errors(self) -> int | IO[bytes]:
        """Return where standard error goes."""
        return subprocess.STDOUT

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        command = [*self.within, *self.command()]
        # Scratch and runtime files of all of them stay in here.
        own = {"TMPDIR": str(self.directory), "RUNTIME_DIRECTORY": str(self.directory / "run")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**os.environ, **own, **self._environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=self.errors(),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it politely; kill what is left of its tree, found and held before."""
        process = self._process
        if process is None:
            return
        if error is not None:
            error.add_note(f"the end of {self._log}:\n{self._log.read_text(errors='replace')[-2000:]}")
        held = [fd for fd in map(_hold, procs.descendants(process.pid)) if fd is not None]
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        process.kill()
        process.wait()
        for pidfd in held:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None, "enter it first"
        if self._process.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with {self._process.returncode}")
        return self._process.pid

    def ended(self, timeout: float) -> int | None:
        """Wait until it ends by itself; return its exit status, or None where it does not."""
        assert self._process is not None, "enter it first"
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def own(self) -> list[int]:
        """Return the processes that are there to supervise: not the worker."""
        return [self.pid]

    def worker(self) -> int:
        """Return the worker's process."""
        return procs.until(self._newest_worker, f"a worker of {self.name}")

    def _newest_worker(self) -> int | None:
        return max((pid for pid in procs.children(self.pid) if not procs.is_zombie(pid)), default=None)


class Nannyd(Peer):
    """This project."""

    name = "nannyd"
    uptime = 0.1

    def __init__(
        self, directory: Path, command: Sequence[str | Path], settings: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Supervise *command*; without *settings* memory is not limited."""
        super().__init__(directory, environ)
        self._worker = list(command)
        self.settings = {
            "memory.limit": "none",
            "memory.mode": "poll",
            "restart.delay": "0",
            "restart.start-limit-burst": "0",
            **(settings or {}),
        }

    def own(self) -> list[int]:
        """Return the supervisor, and the agent if there is one."""
        return [self.pid, *filter(self._is_agent, procs.children(self.pid))]

    def _is_agent(self, pid: int) -> bool:
        return procs.command_line(pid).endswith(" bench agent ")

    def _newest_worker(self) -> int | None:
        found = (pid for pid in procs.children(self.pid) if not procs.is_zombie(pid))
        return max((pid for pid in found if not self._is_agent(pid)), default=None)

    def command(self) -> Sequence[str | Path]:
        """Return the command line."""
        (self.directory / "etc").mkdir()
        options = [f"--{key}={value}" for key, value in self.settings.items()]
        options.append(f"--config-dir={self.directory / 'etc'}")
        after = ["--", *self._worker] if self._worker else []
        return [sys.executable, "-m", "nannyd", "run", "bench", *options, *after]


class Supervisord(Peer):
    """supervisor's daemon in the foreground, with one program and its control socket."""

    name = "supervisord"

    def __init__(self, directory: Path, command: Sequence[str | Path]) -> None:
        """Supervise *command*."""
        super().__init__(directory)
        self._worker = command

    def command(self) -> Sequence[str | Path]:
        """Return the command line."""
        path = self.directory / "supervisord.conf"
        path.write_text(f"""\
[unix_http_server]
file={self.directory}/socket
[supervisord]
nodaemon=true
pidfile={self.directory}/pid
logfile={self.directory}/supervisord.log
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:worker]
command={" ".join(map(str, self._worker))}
autorestart=true
""")
        return [sys.executable, "-m", "supervisor.supervisord", "-c", path]


class Circusd(Peer):
    """circus with one watcher."""

    name = "circusd"

    def __init__(self, directory: Path, command: Sequence[str | Path]) -> None:
        """Supervise *command*."""
        super().__init__(directory)
        self._worker = command

    def command(self) -> Sequence[str | Path]:
        """Return the command line."""
        path = self.directory / "circus.ini"
        path.write_text(f"""\
[circus]
endpoint = ipc://{self.directory}/endpoint
pubsub_endpoint = ipc://{self.directory}/pubsub
[watcher:worker]
cmd = {" ".join(map(str, self._worker))}
copy_env = True
""")
        return [sys.executable, "-m", "circus.circusd", path]


class Scheduler(Peer):
    """The scheduler that the Nanny's worker reports to; it tells when a worker has registered."""

    name = "scheduler"

    def __init__(
        self, directory: Path, registered: Births, environ: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        """Tell *registered*."""
        super().__init__(directory, environ)
        self._host = host
        self._registered = registered

    def command(self) -> Sequence[str | Path]:
        """Return the command line."""
        return [
            sys.executable,
            "-P",
            SOURCES / "dask_peer.py",
            "scheduler",
            self._file,
            self._registered.path,
            self._host,
        ]

    @property
    def _file(self) -> Path:
        return self.directory / "address"

    def address(self) -> str:
        """Return where it listens."""
        return procs.until(self._address, "the scheduler to listen")

    def _address(self) -> str | None:
        return self._file.read_text() if self.pid and self._file.exists() else None


class Nanny(Peer):
    """`distributed.Nanny` of the installed release, alone in its process as with `dask worker`."""

    name = "Nanny"
    uptime = 0.3
    at_rest = 2

    def __init__(
        self, directory: Path, scheduler: str, births: Births | None = None, first: Path | None = None,
        preload: Path | None = None, environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start workers through *first*, which tells *births*; *preload* runs in them."""
        super().__init__(directory, environ)
        self._arguments: list[str | Path] = [scheduler, WORKER_LIMIT, preload or ""]
        if births is not None and first is not None:
            self._environ |= {"BENCH_FIFO": str(births.path), "BENCH_EXEC": sys.executable}
            self._arguments.append(first)

    def command(self) -> Sequence[str | Path]:
        """Return the command line."""
        return [sys.executable, "-P", SOURCES / "dask_peer.py", "nanny", *self._arguments]

    def own(self) -> list[int]:
        """Return the Nanny and multiprocessing's resource tracker, which it needs."""
        helpers = [pid for pid in procs.children(self.pid) if not self._is_worker(pid)]
        return [self.pid, *helpers]

    def _is_worker(self, pid: int) -> bool:
        return "spawn_main" in procs.command_line(pid)

    def _newest_worker(self) -> int | None:
        return max(filter(self._is_worker, procs.children(self.pid)), default=None)


def _hold(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
