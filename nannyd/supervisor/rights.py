"""Who is at the other end of the control socket, and what that peer may do.

The kernel says who (unix(7)): the process that connected, its uid, its gids.  A worker has nannyd's uid,
or root's; that it is the worker, only its cgroup tells.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
"""asm-generic/socket.h; Python names neither.  The second is there since Linux 6.5."""
_GROUPS_BYTES = 1024
"""The most that Python's getsockopt takes: 256 groups."""
_UCRED = struct.Struct("iII")
_PIDFD = struct.Struct("i")


class Right(enum.IntEnum):
    """What a peer may do; each includes those before it."""

    NONE = 0
    LOOK = 1
    OPERATE = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as it was then."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] | None
    """Supplementary; None: more than the kernel's answer to us holds."""


def one_of(peer: Peer, right: Right) -> tuple[int, ...]:
    """Return what tells *peer*, who may do what *right* says, from others.

    Who may do all is a process: there are many of root's.  Anybody else is a user, who could fork.
    """
    return (right, peer.uid, peer.pid) if right is Right.ALL else (right, peer.uid)


def read_peer(sock: socket.socket) -> Peer:
    """Return who connected to get the other end of *sock*."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(pid, uid, gid, _groups(sock))


def _groups(sock: socket.socket) -> frozenset[int] | None:
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return None
    return frozenset(struct.unpack(f"{len(found) // 4}I", found))


def still_there(sock: socket.socket) -> bool:
    """Say whether the process that connected has its pid yet: what was read of that pid was then of it.

    Without SO_PEERPIDFD nobody can tell, and it is taken for granted.  Raises OSError: no descriptor left.
    """
    try:
        (pidfd,) = _PIDFD.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _PIDFD.size))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return error.errno == errno.ENOPROTOOPT
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return True  # somebody else's, but there
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def right_of(
    peer: Peer,
    *,
    own_uid: int,
    group_gid: int | None,
    in_worker: Callable[[int], bool | None],
    member: Callable[[int], bool],
) -> Right:
    """Judge *peer*.

    *in_worker* says whether a pid belongs to the worker (None: it is gone, nobody can say), *member* whether
    the group database has a uid in the group: it is asked only where the peer's own groups are unknown.
    """
    if peer.uid in (0, own_uid):
        right = Right.ALL
    elif group_gid is not None and _in_group(peer, group_gid, member):
        right = Right.OPERATE
    else:
        return Right.NONE
    return right if in_worker(peer.pid) is False else Right.LOOK


def _in_group(peer: Peer, gid: int, member: Callable[[int], bool]) -> bool:
    if peer.gid == gid:
        return True
    return member(peer.uid) if peer.groups is None else gid in peer.groups
