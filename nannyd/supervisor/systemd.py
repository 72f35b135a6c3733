"""What nannyd says to its own manager, by sd_notify(3).  Without $NOTIFY_SOCKET nothing is said."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import sdnotify

if TYPE_CHECKING:
    from collections.abc import Mapping


class Systemd:
    """The service manager above us."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Connect to $NOTIFY_SOCKET, if there is one."""
        self.present = bool(environ.get("NOTIFY_SOCKET"))
        self._notifier = sdnotify.SystemdNotifier() if self.present else None
        self.watchdog = watchdog_interval(environ)
        self._status = ""

    def _say(self, *assignments: str) -> None:
        if self._notifier is not None:
            self._notifier.notify("\n".join(assignments))

    def ready(self) -> None:
        """Say that the instance serves (again)."""
        self._say("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        # MONOTONIC_USEC is what keeps `systemctl reload` from hanging with Type=notify-reload.
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the instance is going down."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._say("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Say that starting or stopping may take *seconds* from now."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def errno(self, number: int) -> None:
        """Say with which errno the worker failed."""
        self._say(f"ERRNO={number}")

    def status(self, sentence: str) -> None:
        """Set the sentence of `systemctl status`, if it is another one."""
        if sentence != self._status:
            self._status = sentence
            self._say("STATUS=" + sentence.replace("\n", " "))


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Return the seconds between pings that systemd asks for (half of WATCHDOG_USEC), or None."""
    pid, microseconds = environ.get("WATCHDOG_PID"), environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or (pid is not None and pid != str(os.getpid())):
        return None
    return int(microseconds) / 2e6
