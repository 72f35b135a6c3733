"""The other end of a Varlink connection, which may be as rude as it likes."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from harness import PATIENCE

INTERFACE = "org.example.test"
SERVICE = Path(__file__).with_name("varlink_service.py")
STANDARD = "org.varlink.service"


def written(method: str, parameters: Any = None, **flags: Any) -> bytes:
    """Return a call as it is sent; *method* without an interface is one of the test's."""
    name = method if "." in method else f"{INTERFACE}.{method}"
    return json.dumps({"method": name, "parameters": parameters, **flags}).encode() + b"\0"


class Line:
    """A connection."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))  # waits for its turn; with a timeout it would not
        self.socket.settimeout(PATIENCE)
        self._received = bytearray()

    @classmethod
    def of(cls, descriptor: int) -> Self:
        """Return the connection that somebody else has made."""
        line = cls.__new__(cls)
        line.socket = socket.socket(fileno=descriptor)
        line.socket.settimeout(PATIENCE)
        line._received = bytearray()
        return line

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, raw: bytes) -> None:
        """Send all of *raw*."""
        self.socket.sendall(raw)

    def receive(self) -> dict[str, Any]:
        """Return the next reply.  Raises EOFError."""
        while (end := self._received.find(0)) < 0:
            with contextlib.suppress(ConnectionResetError):
                if received := self.socket.recv(1 << 20):
                    self._received += received
                    continue
            raise EOFError
        raw = bytes(self._received[:end])
        del self._received[: end + 1]
        reply: dict[str, Any] = json.loads(raw)
        return reply

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call *method* and return the reply."""
        self.send(written(method, parameters))
        return self.receive()

    def get(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call *method* and return the parameters of the reply, which is no error."""
        reply = self.ask(method, **parameters)
        assert "error" not in reply, reply
        found: dict[str, Any] = reply["parameters"]
        return found

    def statistics(self) -> dict[str, Any]:
        """Return what the service says of itself."""
        found: dict[str, Any] = self.get("GetStatistics")["statistics"]
        return found

    def is_closed(self, within: float = PATIENCE) -> bool:
        """Wait for the other end to close, and say whether it did; there are no replies before that."""
        if not select.select([self.socket], [], [], within)[0]:
            return False
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True


class Service:
    """A running varlink_service.py."""

    def __init__(self, base: Path, **options: Any) -> None:
        """Start it."""
        self.path = base / "control"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVICE), str(self.path), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "open\n", self.process.communicate()[1]

    def line(self) -> Line:
        """Connect to it."""
        return Line(self.path)

    @contextlib.contextmanager
    def lines(self, number: int) -> Iterator[list[Line]]:
        """Connect to it often, and hang up; who replaces one has closed it."""
        lines: list[Line] = []
        try:
            lines += (self.line() for _ in range(number))
            yield lines
        finally:
            for line in lines:
                line.close()

    def close(self) -> str:
        """Stop it and return what it wrote on standard error."""
        self.process.terminate()
        try:
            return self.process.communicate(timeout=PATIENCE)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            return f"{self.process.communicate()[1]}\nit did not stop"


def as_user(
    act: Callable[[], Any], uid: int, gid: int, groups: list[int], *, beside: Callable[[], None] | None = None
) -> Any:
    """Return what *act* returns in a process of somebody else, by way of JSON; do *beside* meanwhile."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found: Any = None
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            found = {"returned": act()}
        except BaseException as error:  # noqa: BLE001 - the parent shall know
            found = {"raised": repr(error)}
        finally:
            os.write(writer, json.dumps(found).encode())
            os._exit(0)
    os.close(writer)
    if beside is not None:
        beside()
    with os.fdopen(reader, "rb") as stream:
        told = json.loads(stream.read())
    os.waitpid(child, 0)
    assert "returned" in told, told
    return told["returned"]
