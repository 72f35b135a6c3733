"""A real `nannyd run`, with a test in the place of the administrator, of systemd and of the log's reader.

Nothing here waits by the clock where something can be waited for: records and notifications are read by
threads that wake whoever waits, ends of processes are seen by pidfds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nannyd.core import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nannyd.core.exits import WaitStatus
    from nannyd.supervisor.spawn import Child

WORKERS = Path(__file__).parent.parent / "workers"
PATIENCE = 60.0
"""Seconds until a test gives up; half of what pytest gives it, for it to tell why."""
RUDE = [sys.executable, "-I", "-S", str(WORKERS / "rude.py")]
NOTIFY = """
[worker]
ready = "notify"
stop-timeout = "5s"
[memory]
limit = "none"
[restart]
delay = 0
jitter = 0
start-limit-burst = 0
"""
"""A worker that says when it is ready, and comes back at once, for ever."""
MARK = "HARNESS_INSTANCE"
"""A variable by which every process of an instance is found, whoever its parent has become."""

_UCRED = struct.Struct("3i")


def interpreters() -> list[str]:
    """Return every Python from 3.10 to 3.13 that PATH leads to, also through the shims of pyenv."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for version in ("3.10", "3.11", "3.12", "3.13"):
        program = shutil.which(f"python{version}")
        if program is None:
            continue
        installed = Path(program).parent.parent.glob(f"versions/{version}.*/bin/python{version}")
        for candidate in (program, *map(str, installed)):
            probe = subprocess.run([candidate, "-c", ""], capture_output=True)
            if probe.returncode == 0:
                found.setdefault(version, candidate)
    return [found[version] for version in sorted(found)]


# --- Processes ----------------------------------------------------------------------------------------


_HOLDER = """
import socket, sys
lines = []
for _ in range(int(sys.argv[2])):
    lines.append(socket.socket(socket.AF_UNIX))
    lines[-1].connect(sys.argv[1])
for line in lines:
    try:
        line.sendall(b'{"method": "org.varlink.service.GetInfo"}\\0')
        line.recv(1)
    except OSError:
        pass
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def connected(path: Path, count: int) -> Iterator[None]:
    """Let a process of its own open *count* connections, and keep those that it is let have."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _HOLDER, path, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield
        holder.kill()


def stat_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (state) on; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid: int) -> bool:
    """Say whether *pid* is there and no zombie."""
    fields = stat_of(pid)
    return bool(fields) and fields[0] not in "ZX"


def parent_of(pid: int) -> int | None:
    """Return the parent of *pid*."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else None


def children_of(pid: int, states: str = "RSDTt") -> list[int]:
    """Return the children of *pid* that are in one of *states*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat_of(int(entry.name))
            if fields and fields[0] in states and int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def zombies_of(pid: int) -> list[int]:
    """Return the children of *pid* that it has not reaped."""
    return children_of(pid, "Z")


def environ_of(pid: int) -> dict[str, str]:
    """Return the environment that *pid* was executed with."""
    text = ""

    def is_there() -> bool:
        # Whoever waits for an execve(2) may be told of it a moment before this file shows anything.
        nonlocal text
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
        return bool(text)

    eventually(is_there, f"process {pid} has an environment")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def command_line(pid: int) -> str:
    """Return the arguments of *pid*, joined by spaces; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")
    except OSError:
        return ""


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def catches(pid: int, number: int) -> bool:
    """Say whether *pid* has a handler for signal *number*."""
    return bool(int(status_of(pid)["SigCgt"], 16) >> (number - 1) & 1)


def blocks(pid: int, number: int) -> bool:
    """Say whether *pid* blocks signal *number*."""
    return bool(int(status_of(pid)["SigBlk"], 16) >> (number - 1) & 1)


def descriptors_of(pid: int) -> dict[int, str]:
    """Return what the open descriptors of *pid* refer to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def processes_marked(mark: str) -> list[int]:
    """Return the living processes whose environment carries *mark*."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and lives(int(entry.name)):
                    found.append(int(entry.name))
    return found


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that is there; who is to stop has stopped then, with each of its threads."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)
    if number == signal.SIGSTOP:
        eventually(lambda: not _running_threads(pid), f"{pid} has stopped")


def _running_threads(pid: int) -> list[int]:
    running = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            if status_of(int(thread.name))["State"][0] not in "TtZX":
                running.append(int(thread.name))
    return running


def await_end(pid: int, within: float = PATIENCE) -> None:
    """Wait until *pid* is no more, or a zombie."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], within)[0], f"process {pid} still lives after {within} s"
    finally:
        os.close(pidfd)


