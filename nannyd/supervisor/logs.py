"""Where nannyd's own records go: the journal with fields, JSON lines, or text for people.

The worker may share our standard error and may fill it.  Its reader's slowness must never become the
supervisor's, so nothing here blocks: what does not fit is dropped, counted, and told later.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nannyd.core.plan import LogFormat

if TYPE_CHECKING:
    from collections.abc import Callable

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_JOURNAL = "/run/systemd/journal/socket"
_SIOCOUTQ = 0x5411
"""sockios.h: how much of what was sent has not been received yet."""
_LAST_WORDS_TIMEOUT = 2.0
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[1;31m"}


def stderr_is_journal() -> bool:
    """Say whether standard error is the journal's own stream, by the rule of systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(2)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def is_unread(descriptor: int) -> bool:
    """Say whether some of what was sent over a socket has not been received; never so where it is none."""
    try:
        return any(fcntl.ioctl(descriptor, _SIOCOUTQ, bytes(4)))
    except OSError:
        return False


def resolve(wanted: LogFormat) -> LogFormat:
    """Return the format that AUTO means here."""
    if wanted is not LogFormat.AUTO:
        return wanted
    return LogFormat.JOURNAL if stderr_is_journal() else LogFormat.TEXT


def set_up(wanted: LogFormat, level: str, instance: str, *others: logging.Handler) -> LogFormat:
    """Send all records of this process where *wanted* says, and to *others*; return what AUTO came to."""
    chosen = resolve(wanted)
    handler: logging.Handler
    if chosen is LogFormat.JOURNAL:
        handler = JournalHandler(instance)
    else:
        as_json = chosen is LogFormat.JSON
        handler = logging.StreamHandler(Nonblocking(2, _lost_as_json if as_json else _lost))
        handler.setFormatter(_json_formatter(instance) if as_json else Text(instance))
    root = logging.getLogger()
    root.handlers = [handler, *others]
    set_level(level)
    # Records must not fetch what nobody prints (logging.rst, "Optimization").
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    logging.raiseExceptions = False
    return chosen


def set_level(level: str) -> None:
    """Let records of *level* and above pass."""
    logging.getLogger().setLevel(level.upper())


class JournalHandler(logging.Handler):
    """Records to journald, their fields in upper case."""

    def __init__(self, instance: str) -> None:
        """Mark every record with *instance*."""
        super().__init__()
        # What systemd.journal exports; importing that itself costs another MiB (uuid, datetime …).
        from systemd._journal import sendv

        self._send = sendv
        self._instance = instance

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; without journald it is lost, as with every service."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": PRIORITIES.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": "nannyd",
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            "NANNYD_INSTANCE": self._instance,
            **getattr(record, "fields", {}),
        }
        try:
            # What is unknown, or nothing, has no field.
            told = (f"{key.upper()}={value!s}" for key, value in fields.items() if value not in (None, ""))
            self._send(*told)
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Wait, at the end of the process, until journald has received everything.

        It looks up whose a record is when it gets there: of a sender that is gone it knows no unit, and
        `journalctl -u` would not show why nannyd ended (systemd issue 2913).
        """
        deadline = time.monotonic() + _LAST_WORDS_TIMEOUT
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as last,
        ):
            last.connect(_JOURNAL)
            last.send(b"")  # goes to the end of the queue
            while is_unread(last.fileno()) and time.monotonic() < deadline:
                time.sleep(0.001)
        super().close()


class Text(logging.Formatter):
    """`12:30:01.123 worker1: text`, coloured on a terminal."""

    def __init__(self, instance: str) -> None:
        """Begin every line with *instance*."""
        super().__init__(f"%(asctime)s.%(msecs)03d {instance}: %(message)s", "%H:%M:%S")
        self._coloured = os.isatty(2) and not os.environ.get("NO_COLOR")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*."""
        line = super().format(record)
        colour = _COLOURS.get(record.levelno) if self._coloured else None
        return f"{colour}{line}\x1b[0m" if colour else line


def _json_formatter(instance: str) -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # only for --log-format json

    class Json(JsonFormatter):
        """One object a line: time, level, message, and the fields of the notice."""

        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            fields = log_data.pop("fields", None) or {}
            return {**log_data, "nannyd_instance": instance, **fields}

    return Json(
        "%(levelname)s %(message)s",
        timestamp="time",
        rename_fields={"levelname": "level"},
        json_ensure_ascii=False,
    )


def _lost(count: int) -> str:
    return f"({count} records were lost: nobody read them in time)"


def _lost_as_json(count: int) -> str:
    return json.dumps({"level": "WARNING", "message": _lost(count), "nannyd_event": "records-lost"})


class Nonblocking:
    """A text stream over a descriptor that never waits for its reader.

    O_NONBLOCK belongs to the open file, which the worker and the shell share; so a pipe or terminal is
    opened once more through /proc for an open file of our own.  A socket is sent to with MSG_DONTWAIT.
    A regular file never blocks.
    """

    def __init__(self, descriptor: int, lost: Callable[[int], str]) -> None:
        """Write to what *descriptor* refers to (borrowed, not owned); *lost* words that records were."""
        self._descriptor = descriptor
        self._lost = lost
        self._rest = b""
        self._socket: socket.socket | None = None
        self._dropped = 0
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            try:
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
            except OSError:  # another user's terminal: then it is as blocking as it is
                self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Write *text*, or drop it and say so when there is room again."""
        try:
            self._put_rest()
        except OSError:  # full, or the reader is gone
            self._dropped += 1
            return len(text)
        lost = self._lost(self._dropped) + "\n" if self._dropped else ""
        self._rest = (lost + text).encode("utf-8", "backslashreplace")
        self._dropped = 0
        with suppress(OSError):
            self._put_rest()
        return len(text)

    def _put_rest(self) -> None:
        """Write what has not been taken before: of more than PIPE_BUF bytes a pipe may take a part."""
        while self._rest:
            self._rest = self._rest[self._put(self._rest) :]

    def _put(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._descriptor, data)

    def flush(self) -> None:
        """Nothing is kept back."""
