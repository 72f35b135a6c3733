"""The control socket: Varlink (https://varlink.org), one JSON object and a NUL byte a message.

A peer can only cost what the limits below allow.  Who may do what is judged by the peer's uid.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

INTERFACE = "io.nannyd.Nanny"
_MESSAGE_MAX = 1 << 20
_CONNECTIONS_MAX = 16
_IDLE_TIMEOUT = 60.0


class CallError(Exception):
    """A typed error reply."""

    def __init__(self, name: str, **parameters: Any) -> None:
        """*name* without the interface."""
        super().__init__(name)
        self.parameters = parameters
        self.reply = {"error": f"{INTERFACE}.{name}", "parameters": parameters}


class Control:
    """Serves the methods given to it."""

    def __init__(self, methods: dict[str, Callable[[], Awaitable[dict[str, Any]]]]) -> None:
        """*methods* by name, without the interface."""
        self._methods = methods
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def open(self, path: Path) -> None:
        """Listen at *path*, replacing what an earlier life left there."""
        self._server = await asyncio.start_unix_server(self._serve, sock=_bound(path), limit=_MESSAGE_MAX)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _CONNECTIONS_MAX:
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer is gone, silent, or talks nonsense
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        permitted = _uid_of(writer) in (0, os.getuid())
        while True:
            async with asyncio.timeout(_IDLE_TIMEOUT):
                message = (await reader.readuntil(b"\0"))[:-1]
            try:
                reply = await self._call(message, permitted=permitted)
            except CallError as error:
                reply = error.reply
            writer.write(json.dumps(reply).encode() + b"\0")
            async with asyncio.timeout(_IDLE_TIMEOUT):
                await writer.drain()

    async def _call(self, message: bytes, *, permitted: bool) -> dict[str, Any]:
        try:
            name = json.loads(message)["method"]
        except (ValueError, KeyError, TypeError) as error:
            raise CallError("InvalidMessage") from error
        method = self._methods.get(str(name).removeprefix(INTERFACE + "."))
        if method is None:
            return {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": str(name)}}
        if not permitted:
            raise CallError("NotPermitted", needs="root or the user nannyd runs as")
        return {"parameters": await method()}


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    bound.bind(str(path))
    path.chmod(0o666)  # so that a refusal is an answer
    return bound


def _uid_of(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
