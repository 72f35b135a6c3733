"""The control socket: a Varlink server (https://varlink.org) on the supervisor's loop.

The loop knows one descriptor of all this, an epoll, and hears of one event a turn, in the kernel's round:
so nobody, however much he sends, takes more of the loop than one slice before others have theirs.  What
a peer may cost is bounded by `Limits`; one peer alone shuts out no other, and who has no rights shares no
number with those who have.
"""

from __future__ import annotations

import select
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import messages
from nannyd.supervisor.connection import Call, Connection, Limits
from nannyd.supervisor.messages import CallError, Kind
from nannyd.supervisor.rights import Peer, Right, one_of, read_peer, still_there

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable, Sequence

__all__ = ["Call", "CallError", "Interface", "Kind", "Limits", "Method", "Server"]

_BACKLOG = 128
_ACCEPT_DELAY = 1.0
"""Until the next try, where there is no descriptor left for a connection."""


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
        self._connections: dict[int, Connection] = {}
        self._counts: Counter[tuple[int, ...]] = Counter()
        """Connections by right, and by peer."""
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
        except OSError:
            self._back_off()
            return
        try:
            sock.setblocking(False)
            peer = read_peer(sock)
            right = self._right_of(peer, sock)
        except OSError:
            sock.close()
            self._back_off()
        except Exception as error:  # noqa: BLE001 - a bug in the judgement must not end the supervisor
            sock.close()
            self.failed(error)
        else:
            self._admit(sock, peer, right)

    def _admit(self, sock: socket.socket, peer: Peer, right: Right) -> None:
        own, together = one_of(peer, right), (right,)
        limits = self.limits
        if self._counts[own] < limits.connections[right] and self._counts[together] < limits.together[right]:
            self._counts.update((own, together))
            self._connections[sock.fileno()] = Connection(self, sock, peer, right)
        else:
            sock.close()

    def _back_off(self) -> None:
        """No descriptor or memory is left for a connection: to ask again at once would be to spin."""
        self.epoll.modify(self._listener, 0)
        self._later = self.loop.call_later(_ACCEPT_DELAY, self._accept_again)

    def _accept_again(self) -> None:
        self._later = None
        self.epoll.modify(self._listener, select.EPOLLIN)

    def _right_of(self, peer: Peer, sock: socket.socket) -> Right:
        right = self._judge(peer)
        # A worker's process may have connected and gone, and left its end and its pid to others.
        return right if right <= Right.LOOK or still_there(sock) else Right.LOOK

    def forget(self, descriptor: int, connection: Connection) -> None:
        """Take note that a connection is no more."""
        del self._connections[descriptor]
        for counted in (one_of(connection.peer, connection.right), (connection.right,)):
            self._counts[counted] -= 1
            if not self._counts[counted]:
                del self._counts[counted]

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
