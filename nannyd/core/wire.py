"""The datagrams of sd_notify(3): what workers say to nannyd, and nannyd to systemd.

One protocol for all workers, systemd's own, with nannyd on the manager's side.  Needs the standard
library of Python 3.10 only: the worker's bootstrap uses it inside the user's interpreter.
"""

from __future__ import annotations

import array
import json
import re
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL = 1
"""Version of what passes between supervisor and bootstrap (channel lines, X_NANNYD_ fields)."""

CHANNEL_FD = 3
"""Where the bootstrap of a Python worker finds its channel: a stream socket of JSON lines.

The supervisor's first line is the specification of the worker; a later line asks it to stop,
`{"stop": {"timeout": 24.0, "reason": "…", "drain": 0.0}}`.  End of file means that the supervisor is gone.
"""

SOCKETS_FD = 4
"""Where the agent of an instance in a Dask cluster finds the socket (SOCK_SEQPACKET) over which it is given
listening sockets: a message names what it is for, and has the descriptor with it (SCM_RIGHTS)."""

LINE_MAX = 1 << 20
"""Bytes of one line of the agent's channel, its end included."""

ERROR_MAX = 16 << 10
"""Characters of a traceback that travel, the last ones, for they name the error: 96 KiB at most."""


def parse(datagram: bytes) -> dict[str, str]:
    """Return the assignments of one datagram.  A line without `=` is skipped, as systemd does."""
    lines = datagram.decode("utf-8", "backslashreplace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def parse_unsigned(text: str) -> int | None:
    """Return the number that *text* is, at most 20 digits as 64 bits have; None for anything else."""
    return int(text) if len(text) <= 20 and text.isascii() and text.isdigit() else None


def format_error(text: str) -> str:
    """Return *text* (many lines) as the one-line value of X_NANNYD_ERROR."""
    return json.dumps(text[-ERROR_MAX:], ensure_ascii=False)


def parse_error(value: str) -> str:
    """Return the text of an X_NANNYD_ERROR, or the value itself where it is no JSON string."""
    try:
        text = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return text if isinstance(text, str) else value


_HEAD = re.compile(r"[\s|+]*(?:Exception Group )?Traceback \(most recent call last\):|[\s+-]+ \d+ -+")
"""What begins a traceback, or (`+---- 1 ----`) one of a group's."""
_NAMED = re.compile(r"(?:\s+\| )?([^\W\d][\w.]*(?:: .*)?)")
"""The line that names the error: at the margin, which is within a group's frame there."""


def summarize_error(text: str, longest: int) -> str:
    """Return the one line of a traceback that names the error, fit for a line of a log.

    That is the last error of a chain, and of a group the last in it.  Of another text it is the first line
    that looks like `Name: what`, else the last one.
    """
    lines = text.strip().split("\n")
    summary, is_awaited = lines[-1], True
    for line in lines:
        if _HEAD.fullmatch(line):
            is_awaited = True
        elif is_awaited and (match := _NAMED.fullmatch(line)):
            summary, is_awaited = match[1], False
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in summary.strip())
    return "".join(printable)[:longest]


def send(address: str | None, descriptors: Sequence[int] = (), /, **fields: str) -> None:
    """Send *fields*, and *descriptors* with them, to the notify socket at *address*; do nothing without one.

    Raises OSError where the socket is there but does not take the message.
    """
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        data = message.encode("utf-8", "backslashreplace")
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        sock.sendmsg([data], ancillary, 0, address)  # send_fds() of the older Pythons drops the address
