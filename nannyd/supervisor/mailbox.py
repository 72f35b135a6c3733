"""The notify socket of one worker: the manager's side of sd_notify(3).

Each generation has a socket of its own with a name nobody can guess, so that a late message of an
earlier life arrives nowhere.  The kernel says who sent a message: its pid (SCM_CREDENTIALS) and, since
Linux 6.5, a pidfd (SCM_PIDFD), which knows the cgroup even of a sender that is gone when its message is
read, as after a shell's `systemd-notify --no-block` (Linux 6.17).
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.core import wire

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from pathlib import Path

_UCRED = struct.Struct("3i")
_INT = struct.Struct("i")
_FDS_MAX = 253
"""SCM_MAX_FD of unix(7)."""
_SO_PASSPIDFD = 76
_SCM_PIDFD = 4
"""<linux/socket.h>; Python has no names for them."""
_PIDFD_INFO = struct.Struct("QQ48x")
_PIDFD_GET_INFO = 0xC040FF0B
"""<linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), whose first fields are `mask` and `cgroupid`."""
_PIDFD_INFO_CGROUPID, _PIDFD_INFO_EXIT = 1 << 2, 1 << 3
_ANCILLARY = sum(map(socket.CMSG_SPACE, (_UCRED.size, _INT.size, _FDS_MAX * _INT.size)))
_AT_ONCE = 64
"""Messages handled before the loop sees to something else: a worker may flood."""
_QUEUE = 1024
"""More messages than a socket holds (net.unix.max_dgram_qlen: 10, under systemd 512): who floods goes on
meanwhile, but what it says now was not said before."""
_LARGEST = 128 << 10
"""Bytes of a message; the largest is a traceback of `wire.ERROR_MAX` characters."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message, while it is delivered."""

    pid: int
    pidfd: int | None = None
    """Borrowed."""
    descriptors: tuple[int, ...] = ()
    """What came with the message, borrowed."""

    def cgroup(self) -> int | None:
        """Return the id (the inode) of the sender's cgroup, or of its last if it is gone; None: unknown."""
        if self.pidfd is None:
            return None
        info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_CGROUPID | _PIDFD_INFO_EXIT, 0))
        try:
            fcntl.ioctl(self.pidfd, _PIDFD_GET_INFO, info)
        except OSError:  # Linux < 6.13
            return None
        mask, cgroup = _PIDFD_INFO.unpack(info)
        return cgroup if mask & _PIDFD_INFO_CGROUPID else None


class Mailbox:
    """A bound datagram socket that delivers `(assignments, sender)`."""

    def __init__(
        self, directory: Path, loop: AbstractEventLoop, deliver: Callable[[dict[str, str], Sender], None]
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
        with suppress(OSError):  # Linux < 6.5
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)
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
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        pid, pidfd, descriptors = 0, None, array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = _UCRED.unpack_from(content)[0]
            elif (
                level == socket.SOL_SOCKET
                and kind == _SCM_PIDFD
                and (fd := _INT.unpack_from(content)[0]) >= 0
            ):
                pidfd = fd
        try:
            self._deliver(wire.parse(data), Sender(pid, pidfd, tuple(descriptors)))
        finally:
            # Closing is the answer to BARRIER=1 (sd_notify_barrier(3)); who wants to keep one has a copy.
            for descriptor in (*descriptors, *(() if pidfd is None else (pidfd,))):
                os.close(descriptor)
        return True

    def close(self) -> None:
        """Stop listening and remove the socket's name."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)
