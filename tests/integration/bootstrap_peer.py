"""The bootstrap of a Python worker, really started, with the test in the place of the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from harness import PATIENCE, WORKERS

from nannyd.core import wire
from nannyd.core.boot import boot_argv

if TYPE_CHECKING:
    from pathlib import Path


class Running:
    """A started worker, its channel, and what it has said."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, notify: socket.socket, stderr: Path
    ) -> None:
        """Take over process and sockets."""
        self.process = process
        self._stderr = stderr
        self.channel = channel
        self.notify = notify
        self.said: list[dict[str, str]] = []
        self.descriptors: list[int] = []
        """What came with what was said."""

    @classmethod
    def launch(
        cls,
        directory: str,
        base: Path,
        *,
        python: str = sys.executable,
        cwd: Path = WORKERS,
        target: str = "classes:Good",
        **environ: str,
    ) -> Self:
        """Start a worker's process, with the parts of nannyd that are in *directory*."""
        ours, theirs = socket.socketpair()
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = secrets.token_hex(4)
        notify.bind(str(base / f"notify-{name}"))
        stderr = base / f"stderr-{name}"
        with theirs, stderr.open("wb") as stderr_file:
            process = subprocess.Popen(
                boot_argv(python, directory, "w1", target),
                cwd=cwd,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": notify.getsockname(), **environ},
                stdin=subprocess.DEVNULL,
                stderr=stderr_file,
                pass_fds=[wire.CHANNEL_FD],
                preexec_fn=lambda: os.dup2(theirs.fileno(), wire.CHANNEL_FD),
            )
        return cls(process, ours, notify, stderr)

    def specify(self, **changes: Any) -> None:
        """Send the specification."""
        spec = {
            "protocol": wire.PROTOCOL,
            "name": "w1",
            "target": "classes:Good",
            "args": [],
            "kwargs": {},
            "environ": {},
            "preload": [],
            "preload_argv": [],
            "stop_timeout": 5.0,
            "local_directory": None,
            **changes,
        }
        self.channel.sendall(json.dumps(spec).encode() + b"\n")

    def hears(self, key: str, value: str | None = None) -> dict[str, str]:
        """Wait for a message with *key* (and *value*) among its fields."""
        self.notify.settimeout(PATIENCE)
        while True:
            fields = self._receive()
            if key in fields and value in (None, fields[key]):
                return fields

    def drain(self) -> None:
        """Take note of what has been said up to now."""
        self.notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._receive()

    def _receive(self) -> dict[str, str]:
        data, descriptors, _, _ = socket.recv_fds(self.notify, 1 << 20, 8)
        self.said.append(wire.parse(data))
        self.descriptors += descriptors
        return self.said[-1]

    def ask(self, timeout: float, reason: str, number: signal.Signals | None = signal.SIGTERM) -> None:
        """Ask for the end as the supervisor does: the line, then the signal."""
        line = json.dumps({"stop": {"timeout": timeout, "reason": reason}})
        self.channel.sendall(line.encode() + b"\n")
        if number is not None:
            self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for the exit status, and collect the last words."""
        status = self.process.wait(PATIENCE)
        self.drain()
        return status

    def stderr(self) -> str:
        """Return what it has written to stderr."""
        return self._stderr.read_text()

    def error(self) -> str:
        """Return the text of the only X_NANNYD_ERROR."""
        (value,) = [fields["X_NANNYD_ERROR"] for fields in self.said if "X_NANNYD_ERROR" in fields]
        return wire.parse_error(value)

    def count(self, key: str) -> int:
        """Count the messages with *key*."""
        return sum(key in fields for fields in self.said)

    def close(self) -> None:
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        self.notify.close()
        for fd in self.descriptors:
            os.close(fd)
