"""The notify socket of one worker: the manager's side of sd_notify(3).

Each generation has a socket of its own with a name nobody can guess, so that a late message of an
earlier life arrives nowhere.  Senders are judged by SCM_CREDENTIALS, which the kernel fills in: a
process of the worker's group is heard, its children included.  A sender that is already gone (a shell's
`systemd-notify --no-block`) cannot be looked up any more; it knew the address, and is heard.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import TYPE_CHECKING

from nannyd.core import wire

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from pathlib import Path

_UCRED = struct.Struct("3i")
_FDS_MAX = 253
"""SCM_MAX_FD of unix(7)."""
_AT_ONCE = 64
"""Messages handled before the loop sees to something else: a worker may flood."""
_QUEUE = 1024
"""More messages than a socket holds (net.unix.max_dgram_qlen: 10, under systemd 512): who floods goes on
meanwhile, but what it says now was not said before."""
_LARGEST = 128 << 10
"""Bytes of a message; the largest is a traceback of `wire.ERROR_MAX` characters."""


class Mailbox:
    """A bound datagram socket that delivers `(assignments, sender's pid)`."""

    def __init__(
        self, directory: Path, loop: AbstractEventLoop, deliver: Callable[[dict[str, str], int], None]
    ) -> None:
        """Bind in *directory*.  Raises OSError."""
        self.path = directory / f"notify-{os.urandom(4).hex()}"
        self._deliver = deliver
        self._loop = loop
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(self.path))
            self.path.chmod(0o600)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from None  # bind(2) names none
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        loop.add_reader(self._socket, self._some)

    def _some(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._one():
                return

    def drain(self) -> None:
        """Handle everything that was sent before now, for the last words explain an end."""
        for _ in range(_QUEUE):
            if not self._one():
                return

    def _one(self) -> bool:
        size = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, size, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        pid, descriptors = 0, array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = _UCRED.unpack_from(content)[0]
        try:
            self._deliver(wire.parse(data), pid)
        finally:
            # Closing is the answer to BARRIER=1 (sd_notify_barrier(3)); no other descriptor is wanted.
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def close(self) -> None:
        """Stop listening and remove the socket's name."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)
