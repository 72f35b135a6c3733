"""The real agent process, with the test in the place of the supervisor."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from harness import PATIENCE, WORKERS, children_of

from nannyd.core import wire
from nannyd.core.boot import agent_argv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FACTS: dict[str, Any] = {
    "state": "running",
    "pid": 4242,
    "worker_address": "unix:/w",
    "worker_dir": "/scratch/worker-1",
    "local_directory": "/scratch",
    "memory_limit": 1 << 30,
    "env": {},
}


_PLACES = (wire.CHANNEL_FD, wire.SOCKETS_FD)
_WITH: dict[str, list[str]] = {"error": ["error"], "deprecated": ["message"], "busy": [], "idle": []}
"""What goes with each word that it says."""


class AgentError(Exception):
    """A request was answered with an error."""

    def __init__(self, error: dict[str, str]) -> None:
        """Keep *error*."""
        super().__init__(error["traceback"])
        self.error = error

    def __getitem__(self, key: str) -> str:
        """Return a part of it."""
        return self.error[key]


class Agent:
    """One process and all that it has said."""

    def __init__(
        self, directory: str, tmp_path: Path, *, python: str = sys.executable, environ: dict[str, str]
    ) -> None:
        """Start it; nothing is specified yet."""
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(PATIENCE)
        self._sockets, their_sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._output = tmp_path / "output"
        with theirs, their_sockets, self._output.open("wb") as output:
            inside = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs, their_sockets)]
            self.process = subprocess.Popen(
                agent_argv(python, directory, "w1"),
                cwd=WORKERS,
                env={"PATH": os.environ["PATH"], **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[wire.CHANNEL_FD, wire.SOCKETS_FD],
                preexec_fn=lambda: [os.dup2(*pair) for pair in zip(inside, _PLACES, strict=True)] and None,
            )
            for end in inside:
                os.close(end)
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """What the agent has asked, `set_env` and all, in order."""
        self.said: list[dict[str, Any]] = []
        self.responses: dict[str, dict[str, Any] | None] = {}
        """How an asking is answered, `{"ok": {}}` if not said here; None: by `respond_all`."""
        self._kept: dict[str, list[int]] = {}

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Return what it has written to stdout and stderr."""
        return self._output.read_text()

    def send(self, message: object) -> None:
        """Send one line."""
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    def specify(self, **changes: Any) -> None:
        """Send the specification."""
        self.send(
            {
                "protocol": wire.PROTOCOL,
                "name": "w1",
                "preload": [],
                "preload_argv": [],
                "plugins": [],
                "entry_points": True,
                "facts": FACTS,
                **changes,
            }
        )

    def request(self, do: str, **parameters: Any) -> int:
        """Send a request and return its number."""
        self._number += 1
        self.send({"id": self._number, "do": do, "timeout": PATIENCE, **parameters})
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        """Wait for an answer."""
        self.until(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise AgentError(answer["error"])
        ok: dict[str, Any] = answer["ok"]
        return ok

    def is_answered(self, number: int) -> bool:
        """Say whether an answer has come."""
        return number in self._answers

    def do(self, do: str, **parameters: Any) -> dict[str, Any]:
        """Request, and wait for the answer."""
        return self.answer(self.request(do, **parameters))

    def add(self, target: str, name: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Add a plugin."""
        return self.do("plugin_add", name=name, target=target, kwargs=kwargs, again=False)

    def call(self, target: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function and return its value."""
        return self.do("call", target=target, args=args, kwargs=kwargs)["value"]

    def story(self) -> list[str]:
        """Return what the plugins of plugins.py have told since the last time."""
        told: list[str] = self.call("plugins:story")
        return told

    def threads(self) -> list[str]:
        """Return its threads, but for those that are always there."""
        always = {"MainThread", "end of channel", "call plugins:threads"}
        return sorted(set(self.call("plugins:threads")) - always)

    def give(self, listening: socket.socket) -> None:
        """Hand it a listening socket."""
        socket.send_fds(self._sockets, [b"nanny"], [listening.fileno()])

    def tell(self, what: str, **info: Any) -> None:
        """Tell of the worker."""
        self.send({"tell": what, "info": info})

    def tell_within(self, timeout: float, what: str, **info: Any) -> None:
        """Tell of the worker, and how much time the plugins have."""
        self.send({"tell": what, "info": info, "timeout": timeout})

    def tell_facts(self, **changes: Any) -> None:
        """Tell facts."""
        self.send({"tell": "facts", "facts": {**FACTS, **changes}})

    def respond_all(self, what: str, response: dict[str, Any] | None = None) -> None:
        """Answer all the askings for *what* that were not answered, as done if not said otherwise."""
        for number in self._kept.pop(what):
            self.send({"answer": number, **(response or {"ok": {}})})

    def until(self, condition: Callable[[], object]) -> None:
        """Read until *condition* holds."""
        while not condition():
            self._read()

    def until_readable(self, end: socket.socket) -> None:
        """Read until there is something to read at *end*."""
        while end not in (ready := select.select([self._channel, end], [], [])[0]):
            assert ready
            self._read()

    def children(self) -> list[int]:
        """Return the processes it has forked."""
        return children_of(self.pid)

    def hang_up(self) -> int:
        """Close the channel and return the exit status."""
        self._channel.close()
        self._sockets.close()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it, whatever it does."""
        self._channel.close()
        self._sockets.close()
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        data = self._channel.recv(1 << 16)
        assert data, f"the agent is gone: {self.process.wait(PATIENCE)}\n{self.output}"
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            assert len(line) < wire.LINE_MAX
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            assert message["id"] not in self._answers, "answered twice"
            self._answers[message["id"]] = message
        elif "ask" in message:
            what = message["what"]
            self.asked.append((what, message["parameters"]))
            response = self.responses.get(what, {"ok": {}})
            if response is None:
                self._kept.setdefault(what, []).append(message["ask"])
            else:
                self.send({"answer": message["ask"], **response})
        else:
            assert set(message) == {"say", *_WITH[message["say"]]}
            self.said.append(message)
