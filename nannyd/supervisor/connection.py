"""One connection to the control socket: calls in, replies out, one call at a time.

What was sent behind a call waits, as a rule in the kernel.  Descriptors (SCM_RIGHTS) are taken only from a
peer that may do all, and closed when the call has been handled.  What the connection is watched for says
what it waits for:

    EPOLLIN   the next call
    EPOLLOUT  its turn: replies wait to be sent, or calls that were received to be handled
    0         an answer that comes later; a hang-up is heard of always (epoll_ctl(2))
    nothing   the end of a oneway call, whose peer may well have gone
"""

from __future__ import annotations

import os
import select
import socket
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import messages
from nannyd.supervisor.messages import CallError
from nannyd.supervisor.rights import Peer, Right

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable, Mapping

    from nannyd.supervisor.varlink import Server

_SLICE = 0.001
"""Seconds for which one connection's calls are handled in one turn."""
_BATCH = 64 << 10
"""Bytes received at once."""
_SENT_AT_ONCE = 256 << 10
_DESCRIPTORS_MAX = 3
"""That come with a call; the kernel keeps what goes beyond out of our table."""
_ANCILLARY = socket.CMSG_LEN(_DESCRIPTORS_MAX * array("i").itemsize)
_UNWATCHED = -1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may cost; seconds and bytes."""

    connections: Mapping[Right, int] = field(
        default_factory=lambda: {Right.NONE: 8, Right.LOOK: 16, Right.OPERATE: 32, Right.ALL: 32}
    )
    """Of one peer (`rights.one_of()`)."""
    together: Mapping[Right, int] = field(
        default_factory=lambda: {Right.NONE: 16, Right.LOOK: 16, Right.OPERATE: 64, Right.ALL: 128}
    )
    """Of all peers that have this right."""
    idle_timeout: float = 60.0
    stranger_timeout: float = 5.0
    """The same, for a peer without any right."""
    half_timeout: float = 10.0
    """From the first byte of a call to its last."""
    stalled_timeout: float = 60.0
    """Of a peer that takes nothing of what was sent to it."""
    unsent: int = 256 << 10
    """What waits for the slow reader of a stream, beside the reply that goes beyond it."""


class Call:
    """One call that is being answered."""

    __slots__ = (
        "_connection",
        "_lost",
        "_when_closed",
        "_when_room",
        "descriptors",
        "more",
        "oneway",
        "peer",
        "right",
    )

    def __init__(
        self, connection: Connection, message: messages.Message, descriptors: tuple[int, ...]
    ) -> None:
        """Stand for *message*, which arrived by *connection* with *descriptors*."""
        self.descriptors = descriptors
        """Are open until the method returns, for which they are."""
        self.oneway = message.oneway
        self.more = message.more and not message.oneway
        self.peer = connection.peer
        self.right = connection.right
        self._connection: Connection | None = connection
        self._when_closed: Callable[[], None] | None = None
        self._when_room: Callable[[], None] | None = None
        self._lost = False

    @property
    def open(self) -> bool:
        """No last reply yet, and the peer is there."""
        return self._connection is not None

    def reply(self, parameters: dict[str, Any]) -> None:
        """Answer, for the last time."""
        self._end({"parameters": parameters})

    def fail(self, error: CallError) -> None:
        """Answer with *error*, which is the last answer."""
        self._end({"error": error.error, "parameters": error.parameters})

    def more_reply(self, parameters: dict[str, Any]) -> bool:
        """Answer, but not for the last time.  False: not sent; the reader is too slow, or none."""
        if self._connection is None or self.oneway or self._connection.is_full():
            return False
        self._connection.send({"parameters": parameters, "continues": True})
        return self._connection is not None

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when the peer goes away before the last reply; at once, if it has."""
        if self._lost:
            callback()
        elif self.open:
            self._when_closed = callback

    def when_room(self, callback: Callable[[], None]) -> None:
        """Have *callback* called once, when the slow reader has read enough for more of a stream."""
        self._when_room = callback

    def has_room(self) -> None:
        """The reader has read."""
        callback, self._when_room = self._when_room, None
        if callback is not None:
            callback()

    def _end(self, message: dict[str, Any]) -> None:
        connection, self._connection, self._when_closed = self._connection, None, None
        if connection is not None:
            connection.send_last(message, oneway=self.oneway)

    def close(self) -> None:
        """Nobody waits any more."""
        callback, self._connection, self._when_closed, self._lost = self._when_closed, None, None, True
        if callback is not None:
            callback()


