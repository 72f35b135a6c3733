"""Several instances of nannyd under one process: `--nworkers N`, and `--pid-file`.

Each has a process group of its own, so that Ctrl-C is one signal, passed on by us, and ends when we do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""Said to one process: systemd must not hear of N workers what is true of one."""


class Several:
    """The instances, from their start to the end of the last."""

    def __init__(self, commands: Sequence[list[str]], pid_file: str | None) -> None:
        """*commands* are executed as they are; *pid_file* holds our pid meanwhile."""
        self._commands = commands
        self._pid_file = None if not pid_file else Path(pid_file)
        self._children: list[subprocess.Popen[bytes]] = []
        self._pidfds: list[int] = []
        self._asked: signal.Signals | None = None
        self._told: set[int] = set()
        """Those of the pidfds that have heard of it."""

    def write_pid(self) -> None:
        """Write the pid file, if there is to be one; signals are passed on from now.  Raises OSError."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        if self._pid_file is not None:
            self._pid_file.write_text(f"{os.getpid()}\n")

    def run(self) -> int:
        """Start all, wait for all, and return the first exit status that is not 0."""
        try:
            self._start()
            statuses = [child.wait() for child in self._children]
        finally:
            if self._pid_file is not None:
                self._pid_file.unlink(missing_ok=True)
        clean = (0, None if self._asked is None else -self._asked)  # the latter: before it was nannyd
        return next((128 - status if status < 0 else status for status in statuses if status not in clean), 0)

    def _start(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        parent = os.getpid()

        def end_with_us() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        for number, command in enumerate(self._commands):
            if self._asked is not None:
                return
            child = subprocess.Popen(
                command,
                env=self._environ(number),
                process_group=0,
                preexec_fn=end_with_us,
            )
            self._children.append(child)
            pidfd = os.pidfd_open(child.pid)
            self._pidfds.append(pidfd)
            if self._asked is not None and pidfd not in self._told:  # between the fork and the list
                self._tell(pidfd, self._asked)

    def _environ(self, number: int) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if name not in _OURS}
        if directory := environ.get("RUNTIME_DIRECTORY"):
            environ["RUNTIME_DIRECTORY"] = f"{directory}/{number}"
        return environ

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._asked = signal.Signals(number)
        for pidfd in self._pidfds:
            self._tell(pidfd, self._asked)

    def _tell(self, pidfd: int, number: signal.Signals) -> None:
        self._told.add(pidfd)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(pidfd, number)
