"""The control socket: a Varlink server (https://varlink.org) on the supervisor's loop.

A connection has one call at a time; what was sent behind it waits, as a rule in the kernel.  The loop
knows one descriptor of all this, an epoll, and hears of one event a turn, in the kernel's round: so
nobody, however much he sends, takes more of the loop than one slice before others have theirs.
What a connection is watched for says what it waits for:

    EPOLLIN   the next call
    EPOLLOUT  its turn: replies wait to be sent, or calls that were received to be handled
    0         an answer that comes later; a hang-up is heard of always (epoll_ctl(2))
    nothing   the end of a oneway call, whose peer may well have gone

What a peer may cost is bounded by `Limits`.  Who has no rights shares no number with those who have.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import messages
from nannyd.supervisor.messages import CallError, Kind
from nannyd.supervisor.rights import Peer, Right, read_peer, still_there

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Call", "CallError", "Interface", "Kind", "Method", "Server"]

_SLICE = 0.001
"""Seconds for which one connection's calls are handled in one turn."""
_BATCH = 64 << 10
"""Bytes received at once."""
_SENT_AT_ONCE = 256 << 10
_BACKLOG = 128
_ACCEPT_DELAY = 1.0
"""Until the next try, where there is no descriptor left for a connection."""
_UNWATCHED = -1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may cost; seconds and bytes."""

    connections: Mapping[Right, int] = field(
        default_factory=lambda: {Right.NONE: 8, Right.LOOK: 16, Right.OPERATE: 32, Right.ALL: 32}
    )
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

    __slots__ = ("_connection", "_when_closed", "more", "oneway", "peer", "right")

    def __init__(self, connection: _Connection, message: messages.Message) -> None:
        """Stand for *message*, which arrived by *connection*."""
        self.oneway = message.oneway
        self.more = message.more and not message.oneway
        self.peer = connection.peer
        self.right = connection.right
        self._connection: _Connection | None = connection
        self._when_closed: Callable[[], None] | None = None

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
        """Answer, but not for the last time.  False: not sent, for the reader is too slow, or gone."""
        if self._connection is None or self._connection.is_full():
            return False
        self._connection.send({"parameters": parameters, "continues": True})
        return self._connection is not None

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when the peer goes away before the last reply; at once, if it has."""
        self._when_closed = callback
        if self._connection is None:
            callback()

    def _end(self, message: dict[str, Any]) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.send_last(message, oneway=self.oneway)

    def close(self) -> None:
        """Nobody waits any more."""
        self._connection = None
        if self._when_closed is not None:
            self._when_closed()


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an interface."""

    needs: Right
    handle: Callable[..., dict[str, Any] | None]
    """Called with the Call and, by name, all that it takes: returns the reply, or None if that comes later
    through the Call; raises CallError."""
    takes: dict[str, Kind]
    streams: bool = False
    """It has to be called with `more`."""


@dataclass(frozen=True, slots=True)
class Interface:
    """What is served under one name."""

    name: str
    description: str
    """In Varlink's own language."""
    methods: dict[str, Method]
    refusal: Callable[[Method], CallError]
    """What a peer is told that lacks the right."""