def end_of(child: Child) -> WaitStatus:
    """Wait for the end of *child* by its pidfd, and give that back."""
    assert select.select([child.pidfd], [], [], PATIENCE)[0], f"process {child.pid} still lives"
    status = child.reap()
    assert status is not None
    assert child.reap() == status
    child.signal(signal.SIGTERM)  # nobody there: no error
    child.close()
    return status


def eventually(true: Callable[[], object], what: str, within: float = PATIENCE) -> None:
    """Look every 10 ms until *true*; for what nobody announces."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.01)


ESCAPES = (
    (["--double-fork"], 2),
    (["--setsid"], 2),
    (["--double-fork", "--setsid", "--fork-and-leave", "5"], 6),
    (["--fork-tree", "30"], 31),
    (["--ignore-sigterm", "--fork-tree", "6"], 7),
)
"""What processes of a rude worker do to escape, and how many they are then."""


def printed(pids: Path, count: int) -> list[int]:
    """Return the pids that *count* processes of a rude worker have written to a file."""
    eventually(lambda: pids.exists() and len(pids.read_text().split()) >= count, "all have printed")
    return sorted(map(int, pids.read_text().split()))


def read_lines(path: Path) -> list[str]:
    """Return the lines of *path*, none where it is not there (yet)."""
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


# --- systemd ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """What nannyd said to its manager at once."""

    at: float
    """Monotonic seconds."""
    pid: int
    fields: dict[str, str]


class Systemd:
    """The manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        """Listen at *path*."""
        self.path = path
        self.messages: list[Message] = []
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(1 << 17, socket.CMSG_SPACE(_UCRED.size))
            pid = next((_UCRED.unpack(d)[0] for _, kind, d in ancillary if kind == socket.SCM_CREDENTIALS), 0)
            if pid == os.getpid() and data == b"CLOSE":
                return
            with self._news:
                self.messages.append(Message(time.monotonic(), pid, wire.parse(data)))
                self._news.notify_all()

    def wait_for(
        self, key: str, value: str | None = None, *, after: int = 0, within: float = PATIENCE
    ) -> Message:
        """Return the first message from number *after* on with *key* (and *value*: of a STATUS, a part)."""

        def found() -> Message | None:
            for message in self.messages[after:]:
                said = message.fields.get(key)
                if said is not None and (
                    value is None or said == value or (key == "STATUS" and value in said)
                ):
                    return message
            return None

        with self._news:
            self._news.wait_for(lambda: found() is not None, within)
            message = found()
        assert message is not None, f"systemd was not told {key}={value or '…'}: {self.said()}"
        return message

    def read_all(self) -> int:
        """Read all that was said up to now and a word of our own behind it; return how many that are."""
        mark = uuid.uuid4().hex
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(f"MARK={mark}".encode(), str(self.path))
        return self.messages.index(self.wait_for("MARK", mark)) + 1

    def all(self, key: str) -> list[str]:
        """Return every value of *key* that was told, in order."""
        return [message.fields[key] for message in self.messages if key in message.fields]

    def said(self) -> list[dict[str, str]]:
        """Return everything that was told."""
        return [message.fields for message in self.messages]

    def close(self) -> None:
        """Stop listening."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"CLOSE", str(self.path))
        self._thread.join(PATIENCE)
        self._socket.close()
        self.path.unlink()


# --- The control socket -------------------------------------------------------------------------------


class Caller:
    """One connection to a control socket."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._received = b""

    def send(
        self,
        method: str,
        parameters: dict[str, Any] | None = None,
        descriptors: Sequence[int] = (),
        **flags: bool,
    ) -> None:
        """Send a call, with *descriptors*; a *method* without an interface is one of io.nannyd.Nanny."""
        name = method if "." in method else f"io.nannyd.Nanny.{method}"
        message = {"method": name, "parameters": parameters or {}, **flags}
        socket.send_fds(self.socket, [json.dumps(message).encode() + b"\0"], descriptors)

    def receive(self) -> dict[str, Any]:
        """Return the next reply."""
        while b"\0" not in self._received:
            chunk = self.socket.recv(1 << 16)
            if not chunk:
                raise ConnectionResetError("nannyd has closed the connection")
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        reply: dict[str, Any] = json.loads(message)
        return reply

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call and return the whole reply."""
        self.send(method, parameters)
        return self.receive()

    def get(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call what cannot fail, and return the reply's parameters."""
        reply = self.call(method, **parameters)
        assert "error" not in reply, reply
        found: dict[str, Any] = reply["parameters"]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


# --- nannyd -------------------------------------------------------------------------------------------

Record = dict[str, Any]


