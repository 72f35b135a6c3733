"""Where the nanny of a Dask worker listens.

The supervisor knows nothing of Dask's addresses, so the first worker's process makes the socket, with
distributed's own rules, and gives it away.  Who connects waits in its queue until the nanny's server runs.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket


def open_port(where: dict[str, Any], scheduler: str, security: Any) -> tuple[socket.socket, str]:
    """Return a listening socket and the address at which others find it.

    *where* has `host`, `interface`, `port`, `protocol`, and the worker's `listen_address` and
    `contact_address`: of these the hosts are meant.  Raises OSError if every port is taken.
    """
    import dask
    from distributed.comm.addressing import (
        address_from_user_args,
        get_address_host,
        parse_address,
        parse_host_port,
        unparse_host_port,
    )
    from distributed.comm.utils import ensure_concrete_host
    from distributed.utils import get_ip, parse_ports
    from tornado.netutil import bind_sockets

    here = get_ip(get_address_host(scheduler))
    host, interface = where.get("host"), where.get("interface")
    if where.get("listen_address"):
        host = unparse_host_port(get_address_host(where["listen_address"]))
    elif not host and not interface:
        host = unparse_host_port(here)
    protocol = _protocol(where.get("protocol"), scheduler, security)
    ports = parse_ports(where.get("port"))
    for port in ports:
        address = address_from_user_args(
            host=host, port=port, interface=interface, protocol=protocol, security=security
        )
        ip, number = parse_host_port(parse_address(address)[1], 0)
        try:
            first, *others = bind_sockets(
                number, address=ip, backlog=int(dask.config.get("distributed.comm.socket-backlog"))
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == ports[-1]:
                raise
            continue
        for other in others:  # of a name with addresses of both families
            other.close()
        bound, number = first.getsockname()[:2]
        contact = ensure_concrete_host(bound, default_host=here)
        if where.get("contact_address"):
            contact = get_address_host(where["contact_address"])
        return first, f"{protocol}://{unparse_host_port(contact, number)}"
    raise ValueError(f"no port for the nanny in {where.get('port')!r}")


def _protocol(chosen: str | None, scheduler: str, security: Any) -> str:
    """Return tcp or tls: a nanny is found at a socket, whatever its worker and scheduler speak."""
    protocol = (chosen or scheduler).partition("://")[0]
    if protocol in ("tcp", "tls"):
        return protocol
    return "tls" if security.require_encryption else "tcp"
