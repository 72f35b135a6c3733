"""Asking instances over their control sockets: Varlink, one JSON object and a NUL byte a message.

Many are asked at once, and nobody is waited for alone.  Who answers is not trusted: a socket counts only if
whom its directory belongs to (or root) listens there, and a reply is bounded in size and in time.  Another
user's (root asks them) is reached by no link, counts only if that user listens, and is not waited for while
it makes others wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

NANNY = "io.nannyd.Nanny"
SERVICE = "io.systemd.service"
REPLY_MAX = 16 << 20
"""Bytes of the longest reply that is read."""

_AT_ONCE = 256
"""Connections that are open at the same time; a process may have 1,024 descriptors."""
_OTHERS_SHARE = 16
"""Other users' replies may be shorter by this factor."""
_CHUNK = 1 << 18
_CLOSED = "not answering: it closed the connection; it is about to end, or too many are connected"
_CREDENTIALS = struct.Struct("3i")

Reply = dict[str, Any]


class FailureError(Exception):
    """An instance did not do what it was asked; the text says why."""


class NotListeningError(FailureError):
    """Nobody is at the socket, or there is none."""


class NotAnsweringError(FailureError):
    """Somebody is at the socket and says nothing."""


class ClosedError(NotAnsweringError):
    """Somebody was at the socket, and has closed the connection."""


class NotTrustedError(FailureError):
    """Who listens is not who may."""


class NonsenseError(FailureError):
    """What was said is no Varlink, or not of the interface."""


