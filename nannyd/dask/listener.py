"""Dask's listeners on a socket that was made beforehand, and stays when nobody listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.comm.addressing import parse_address
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCPListener, TLSListener
from tornado.tcpserver import TCPServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable


class _Inherited:
    """What the two have in common: a listener of Dask's but for how it comes by its socket."""

    given: socket.socket
    accepted: Callable[[], None]
    tcp_server: TCPServer | None
    server_args: dict[str, Any]

    async def start(self) -> None:
        """Accept connections of the socket."""

        def handle(stream: Any, address: Any) -> Awaitable[None]:
            self.accepted()
            handled: Awaitable[None] = self._handle_stream(stream, address)  # type: ignore[attr-defined]
            return handled

        self.tcp_server = TCPServer(max_buffer_size=int(MAX_BUFFER_SIZE), **self.server_args)
        self.tcp_server.handle_stream = handle  # type: ignore[method-assign]
        self.tcp_server.add_sockets([self.given.dup()])
        self.get_host_port()  # type: ignore[attr-defined]


class _TCP(_Inherited, TCPListener):
    pass


class _TLS(_Inherited, TLSListener):
    pass


_KINDS: dict[str, type[_TCP | _TLS]] = {"tcp": _TCP, "tls": _TLS}


def listener(
    address: str,
    given: socket.socket,
    handle: Callable[[Any], Any],
    accepted: Callable[[], None],
    **connection_args: Any,
) -> Any:
    """Return what listens on *given*, which is known to others as *address*.

    *accepted* is called for each connection at once, *handle* when it is one of Dask's.
    """
    scheme, location = parse_address(address)
    if scheme not in _KINDS:
        raise ValueError(f"{address}: a nanny that is started on demand speaks {' or '.join(_KINDS)} only")
    made = _KINDS[scheme](location, handle, **connection_args)
    made.given, made.accepted = given, accepted
    return made
