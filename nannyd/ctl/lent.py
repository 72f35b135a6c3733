"""A pseudo-terminal for a command that another process runs, between it and our own terminal.

Ours is raw meanwhile: keys go to the command's as they are, whose line discipline makes signals of them.
However we end, except by SIGKILL, ours is as it was.
"""

from __future__ import annotations

import fcntl
import os
import select
import selectors
import signal
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nannyd.ctl.client import FailureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nannyd.ctl.client import Reply
    from nannyd.ctl.execute import Job

_CHUNK = 1 << 16
_LAST_WORDS = 1.0
"""Seconds for what is left of the output, should somebody hold the terminal open who could not be killed."""
_ENDS_US = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
_TOLD = ("TERM", "COLORTERM")
"""Variables that tell what our terminal can do."""


def with_terminal(job: Job, parameters: dict[str, Any], environ: Mapping[str, str]) -> Reply:
    """Let the command have a terminal; return the last reply."""
    master, slave = os.openpty()
    termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(0))
    _pass_size_on(master)
    if os.geteuid() == 0:
        os.fchown(slave, job.connection.uid, -1)  # so that it can be opened by its name
    told = {name: environ[name] for name in _TOLD if name in environ}
    # What goes elsewhere than to our terminal, still does.
    errors = slave if os.isatty(2) else 2
    variables = {**told, **parameters["environ"]}
    job.start({**parameters, "terminal": True, "environ": variables}, (slave, slave, errors))
    while job.pid is None:
        select.select([job.connection], [], [])
        job.hear()
    with _raw(master):
        _Exchange(job, master).run()
        os.close(slave)  # held until now, so that the command may close its terminal and open it again
        _say_last_words(master)
    assert job.ended is not None  # noqa: S101 - what run() waits for
    return job.ended


def _pass_size_on(master: int) -> None:
    with suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))


class _Signalled(BaseException):
    """We were told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, _: object) -> None:
    raise _Signalled(number)


@contextmanager
def _raw(master: int) -> Iterator[None]:
    """Make our terminal raw, and put it back whatever happens; keep the size of the other the same."""
    saved = termios.tcgetattr(0)
    others = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
    before = {number: signal.getsignal(number) for number in (*_ENDS_US, *others)}
    signalled = None
    try:
        for number in _ENDS_US:
            signal.signal(number, _end)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # it would leave the shell a raw terminal
        # After SIGSTOP, the shell has its own ways with the terminal.
        signal.signal(signal.SIGCONT, lambda *_: tty.setraw(0, termios.TCSADRAIN))
        signal.signal(signal.SIGWINCH, lambda *_: _pass_size_on(master))
        _pass_size_on(master)
        tty.setraw(0, termios.TCSADRAIN)
        yield
    except _Signalled as end:
        signalled = end.number
    finally:
        for number in (*_ENDS_US, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        with suppress(termios.error):  # hung up
            termios.tcsetattr(0, termios.TCSANOW, saved)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signalled is not None:
        signal.signal(signalled, signal.SIG_DFL)
        signal.raise_signal(signalled)


class _Exchange:
    """What goes to and fro between two terminals, until the command has ended."""

    def __init__(self, job: Job, master: int) -> None:
        self._job, self._master = job, master
        self._typed = b""
        os.set_blocking(master, False)

    def run(self) -> None:
        """Exchange.  Raises FailureError."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._job.connection, selectors.EVENT_READ)
            selector.register(self._master, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while self._job.ended is None:
                for key, events in selector.select():
                    self._handle(selector, key.fileobj, events)

    def _handle(self, selector: selectors.BaseSelector, source: object, events: int) -> None:
        if source is self._job.connection:
            self._job.hear()
        elif source == 0:
            self._typed = _read(0)
            if not self._typed:
                raise FailureError("the terminal is gone")
            self._put(selector)
        else:
            if events & selectors.EVENT_READ:
                _write(_read(self._master))
            if events & selectors.EVENT_WRITE:
                self._put(selector)

    def _put(self, selector: selectors.BaseSelector) -> None:
        """Give the command what was typed; read on when it has taken all of that."""
        with suppress(BlockingIOError):
            self._typed = self._typed[os.write(self._master, self._typed) :]
        keys = selector.get_map()
        if self._typed:
            selector.modify(self._master, selectors.EVENT_READ | selectors.EVENT_WRITE)
            if 0 in keys:
                selector.unregister(0)
        elif 0 not in keys:
            selector.modify(self._master, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)


def _say_last_words(master: int) -> None:
    """Write what the command has left in its terminal, to the end: EIO, as nobody has it open."""
    while select.select([master], [], [], _LAST_WORDS)[0]:
        if not (chunk := _read(master)):
            return
        _write(chunk)


def _read(descriptor: int) -> bytes:
    """Return what can be read, nothing at the end."""
    try:
        return os.read(descriptor, _CHUNK)
    except OSError:  # EIO: the other end is closed
        return b""


def _write(chunk: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(1, chunk) :]
        except BlockingIOError:  # somebody who shares the terminal has made it so
            select.select([], [1], [])
