"""`nannyctl exec`: a command beside the worker, as if it were run here.

Without a terminal the command gets our own descriptors, and signals are passed on to it.  With one it gets
a pseudo-terminal (`lent`).  Nothing of it outlives us: nannyd kills all of it when our connection ends.

The exit status is the command's, 128 and the number of the signal that ended it, or one of those that
env(1) and timeout(1) have, too: 124 killed for its timeout, 125 a failure of nannyctl or nannyd, 126 it
cannot be executed, 127 there is no such command.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.core.units import format_duration
from nannyd.ctl import replies
from nannyd.ctl.client import (
    NANNY,
    ClosedError,
    Connection,
    FailureError,
    RefusedError,
    call,
    parameters_of,
)
from nannyd.ctl.command import complain, reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nannyd.ctl.client import Address, Reply
    from nannyd.ctl.command import Command

TIMED_OUT, OWN_FAILURE, CANNOT_EXECUTE, NOT_FOUND = 124, 125, 126, 127
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_PATIENCE = 5.0


def execute(command: Command) -> int:
    """Run the command and return its exit status."""
    if not command.words or not all("=" in entry[1:] for entry in command.env):
        complain("write nannyctl exec [-e NAME=VALUE] [-w DIR] NAME -- COMMAND [ARGUMENT...]")
        return ExitCode.USAGE
    try:
        instance, address = reach(command)
        if instance.owner is not None and instance.failure is not None:
            # Who refuses root is no nannyd, and gets no descriptor of ours.
            raise FailureError(f"{instance.name}: {replies.words(instance.failure)}")
    except FailureError as failure:
        complain(str(failure))
        return OWN_FAILURE
    try:
        return _execute(command, address)
    except RefusedError as refusal:
        complain(f"{instance.name}: {replies.words(refusal)}")
        if refusal.error != f"{NANNY}.CannotExecute":
            return OWN_FAILURE
        return NOT_FOUND if refusal.parameters.get("errno") == errno.ENOENT else CANNOT_EXECUTE
    except FailureError as failure:
        complain(f"{instance.name}: {failure}")
        return OWN_FAILURE


def _execute(command: Command, address: Address) -> int:
    try:
        "".join((*command.words, *command.env, command.directory or "")).encode()
    except UnicodeEncodeError:
        raise FailureError("a command is UTF-8; this one is not") from None
    parameters: dict[str, Any] = {
        "command": command.words,
        "environ": dict(entry.split("=", 1) for entry in command.env),
        "directory": command.directory,
        "timeout": command.timeout,
    }
    if command.no_tty or not (command.tty or (os.isatty(0) and os.isatty(1))):
        ended = _with_our_descriptors(Job(address), parameters)
    elif not os.isatty(0):
        raise FailureError("there is no terminal to lend: standard input is none")
    else:
        from nannyd.ctl.lent import with_terminal

        ended = with_terminal(Job(address), parameters, command.environ)
    return _status(ended, command.timeout)


def _status(ended: Reply, timeout: float | None) -> int:
    table = replies.Table(ended)
    if ended.get("timedOut"):
        complain(f"killed after {format_duration(timeout or 0.0)}")
        return TIMED_OUT
    name = table.word("signal")
    if name is None:
        return table.integer("exitStatus")
    return 128 + (int(name) if name.isdigit() else signal.Signals[name])


class Job:
    """A command that nannyd runs for us."""

    def __init__(self, address: Address) -> None:
        """Connect to the instance.  Raises FailureError."""
        self.ended: Reply | None = None
        """What the last reply says."""
        self.pid: int | None = None
        self._address = address
        self.connection = Connection(address)
        self._waiting: list[int] = []

    def start(self, parameters: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Have it run; it has *descriptors*."""
        self.connection.send(f"{NANNY}.Run", parameters, more=True, descriptors=descriptors)

    def hear(self) -> None:
        """Take note of what nannyd says.  Raises FailureError."""
        try:
            for reply in self.connection.receive():
                found = parameters_of(reply)
                if not reply.get("continues"):
                    self.ended = found
                self.pid = replies.Table(found).integer("processId")
        except ClosedError:
            if self.pid is None:
                raise FailureError(
                    "nannyd closed the connection; does it end, or is that too long?"
                ) from None
            if self.ended is None:
                raise FailureError("nannyd is gone, and the command with it") from None
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            self.send(number)

    def send(self, number: int) -> None:
        """Pass a signal on to it, as soon as it runs."""
        if self.pid is None:
            self._waiting.append(number)
        elif self.ended is None:
            with suppress(FailureError):  # it has ended meanwhile, as the reply will say
                parameters = {"processId": self.pid, "signal": number}
                call(self._address, f"{NANNY}.RunSignal", parameters, patience=_PATIENCE)


def _with_our_descriptors(job: Job, parameters: dict[str, Any]) -> Reply:
    """Let the command have our own descriptors; return the last reply."""
    with selectors.DefaultSelector() as selector:
        heard = _hear_signals()
        selector.register(heard, selectors.EVENT_READ)
        job.start(parameters, (0, 1, 2))
        selector.register(job.connection, selectors.EVENT_READ)
        while job.ended is None:
            for key, _ in selector.select():
                if key.fileobj is job.connection:
                    job.hear()
                else:
                    for number in _numbers(heard):
                        job.send(number)
    return job.ended


def _hear_signals() -> socket.socket:
    """Return where the numbers of the signals arrive that are to be passed on."""
    inside, outside = socket.socketpair()
    for end in (inside, outside):
        end.setblocking(False)
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) means the command, too
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(outside.detach(), warn_on_full_buffer=False)
    return inside


def _numbers(heard: socket.socket) -> Iterator[int]:
    with suppress(BlockingIOError):
        yield from (number for number in heard.recv(4096) if number in _PASSED_ON)