class Server:
    """Listens, judges who comes, and has calls answered."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        interfaces: Sequence[Interface],
        *,
        vendor: str,
        product: str,
        version: str,
        url: str,
        judge: Callable[[Peer], Right],
        failed: Callable[[BaseException], None],
        limits: Limits | None = None,
    ) -> None:
        """*failed* is told of every bug that a call has met; the call's connection is closed."""
        self.loop = loop
        self.limits = limits or Limits()
        self.failed = failed
        self._judge = judge
        self._info = {"vendor": vendor, "product": product, "version": version, "url": url}
        self._interfaces = {interface.name: interface for interface in (self._own(), *interfaces)}
        self._methods = {
            f"{interface.name}.{name}": (interface, method)
            for interface in self._interfaces.values()
            for name, method in interface.methods.items()
        }
        self._connections: dict[int, _Connection] = {}
        self._counts = dict.fromkeys(Right, 0)
        self._path: Path | None = None
        self._later: TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def open(self, path: Path) -> None:
        """Listen at *path*, replacing what an earlier life left there.  Raises OSError."""
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(str(path))
            path.chmod(0o666)  # so that a refusal is an answer
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._path = path
        self.epoll = select.epoll()
        self.epoll.register(self._listener, select.EPOLLIN)
        self.loop.add_reader(self.epoll.fileno(), self._turn)

    def close(self) -> None:
        """Close every connection, stop listening, remove the socket's name."""
        if self._path is None:
            return
        for connection in list(self._connections.values()):
            connection.close()
        if self._later is not None:
            self._later.cancel()
        self.loop.remove_reader(self.epoll.fileno())
        self.epoll.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self._path = None

    def _turn(self) -> None:
        """Handle one event; the loop calls again as long as there are others."""
        for descriptor, events in self.epoll.poll(0, 1):
            if descriptor == self._listener.fileno():
                self._accept()
                return
            connection = self._connections[descriptor]
            try:
                connection.on(events)
            except Exception as error:  # noqa: BLE001 - a bug in one method must not end the supervisor
                connection.fail(error)

    # Connections

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor or memory left: to ask again at once would be to spin
            self.epoll.modify(self._listener, 0)
            self._later = self.loop.call_later(_ACCEPT_DELAY, self._accept_again)
            return
        try:
            sock.setblocking(False)
            peer = read_peer(sock)
            right = self._right_of(peer, sock)
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this connection only
            sock.close()
            self.failed(error)
            return
        if self._counts[right] < self.limits.connections[right]:
            self._counts[right] += 1
            self._connections[sock.fileno()] = _Connection(self, sock, peer, right)
        else:
            sock.close()

    def _accept_again(self) -> None:
        self._later = None
        self.epoll.modify(self._listener, select.EPOLLIN)

    def _right_of(self, peer: Peer, sock: socket.socket) -> Right:
        right = self._judge(peer)
        # A worker's process may have connected and gone, and left its end and its pid to others.
        return right if right <= Right.LOOK or still_there(sock) else Right.LOOK

    def forget(self, descriptor: int, right: Right) -> None:
        """Take note that a connection is no more."""
        del self._connections[descriptor]
        self._counts[right] -= 1

    # Calls

    def answer(self, call: Call, message: messages.Message) -> dict[str, Any] | None:
        """Have *call* answered: the reply, or None if that comes later.  Raises CallError."""
        found = self._methods.get(message.method)
        if found is None:
            interface_name = message.method.rpartition(".")[0]
            if interface_name in self._interfaces:
                raise messages.method_not_found(message.method)
            raise messages.interface_not_found(interface_name)
        interface, method = found
        if call.right < method.needs:
            raise interface.refusal(method)
        if message.upgrade:
            raise messages.method_not_implemented(message.method)
        if method.streams and not call.more:
            raise messages.expected_more()
        return method.handle(call, **messages.arguments(method.takes, message.parameters))

    def _own(self) -> Interface:
        return Interface(
            messages.SERVICE,
            Path(__file__).with_name(f"{messages.SERVICE}.varlink").read_text(),
            {
                "GetInfo": Method(Right.NONE, self._get_info, {}),
                "GetInterfaceDescription": Method(Right.NONE, self._describe, {"interface": Kind.STRING}),
            },
            lambda _: CallError(f"{messages.SERVICE}.PermissionDenied"),
        )

    def _get_info(self, _: Call) -> dict[str, Any]:
        return {**self._info, "interfaces": list(self._interfaces)}

    def _describe(self, _: Call, interface: str) -> dict[str, Any]:
        if interface not in self._interfaces:
            raise messages.interface_not_found(interface)
        return {"description": self._interfaces[interface].description}


class _Connection:
    """One peer."""

    __slots__ = (
        "_call",
        "_closed",
        "_deadline",
        "_ended",
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
        self._call: Call | None = None
        self._handling = False
        self._ended = False
        """The peer says nothing any more; it may yet listen."""
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
        self._server.forget(self._socket.fileno(), self.right)
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
        self.close()

    # In

    def _receive(self) -> None:
        try:
            received = self._socket.recv(_BATCH)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._ended = not received
        self._input += received
        if len(self._input) > messages.MESSAGE_MAX and 0 not in self._input:
            self.close()

    def _handle(self) -> None:
        """Handle calls that were received, for as long as it is this connection's turn."""
        time = self._server.loop.time
        until = time() + _SLICE
        self._handling = True
        while self._is_idle() and (end := self._input.find(0)) >= 0:
            raw = bytes(self._input[:end])
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
            self._flush()  # what was asked before was asked rightly
            self.close()
            return
        self._call = call = Call(self, message)
        try:
            reply = self._server.answer(call, message)
        except CallError as error:
            call.fail(error)
        else:
            if reply is not None:
                call.reply(reply)

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
        if not self._handling:
            self._flush()
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
        elif self._ended:
            self.close()
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
