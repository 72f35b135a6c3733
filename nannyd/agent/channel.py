"""The agent's end of the channel: lines of JSON, at most `wire.LINE_MAX` bytes each.

The first line says what to host; then the supervisor requests, each request answered once, in any order, and
tells; the agent asks, and says.  End of file: the supervisor is gone, and so is the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nannyd.core import boot, wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


@dataclass(frozen=True)
class Specification:
    """What to host.  The supervisor's first line."""

    name: str
    preload: list[str]
    preload_argv: list[list[str]]
    plugins: list[dict[str, Any]]
    entry_points: bool
    facts: dict[str, Any]
    environ: dict[str, str]
    extension: dict[str, Any] | None
    """`target` and `arguments` of what else this agent can, made when it is first needed."""


def parse_specification(data: Mapping[str, Any]) -> Specification:
    """Return what *data* specifies.  Raises RuntimeError if the supervisor speaks another protocol."""
    boot.check_protocol(data.get("protocol"), "agent")
    return Specification(
        name=data["name"],
        preload=data["preload"],
        preload_argv=data["preload_argv"],
        plugins=data["plugins"],
        entry_points=data["entry_points"],
        facts=data["facts"],
        environ=data.get("environ") or {},
        extension=data.get("extension"),
    )


def encode(data: Any) -> str:
    """Return *data* as JSON that any parser takes.  Raises TypeError or ValueError where it is none."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


class Channel:
    """The stream socket that the supervisor left open at `wire.CHANNEL_FD`."""

    def __init__(self, fd: int) -> None:
        """Take over *fd* and keep it from other programs; the process ends when the other end does."""
        self._socket = boot.take_channel(fd)
        os.register_at_fork(after_in_child=self._socket.close)
        threading.Thread(target=_end_with, args=[fd], name="end of channel", daemon=True).start()

    async def open(self) -> None:
        """Make ready to read and write, in the event loop of the calling thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=wire.LINE_MAX)

    async def read(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the supervisor says, until it is gone."""
        while line := await self._reader.readline():
            yield json.loads(line)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send *message*; raises TypeError or ValueError if it is no JSON, or too long."""
        self.send_text(encode(message))

    def send_text(self, text: str) -> None:
        """Send a line of JSON, from whatever thread."""
        line = text.encode() + b"\n"
        if len(line) > wire.LINE_MAX:
            raise ValueError(f"{len(line)} bytes of JSON; at most {wire.LINE_MAX} travel")
        if threading.get_ident() == self._loop_thread:
            self._writer.write(line)
        else:
            self._loop.call_soon_threadsafe(self._writer.write, line)


def _end_with(fd: int) -> None:
    """Wait for the other end of *fd* to be closed, then end the process.

    In a thread of its own, for a plugin may block the event loop; and without any cleaning up, for a thread
    of a plugin's may hold that up for ever.
    """
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(0)