@dataclass
class Home:
    """The directories of one test, and what is in the environment of everything it starts."""

    base: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def make(cls) -> Self:
        """Make one with a short path: the kernel takes 107 bytes for that of a socket."""
        home = cls(Path(tempfile.mkdtemp(prefix="nannyd-test-")))
        for path in (home.config, home.state, home.tmp, home.run):
            path.mkdir()
        return home

    @property
    def config(self) -> Path:
        """--config-dir."""
        return self.base / "etc"

    @property
    def state(self) -> Path:
        """$STATE_DIRECTORY."""
        return self.base / "state"

    @property
    def tmp(self) -> Path:
        """$TMPDIR."""
        return self.base / "tmp"

    @property
    def run(self) -> Path:
        """$RUNTIME_DIRECTORY."""
        return self.base / "run"

    @property
    def scratch(self) -> Path:
        """Where scratch directories are made."""
        return self.state / "scratch"

    def environ(self) -> dict[str, str]:
        """Return a small environment in which nothing of ours is met but what a test wants."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.base),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(WORKERS),
            "RUNTIME_DIRECTORY": str(self.run),
            "STATE_DIRECTORY": str(self.state),
            "TMPDIR": str(self.tmp),
            MARK: self.mark,
        }

    def scratch_left(self) -> list[Path]:
        """Return what is left of scratch directories, wherever a test had them made."""
        return list(self.base.rglob("worker-*-*"))

    def sockets_left(self) -> list[Path]:
        """Return the names of sockets that are left."""
        return [path for path in self.base.rglob("*") if path.is_socket()]


class Nannyd:
    """One `nannyd run`."""

    def __init__(
        self,
        home: Home,
        name: str,
        arguments: list[str],
        environ: dict[str, str],
        systemd: Systemd | None,
        *,
        stdout: int | None = None,
        stderr: int | None = None,
        python: str = sys.executable,
        working_directory: Path | None = None,
    ) -> None:
        """Start it.  *stderr* given: no records are read."""
        self.home = home
        self.name = name
        self.environ = environ
        self._systemd = systemd
        self.records: list[Record] = []
        self.noise: list[str] = []
        """Lines on standard error that are no records: the worker's, and the interpreter's complaints."""
        self._seen = 0
        self._said_all = stderr is not None
        self._news = threading.Condition()
        self.stdout = home.base / f"stdout-{uuid.uuid4().hex[:6]}"
        with self.stdout.open("wb") as file:
            self.process = subprocess.Popen(
                [python, "-m", "nannyd", "run", name, *arguments],
                env=environ,
                cwd=working_directory or home.base,
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=subprocess.PIPE if stderr is None else stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        if stderr is None:
            self._reader.start()

    def _read(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        for line in stream:
            record = None
            with contextlib.suppress(ValueError):
                record = json.loads(line)
            with self._news:
                if isinstance(record, dict) and "level" in record:
                    self.records.append(record)
                else:
                    self.noise.append(line.decode(errors="replace"))
                self._news.notify_all()
        with self._news:
            self._said_all = True
            self._news.notify_all()

    # What it says

    @property
    def systemd(self) -> Systemd:
        """The manager it was started with."""
        assert self._systemd is not None
        return self._systemd

    def wait_for(self, event: str, within: float = PATIENCE, **fields: Any) -> Record:
        """Return the next record of *event* with *fields*, after the one that was waited for last."""
        deadline = time.monotonic() + within
        with self._news:
            while True:
                for index in range(self._seen, len(self.records)):
                    record = self.records[index]
                    if record.get("nannyd_event") == event and fields.items() <= record.items():
                        self._seen = index + 1
                        return record
                left = deadline - time.monotonic()
                if left <= 0 or self._said_all:
                    break
                self._news.wait(left)
        raise AssertionError(f"no {event} {fields or ''} within {within} s{self.story()}")

    def story(self) -> str:
        """Return what happened, for the message of a failed test."""
        told = [str(record.get("message")) for record in self.records]
        return f"; exit status {self.process.poll()}, said:\n  " + "\n  ".join([*told, *self.noise])

    def events(self) -> list[str]:
        """Return the events told so far, in order."""
        return [str(record.get("nannyd_event")) for record in self.records]

    def all(self, event: str) -> list[Record]:
        """Return all records of *event*."""
        return [record for record in self.records if record.get("nannyd_event") == event]

    def started(self, within: float = PATIENCE) -> int:
        """Wait for the next start of a worker and return its pid."""
        return int(self.wait_for("worker-started", within)["worker_pid"])

    def ready(self, within: float = PATIENCE) -> int:
        """Wait until the next worker is ready and return its pid."""
        return int(self.wait_for("worker-ready", within)["worker_pid"])

    # What is done to it

    def signal(self, number: int) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def insist(self, number: int) -> None:
        """Send it a signal again and again, until it kills its worker: a second one at once is an echo."""

        def kills() -> bool:
            with contextlib.suppress(ProcessLookupError):
                self.signal(number)
            return "killing-worker" in self.events()

        eventually(kills, "the worker is killed")

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end and return the exit status."""
        ended = select.select([self._pidfd], [], [], within)[0]
        assert ended, f"nannyd still runs after {within} s{self.story()}"
        status = self.process.wait()
        if self._reader.ident is not None and status >= 0:
            self._reader.join(within)  # of one that was not killed nobody is left who could have more to say
        return status

    def stop(self, within: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def crash(self) -> None:
        """Send SIGKILL and wait."""
        self.signal(signal.SIGKILL)
        self.wait()

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Run `nannyd reload`."""
        command = [sys.executable, "-m", "nannyd", "reload", self.name]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=PATIENCE)

    @property
    def socket(self) -> Path:
        """The control socket."""
        return Path(self.environ["RUNTIME_DIRECTORY"]) / "control"

    def connect(self) -> Caller:
        """Connect to the control socket."""
        return Caller(self.socket)

    def close(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()
        for pid in processes_marked(self.home.mark):
            with contextlib.suppress(ProcessLookupError):
                send_signal(pid, signal.SIGKILL)
        if self.process.stderr is not None:
            self._reader.join(PATIENCE)
            self.process.stderr.close()
        os.close(self._pidfd)


class Host:
    """Starts instances of nannyd in one home, and looks whether they leave it as they found it."""

    def __init__(self) -> None:
        """Make the home."""
        self.home = Home.make()
        self.systemd: Systemd | None = None
        self.runs: list[Nannyd] = []
        self.expect_records: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wrong = self.finish()
        assert not wrong, "\n".join(wrong)

    def write_config(self, text: str, name: str = "t") -> None:
        """Write NAME.toml whole: a reload never sees half of it."""
        half = self.home.config / f"{name}.part"
        half.write_text(text)
        half.rename(self.home.config / f"{name}.toml")

    def __call__(
        self,
        *arguments: str,
        name: str = "t",
        config: str | None = None,
        environ: dict[str, str | None] | None = None,
        systemd: bool = False,
        log_format: str | None = "json",
        **streams: Any,
    ) -> Nannyd:
        """Run `nannyd run NAME` with *arguments* and, in its file, *config*; None in *environ* unsets."""
        if config is not None:
            self.write_config(config, name)
        variables: dict[str, str | None] = {**self.home.environ()}
        if systemd:
            if self.systemd is None:
                self.systemd = Systemd(self.home.base / "manager")
            variables["NOTIFY_SOCKET"] = str(self.systemd.path)
        variables |= environ or {}
        options = ["--config-dir", str(self.home.config)]
        options += [] if log_format is None else ["--log-format", log_format]
        run = Nannyd(
            self.home,
            name,
            [*options, *arguments],
            {key: value for key, value in variables.items() if value is not None},
            self.systemd if systemd else None,
            **streams,
        )
        self.runs.append(run)
        return run

    def rude(self, *arguments: str, vices: str, **others: Any) -> Nannyd:
        """Run with the worker `rude.py` and its *vices*."""
        return self(*arguments, "--", *RUDE, *vices.split(), **others)

    def finish(self) -> list[str]:
        """Stop what still runs, clean up, and return what nannyd did not leave as it should."""
        wrong: list[str] = []
        for run in self.runs:
            if run.process.poll() is None:
                try:
                    run.stop(60)
                except AssertionError as error:
                    wrong.append(str(error))
        wrong += [f"process left: {_words(pid)}" for pid in processes_marked(self.home.mark)]
        if self.systemd is not None:
            self.systemd.close()
        wrong += [f"socket left: {path}" for path in self.home.sockets_left()]
        wrong += [f"scratch directory left: {path}" for path in self.home.scratch_left()]
        for run in self.runs:
            wrong += self._unexpected(run)
            run.close()
        subprocess.run(["rm", "-rf", "--", str(self.home.base)], check=True)
        return wrong

    def _unexpected(self, run: Nannyd) -> Iterator[str]:
        for record in run.records:
            event = record.get("nannyd_event")
            if event in (None, "internal-error", "scratch-failed") and event not in self.expect_records:
                yield f"unexpected record: {record}"
        text = "".join(run.noise)
        if "/nannyd/supervisor/" in text or "Exception ignored" in text:
            yield f"the supervisor complains: {text}"


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
    return str(pid)
