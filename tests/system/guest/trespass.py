"""Try what another user must not be able to do to an instance; print what succeeded, as JSON.

    trespass.py INSTANCE SUPERVISOR WORKER LEAF

What would end the instance comes as a question to the kernel only (signal 0, access(2)).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NAME, SUPERVISOR, WORKER, LEAF = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
RUNTIME = Path("/run/nannyd", NAME)
STATE = Path("/var/lib/nannyd", NAME)


def reload() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(RUNTIME / "control"))
        connection.sendall(b'{"method": "io.nannyd.Nanny.Reload"}\0')
        reply = b""
        while not reply.endswith(b"\0"):
            reply += connection.recv(4096)
    if b"NotPermitted" in reply:
        raise PermissionError


def notify() -> None:
    (path,) = RUNTIME.glob("notify-*")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"STATUS=mine", str(path))


def lock() -> None:
    with (RUNTIME / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def scratch() -> None:
    os.listdir(STATE / "scratch")  # noqa: PTH208


def environment() -> None:
    Path(f"/proc/{WORKER}/environ").read_bytes()


def signalled(pid: int) -> Callable[[], None]:
    return lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0)


def writable(path: Path) -> Callable[[], None]:
    def probe() -> None:
        if not os.access(path, os.W_OK):
            raise PermissionError

    return probe


ATTEMPTS: dict[str, Callable[[], object]] = {
    "reload": reload,
    "notify": notify,
    "lock": lock,
    "scratch": scratch,
    "environment": environment,
    "signal to the supervisor": signalled(SUPERVISOR),
    "signal to the worker": signalled(WORKER),
    "runtime directory": writable(RUNTIME),
    "state directory": writable(STATE),
    "cgroup.kill": writable(LEAF / "cgroup.kill"),
    "cgroup.procs": writable(LEAF / "cgroup.procs"),
    "memory.max": writable(LEAF / "memory.max"),
}


def main() -> None:
    succeeded = []
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
        except (PermissionError, BlockingIOError):
            continue
        succeeded.append(name)
    print(json.dumps(succeeded))


main()
