"""`nannyd reload NAME`: ask a running instance to reload, and wait for its verdict.

This is what the unit's `ExecReload=` runs: it is synchronous, so that `systemctl reload` fails when the
configuration is wrong.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from nannyd.config.complain import complain
from nannyd.core.errors import ExitCode, Problem
from nannyd.core.paths import SYSTEM_DIRECTORY, control_socket, runtime_directory
from nannyd.core.units import name_problem

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT = 90.0
"""Seconds; the supervisor itself gives up on its launcher before."""


def reload(name: str) -> int:
    """Reload instance *name*; return 0, or 78 after all errors were written to standard error."""
    if (wrong := name_problem(name)) is not None:
        complain([Problem("command line", "NAME", wrong)])
        return ExitCode.CONFIG
    path = control_socket(runtime_directory(name, os.environ))
    try:
        reply = call(path, "io.nannyd.Nanny.Reload")
    except (FileNotFoundError, ConnectionRefusedError):
        hint = ""
        if path != (systems := control_socket(SYSTEM_DIRECTORY / name)) and systems.exists():
            hint = f"; the system's instance of that name is reloaded by root: systemctl reload nannyd@{name}"
        return _failed(f"{name} is not running ({path}: nobody listens){hint}", ExitCode.WORKER_FAILED)
    except (OSError, ValueError) as error:
        return _failed(f"{name} does not answer ({path}: {error})", ExitCode.WORKER_FAILED)
    problems = reply.get("parameters", {}).get("problems")
    if problems:
        complain(problems)
        return ExitCode.CONFIG
    if "error" in reply:
        return _failed(f"{name} refused: {reply['error']} {reply.get('parameters')}", ExitCode.WORKER_FAILED)
    return ExitCode.CLEAN


def _failed(message: str, code: ExitCode) -> int:
    complain([message])
    return code


def call(path: Path, method: str) -> dict[str, Any]:
    """Return the reply to a Varlink call without parameters.

    Raises OSError (also TimeoutError), and ValueError where the reply is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(str(path))
        connection.sendall(json.dumps({"method": method}).encode() + b"\0")
        received = b""
        while not received.endswith(b"\0"):
            chunk = connection.recv(1 << 16)
            if not chunk:
                raise ConnectionResetError("the connection was closed")
            received += chunk
    reply: dict[str, Any] = json.loads(received[:-1])
    return reply