class Connection:
    """One peer."""

    __slots__ = (
        "_call",
        "_closed",
        "_deadline",
        "_descriptors",
        "_half_since",
        "_handling",
        "_input",
        "_moved_at",
        "_output",
        "_server",
        "_socket",
        "_timer",
        "_watched",
        "peer",
        "right",
    )

    def __init__(self, server: Server, sock: socket.socket, peer: Peer, right: Right) -> None:
        """Serve *peer*, who may do what *right* says, by *sock*, which is ours from now on."""
        self.peer = peer
        self.right = right
        self._server = server
        self._socket = sock
        self._input = bytearray()
        self._output = bytearray()
        self._descriptors: tuple[int, ...] = ()
        self._call: Call | None = None
        self._handling = False
        self._closed = False
        self._half_since: float | None = None
        self._moved_at = 0.0
        self._deadline: float | None = None
        self._timer: TimerHandle | None = None
        self._watched = _UNWATCHED
        self._settle()

    def on(self, events: int) -> None:
        """Do what *events* of epoll ask for."""
        self._moved_at = self._server.loop.time()
        if self._watched == 0:
            self.close()  # hung up
        elif self._watched == select.EPOLLIN:
            self._receive()
        else:
            self._flush()
        self._handle()

    def close(self) -> None:
        """Let go of the peer, and tell who is answering it."""
        if self._closed:
            return
        self._closed = True
        self._watch(_UNWATCHED)
        self._server.forget(self._socket.fileno(), self)
        self._close_descriptors()  # before the peer can know
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        call, self._call = self._call, None
        if call is not None:
            try:
                call.close()
            except Exception as error:  # noqa: BLE001 - a bug in one method must not end the supervisor
                self._server.failed(error)

    def fail(self, error: Exception) -> None:
        """Close, for a bug of ours."""
        self._server.failed(error)
        self._break_off()

    def _break_off(self) -> None:
        self._flush()  # what was asked before was answered
        self.close()

    # In

    def _receive(self) -> None:
        try:
            received = self._receive_with_descriptors() if self._may_send_them else self._socket.recv(_BATCH)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._input += received
        if not received or (len(self._input) > messages.MESSAGE_MAX and 0 not in self._input):
            self.close()  # who is read from has been answered

    @property
    def _may_send_them(self) -> bool:
        """Whether descriptors of this peer are wanted; a plain recv(2) lets the kernel close them."""
        return self.right is Right.ALL

    def _receive_with_descriptors(self) -> bytes:
        """Receive; descriptors are for the next call that is complete.  Nothing: to be closed.

        No call takes more than three, whether they come at once or one after the other; who sends more, or
        finds our table full, is not talked to any longer.
        """
        received, ancillary, flags, _ = self._socket.recvmsg(_BATCH, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        found = array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
        self._descriptors += tuple(found)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > _DESCRIPTORS_MAX:
            return b""
        return received

    def _close_descriptors(self) -> None:
        descriptors, self._descriptors = self._descriptors, ()
        for descriptor in descriptors:
            with suppress(OSError):  # close(2) tells what a write before it has met
                os.close(descriptor)

    def _handle(self) -> None:
        """Handle calls that were received, for as long as it is this connection's turn."""
        time = self._server.loop.time
        until = time() + _SLICE
        self._handling = True
        while self._is_idle() and (end := self._input.find(0)) >= 0:
            raw = bytes(memoryview(self._input)[:end])
            del self._input[: end + 1]
            self._half_since = None
            self._answer(raw)
            if time() >= until:
                break
        self._handling = False
        self._flush()
        self._settle()

    def _is_idle(self) -> bool:
        return self._call is None and len(self._output) < _BATCH and not self._closed

    def _answer(self, raw: bytes) -> None:
        try:
            message = messages.read_call(raw)
        except messages.Nonsense:
            self._break_off()
            return
        self._call = call = Call(self, message, self._descriptors)
        try:
            reply = self._server.answer(call, message)
        except CallError as error:
            call.fail(error)
        else:
            if reply is not None:
                call.reply(reply)
        finally:
            self._close_descriptors()

    # Out

    def is_full(self) -> bool:
        """Say whether the peer is too slow for more of a stream."""
        return len(self._output) > self._server.limits.unsent

    def send(self, message: dict[str, Any]) -> None:
        """Send *message*, or have it sent when the peer takes it."""
        try:
            raw = messages.write(message)
        except Exception as error:  # noqa: BLE001 - a bug in one method must not end the supervisor
            self.fail(error)
            return
        if not self._output:
            self._moved_at = self._server.loop.time()
        self._output += raw
        if not self._handling or len(self._output) > _BATCH:
            self._flush()
        if not self._handling:
            self._settle()

    def send_last(self, message: dict[str, Any], *, oneway: bool) -> None:
        """Send *message*, unless nobody wants it, and go on with the next call."""
        self._call = None
        if not oneway:
            self.send(message)
        elif not self._handling:
            self._settle()

    def _flush(self) -> None:
        if not self._output or self._closed:
            return
        try:
            sent = self._socket.send(memoryview(self._output)[:_SENT_AT_ONCE])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._output[:sent]
        if self._call is not None and not self.is_full():
            self._call.has_room()

    # What it waits for

    def _settle(self) -> None:
        """Watch for what comes next, and for how long."""
        limits = self._server.limits
        if self._closed:
            return
        if self._output or (self._call is None and 0 in self._input):
            self._watch(select.EPOLLOUT)
            self._wait_until(self._moved_at + limits.stalled_timeout)
        elif self._call is not None:
            self._watch(_UNWATCHED if self._call.oneway else 0)
            self._deadline = None
        else:
            self._watch(select.EPOLLIN)
            now = self._server.loop.time()
            if self._input:
                self._half_since = self._half_since or now
                self._wait_until(self._half_since + limits.half_timeout)
            else:
                stranger = self.right is Right.NONE
                self._wait_until(now + (limits.stranger_timeout if stranger else limits.idle_timeout))

    def _watch(self, events: int) -> None:
        if events == self._watched:
            return
        if self._watched == _UNWATCHED:
            self._server.epoll.register(self._socket, events)
        elif events == _UNWATCHED:
            self._server.epoll.unregister(self._socket)
        else:
            self._server.epoll.modify(self._socket, events)
        self._watched = events

    def _wait_until(self, deadline: float) -> None:
        """Close at *deadline*.  A timer that is too early looks again; most deadlines only move away."""
        self._deadline = deadline
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._server.loop.call_at(deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._deadline is not None and self._server.loop.time() < self._deadline:
            self._wait_until(self._deadline)
        elif self._deadline is not None:
            self.close()
