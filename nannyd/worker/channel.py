"""The bootstrap's end of the channel: one specification, then perhaps a request to stop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nannyd.core import boot

GONE = "nanny-gone"
"""The reason of a stop because the other end of the channel is closed."""

_GRACE = 0.8
"""The share of the stop timeout after which nannyd kills; so this is what a worker has."""


@dataclass(frozen=True)
class Specification:
    """What to run.  The supervisor's first line."""

    name: str
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    environ: dict[str, str]
    preload: list[str]
    preload_argv: list[list[str]]
    grace: float
    """Seconds a worker has for its end, where nobody says otherwise."""
    local_directory: str | None


@dataclass(frozen=True)
class Stop:
    """A wish that the worker ends within *timeout* seconds."""

    timeout: float
    reason: str
    drain: float = 0.0
    """How many of these seconds the worker's data may take to move to other workers."""


def parse_specification(line: bytes) -> Specification:
    """Return what *line* specifies.  Raises RuntimeError if the supervisor speaks another protocol."""
    data = json.loads(line)
    boot.check_protocol(data.get("protocol"), "worker's bootstrap")
    return Specification(
        name=data["name"],
        target=data["target"],
        args=data["args"],
        kwargs=data["kwargs"],
        environ=data["environ"],
        preload=data["preload"],
        preload_argv=data["preload_argv"],
        grace=_GRACE * data["stop_timeout"],
        local_directory=data["local_directory"],
    )


def parse_stop(line: bytes, grace: float) -> Stop | None:
    """Return the request to stop in *line*; None for a line that asks for something else."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    stop = data.get("stop") if isinstance(data, dict) else None
    if not isinstance(stop, dict):
        return None
    timeout, drain = float(stop.get("timeout", grace)), float(stop.get("drain", 0.0))
    return Stop(timeout, str(stop.get("reason", "stop")), drain)


class Channel:
    """The stream socket that nannyd left open at `wire.CHANNEL_FD`."""

    def __init__(self, fd: int) -> None:
        """Take over *fd* and keep it from the programs that the worker executes."""
        self._socket = boot.take_channel(fd)
        self._buffer = b""
        self.ended = False
        """The supervisor is gone."""

    def fileno(self) -> int:
        """Return the descriptor, for an event loop to watch."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this process's copy of the descriptor."""
        self._socket.close()

    def read_specification(self) -> Specification:
        """Wait for the first line and return what it says."""
        self._socket.setblocking(True)
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the supervisor was gone before it said what to run")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._socket.setblocking(False)
        return parse_specification(line)

    def read_stop(self, grace: float) -> Stop | None:
        """Return the first request to stop among what has arrived; never waits."""
        while not self.ended:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        stops = [stop for stop in (parse_stop(line, grace) for line in lines) if stop is not None]
        if self.ended:
            stops.append(Stop(grace, GONE))
        return stops[0] if stops else None
