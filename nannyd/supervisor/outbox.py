"""Lines to a process that may be slow to read: nothing waits for it."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping


class Outbox:
    """JSON lines into a non-blocking stream socket, borrowed."""

    def __init__(self, channel: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Send into *channel*."""
        self._channel, self._loop = channel, loop
        self._unsent = bytearray()

    def put(self, message: Mapping[str, Any]) -> int:
        """Send what the socket takes now, and the rest when the other has read.

        Return the bytes that there were to be sent.
        """
        self._unsent += json.dumps(message).encode() + b"\n"
        waiting = len(self._unsent)
        self._flush()
        return waiting

    def _flush(self) -> None:
        try:
            sent = self._channel.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._unsent)  # it is gone: its exit says the rest
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._channel, self._flush)
        else:
            self._loop.remove_writer(self._channel)

    def close(self) -> None:
        """Send nothing more."""
        self._loop.remove_writer(self._channel)