class RefusedError(FailureError):
    """The instance answered with a typed error; `replies.words()` puts it in words."""

    def __init__(self, error: str, parameters: Reply) -> None:
        """*error* is the full name."""
        super().__init__(error)
        self.error = error
        self.parameters = parameters


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance listens."""

    path: Path
    owner: int | None = None
    """The other user whose instance it is."""

    def open(self) -> tuple[int, int]:
        """Return a descriptor of the socket's file, and whom its directory belongs to.  Raises OSError."""
        path, place = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY
        if self.owner is None:
            start, names = self.path.parent, [self.path.name]
        else:  # /run/user/UID and /tmp are root's; what lies in them may be anything at any time
            start, names = self.path.parents[2], list(self.path.parts[-3:])
        directory = os.open(start, place)
        try:
            for name in names[:-1]:
                inner = os.open(name, place | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = inner
            return os.open(names[-1], path, dir_fd=directory), os.fstat(directory).st_uid
        finally:
            os.close(directory)


@dataclass(frozen=True, slots=True)
class Question:
    """One call of one instance."""

    address: Address
    method: str
    """With its interface."""
    parameters: dict[str, Any] = field(default_factory=dict)


class Connection:
    """A connection to one instance; it never blocks."""

    def __init__(self, address: Address, longest: int = REPLY_MAX) -> None:
        """Connect to *address*; a reply has at most *longest* bytes.  Raises FailureError."""
        self.pid = self.uid = 0
        """Who listens, as far as the kernel knows."""
        self._longest = longest
        self._received = bytearray()
        self._searched = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._connect(address)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, address: Address) -> None:
        try:
            file, owner = address.open()
            try:
                self._socket.connect(f"/proc/self/fd/{file}")
            finally:
                os.close(file)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotListeningError("nobody listens at its socket") from error
        except BlockingIOError as error:
            raise NotAnsweringError("not answering: too many wait for it already") from error
        except OSError as error:
            raise NotListeningError(f"its socket cannot be used ({error.strerror or error})") from error
        self.pid, self.uid, _ = _CREDENTIALS.unpack(
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        allowed = (0, owner) if address.owner is None else (address.owner,)
        if self.uid not in allowed:
            raise NotTrustedError(f"not trusted: user {self.uid} listens at the socket of user {owner}")

    def fileno(self) -> int:
        """Return the descriptor, to wait for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(
        self,
        method: str,
        parameters: dict[str, Any],
        *,
        more: bool = False,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Send one call, and *descriptors* with it.  Raises FailureError."""
        call = {"method": method, "parameters": parameters, **({"more": True} if more else {})}
        message = json.dumps(call).encode() + b"\0"
        try:
            # A fresh connection takes as much as a command line can hold.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            if self._socket.sendmsg([message], rights, socket.MSG_NOSIGNAL) < len(message):
                raise NotAnsweringError("not answering: the call is longer than its socket takes")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ClosedError(_CLOSED) from error
        except OSError as error:
            raise NotAnsweringError(f"not answering ({error.strerror})") from error

    def receive(self) -> list[Reply]:
        """Return what has arrived, perhaps nothing.  Raises FailureError, also where it was closed."""
        try:
            chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ClosedError(_CLOSED) from error
        if not chunk:
            raise ClosedError(_CLOSED)
        self._received += chunk
        return list(self._messages())

    def _messages(self) -> Iterator[Reply]:
        while (end := self._received.find(b"\0", self._searched)) >= 0:
            message = bytes(self._received[:end])
            del self._received[: end + 1]
            self._searched = 0
            yield _parsed(message)
        self._searched = len(self._received)
        if self._searched > self._longest:
            longest = self._longest >> 20, self._longest >> 10
            size = f"{longest[0]} MiB" if longest[0] else f"{longest[1]} KiB"
            raise NonsenseError(f"its reply is longer than {size}")


def _parsed(message: bytes) -> Reply:
    try:
        reply = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise NonsenseError("its reply is not JSON") from error
    if not isinstance(reply, dict) or not isinstance(reply.get("parameters", {}), dict):
        raise NonsenseError("its reply is not one of Varlink")
    return reply


def parameters_of(reply: Reply) -> Reply:
    """Return the parameters of *reply*.  Raises RefusedError for an error."""
    error = reply.get("error")
    parameters: Reply = reply.get("parameters", {})
    if error is not None:
        raise RefusedError(str(error), parameters)
    return parameters


def ask(
    questions: Sequence[Question],
    *,
    patience: float | None,
    quiet: float | None = None,
    longest: int = REPLY_MAX,
) -> list[Reply | FailureError]:
    """Ask all *questions* at once, and return an answer of at most *longest* bytes or a failure for each.

    It ends when all have answered, after *patience* seconds (None: never), or when for *quiet* seconds
    nobody has said anything (other users do not count).
    """
    answers: list[Reply | FailureError] = []
    for start in range(0, len(questions), _AT_ONCE):
        answers += _Round(questions[start : start + _AT_ONCE], patience, quiet, longest).answers()
    return answers


def call(
    address: Address, method: str, parameters: dict[str, Any] | None = None, *, patience: float | None
) -> Reply:
    """Return the reply to one call.  Raises FailureError."""
    (answer,) = ask([Question(address, method, parameters or {})], patience=patience)
    if isinstance(answer, FailureError):
        raise answer
    return answer


class _Round:
    """Questions whose connections are open at the same time."""

    def __init__(
        self, questions: Sequence[Question], patience: float | None, quiet: float | None, longest: int
    ) -> None:
        self._questions = questions
        self._longest = longest
        self._end = None if patience is None else time.monotonic() + patience
        self._quiet = quiet
        self._heard_at = time.monotonic()
        self._found: dict[int, Reply | FailureError] = {}

    def answers(self) -> list[Reply | FailureError]:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            self._connect(selector, stack)
            # Many were woken by that, on few processors; what has come meanwhile counts.
            self._heard_at = time.monotonic()
            while selector.get_map():
                left = self._left()
                for key, _ in selector.select(left):
                    self._hear(selector, key)
                if left == 0 and self._left() == 0:  # not even now
                    break
        missing = NotAnsweringError("not answering")
        return [self._found.get(index, missing) for index in range(len(self._questions))]

    def _connect(self, selector: selectors.BaseSelector, stack: contextlib.ExitStack) -> None:
        for index, question in enumerate(self._questions):
            longest = self._longest if question.address.owner is None else self._longest // _OTHERS_SHARE
            try:
                connection = stack.enter_context(contextlib.closing(Connection(question.address, longest)))
                connection.send(question.method, question.parameters)
            except FailureError as failure:
                self._found[index] = failure
            else:
                selector.register(connection, selectors.EVENT_READ, index)

    def _left(self) -> float | None:
        quiet = None if self._quiet is None else self._heard_at + self._quiet
        end = min((instant for instant in (self._end, quiet) if instant is not None), default=None)
        return None if end is None else max(0.0, end - time.monotonic())

    def _hear(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        connection = key.fileobj
        assert isinstance(connection, Connection)  # noqa: S101 - what _connect registered
        if self._questions[key.data].address.owner is None:
            self._heard_at = time.monotonic()  # another user's are not waited for, however they drip
        try:
            replies = connection.receive()
            if replies:
                self._found[key.data] = parameters_of(replies[0])
        except FailureError as failure:
            self._found[key.data] = failure
        if key.data in self._found:
            selector.unregister(connection)


def stream(connections: Iterable[tuple[Any, Connection]]) -> Iterator[tuple[Any, Reply | FailureError]]:
    """Yield what arrives on open *connections*, each with its label, until all have ended.

    The last of each is the failure by which it ended.
    """
    with selectors.DefaultSelector() as selector:
        for label, connection in connections:
            selector.register(connection, selectors.EVENT_READ, label)
        while selector.get_map():
            for key, _ in selector.select():
                source = key.fileobj
                assert isinstance(source, Connection)  # noqa: S101 - registered above
                try:
                    for reply in source.receive():
                        yield key.data, parameters_of(reply)
                except FailureError as failure:
                    selector.unregister(source)
                    source.close()
                    yield key.data, failure
