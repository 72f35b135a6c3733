"""How a process of the user's interpreter is started: a Python worker, or the agent.

That interpreter need not have nannyd.  Needs the standard library of Python 3.10 only.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import nannyd
from nannyd.core import wire

_PROGRAM = (
    "import gc, sys; gc.disable(); sys.path.insert(0, {directory!r}); "
    "from nannyd.{room}.bootstrap import main; sys.path.append(sys.path.pop(0)); gc.enable(); main()"
)
"""The directory is first while nannyd itself is imported, so that no other `nannyd` of the user's can stand
in for the one that speaks to this supervisor; last from then on, so that nothing of the user's is shadowed.
There is no garbage in what is imported, but to look for it takes a sixth of the time."""


def boot_argv(python: str, directory: str, name: str, target: str) -> list[str]:
    """Return the argv that runs the class *target* (`pkg.mod:Class`) as worker *name*.

    *directory* holds nothing but the package `nannyd`.  *name* and *target* are there for whoever reads
    the process list: the bootstrap is told what to do through its channel (`wire.CHANNEL_FD`).
    """
    return [python, "-c", _PROGRAM.format(directory=directory, room="worker"), name, target]


def agent_argv(python: str, directory: str, name: str) -> list[str]:
    """Return the argv that runs the agent of instance *name*; *directory* is as for `boot_argv`."""
    return [python, "-c", _PROGRAM.format(directory=directory, room="agent"), name, "agent"]


def arrive() -> None:
    """Set `sys.argv` to the instance's name, and the first of `sys.path` to what `python -m` has there."""
    sys.argv[:] = sys.argv[1:2]
    if sys.path[:1] == [""]:  # because of `python -c`
        sys.path[0] = str(Path.cwd())


def take_channel(fd: int) -> socket.socket:
    """Return the socket that the supervisor left open at *fd*, kept from programs that are executed.

    Raises RuntimeError where there is none.
    """
    try:
        channel = socket.socket(fileno=fd)
    except OSError as error:
        message = f"descriptor {fd} is no channel ({error.strerror}); this is a program for nannyd to start"
        raise RuntimeError(message) from None
    channel.set_inheritable(False)
    return channel


def check_protocol(protocol: object, who: str) -> None:
    """Raise RuntimeError if the supervisor speaks another *protocol* than *who* in this package."""
    if protocol != wire.PROTOCOL:
        here = Path(nannyd.__file__).parent
        raise RuntimeError(
            f"the supervisor speaks protocol {protocol}, but the {who} in {here} "
            f"(nannyd {nannyd.__version__}) speaks {wire.PROTOCOL}; if nannyd was upgraded, restart it"
        )
