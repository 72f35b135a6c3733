"""The control socket of an idle instance: how soon it answers, alone and beside a flood of calls."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nannyd.core.paths import control_socket

from .lab import Lab
from .peers import Nannyd
from .table import Row

CALLS = 10_000
FLOOD = 100_000
PROBES = 400


class Line:
    """One connection."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))

    def call(self, method: str, **parameters: object) -> None:
        """Call, and read the whole reply."""
        self.socket.sendall(written(method, **parameters))
        while not self.socket.recv(1 << 16).endswith(b"\0"):
            pass


def written(method: str, **parameters: object) -> bytes:
    """Return a call as it is sent."""
    return json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"


def everything(lab: Lab) -> list[Row]:
    """Make the rows."""
    lab.say("control: Status, and a flood of calls")
    group = "control socket"
    with Nannyd(lab.place("control"), ["sleep", "3600"], {"memory.limit": "400MiB"}) as nannyd:
        nannyd.worker()
        path = control_socket(nannyd.directory / "run")
        line = Line(path)
        line.call("io.nannyd.Nanny.Status")
        began = time.perf_counter()
        for _ in range(CALLS):
            line.call("io.nannyd.Nanny.Status")
        status = (time.perf_counter() - began) * 1000 / CALLS
        quiet = _answers(path)
        loud: list[float] = []
        flood = threading.Thread(target=_flood, args=(path,))
        flood.start()
        while flood.is_alive():
            loud += _answers(path)
        flood.join()
        line.call("io.nannyd.Nanny.Call", target="os:getpid")
        called = _times(lambda: line.call("io.nannyd.Nanny.Call", target="os:getpid"))
    return [
        Row(
            group,
            f"Status, {CALLS:,} in a row on one connection",
            "ms each",
            {"nannyd": [status]},
            at_most=0.5,
        ),
        Row(group, "Ping of another client", "ms", {"nannyd": quiet}),
        Row(
            group, f"Ping of another client beside {FLOOD:,} calls at once", "ms", {"nannyd": loud}, at_most=5
        ),
        Row(group, "Call of a function in the running agent", "ms", {"nannyd": called}, at_most=5),
    ]


def _answers(path: Path) -> list[float]:
    line = Line(path)
    times = _times(lambda: line.call("io.systemd.service.Ping"))
    line.socket.close()
    return times


def _times(call: Callable[[], None]) -> list[float]:
    """Return the milliseconds of each of some calls."""
    times = []
    for _ in range(PROBES):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.001)
    return times


def _flood(path: Path) -> None:
    line = Line(path)
    calls = written("io.systemd.service.Ping") * 1000
    reader = threading.Thread(target=_drain, args=(line.socket,))
    reader.start()
    for _ in range(FLOOD // 1000):
        line.socket.sendall(calls)
    line.socket.shutdown(socket.SHUT_WR)
    reader.join()


def _drain(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass
