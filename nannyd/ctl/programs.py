"""Programs that are asked something: many at once, each for a limited time, for a limited answer."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nannyd.ctl.owners import Owner

_OUTPUT_MAX = 4 << 20
"""Bytes; the list of 1,000 units has 200 KiB."""

_TO_EXIT = 0.1
"""Seconds for a program that has said all."""


class Program:
    """One that runs.

    As *owner* it has nothing of ours that this user could take: neither environment nor terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        patience: float | None,
        owner: Owner | None = None,
        errors: bool = False,
    ) -> None:
        """Start *command*; *errors*: what it says on standard error is part of the output."""
        self.deadline = None if patience is None else time.monotonic() + patience
        self.output = bytearray()
        self.status: int | None = None
        """The exit status; None: it could not be run, did not end in time, or said too much."""
        self.late = False
        """It did not end in time."""
        self._process = _started(command, owner, subprocess.STDOUT if errors else subprocess.DEVNULL)

    @property
    def running(self) -> bool:
        """Whether more can come of it."""
        return self._process is not None

    @property
    def pipe(self) -> int:
        """Where its output comes."""
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018
        return self._process.stdout.fileno()

    def read(self) -> None:
        """Take what it has written."""
        assert self._process is not None  # noqa: S101
        chunk = os.read(self.pipe, 1 << 16)
        self.output += chunk
        if len(self.output) > _OUTPUT_MAX:
            self.give_up()
        elif not chunk:
            left = None if self.deadline is None else max(_TO_EXIT, self.deadline - time.monotonic())
            try:
                self.status = self._process.wait(left)
            except subprocess.TimeoutExpired:
                self.give_up()
            else:
                self._process.stdout.close()  # type: ignore[union-attr]
                self._process = None

    def give_up(self) -> None:
        """Kill it, and forget what it said.  Nobody waits for one that cannot die."""
        process, self._process = self._process, None
        self.output.clear()
        if process is not None:
            process.kill()
            process.stdout.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TO_EXIT)


def colourless() -> dict[str, str]:
    """Return our environment for a program of systemd whose output we read: it would colour even its JSON."""
    return {**os.environ, "SYSTEMD_COLORS": "0"}


def _started(command: Sequence[str], owner: Owner | None, errors: int) -> subprocess.Popen[bytes] | None:
    try:
        if owner is None:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=colourless(),
            )
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            user=owner.uid,
            group=owner.group,
            extra_groups=[],
            cwd="/",
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": owner.home or "/",
                "XDG_RUNTIME_DIR": str(owner.runtime),
            },
            start_new_session=True,
        )
    except OSError:
        return None


def collect(programs: Iterable[Program]) -> None:
    """Read what *programs* write until each has ended or its time is over."""
    with selectors.DefaultSelector() as selector:
        for program in programs:
            if program.running:
                selector.register(program.pipe, selectors.EVENT_READ, program)
        while waiting := [key.data for key in selector.get_map().values()]:
            left = min((it.deadline for it in waiting if it.deadline is not None), default=None)
            ready = selector.select(None if left is None else max(0.0, left - time.monotonic()))
            for key, _ in ready:
                key.data.read()
            now, heard = time.monotonic(), [key.data for key, _ in ready]
            for program in waiting:
                if program not in heard and program.deadline is not None and program.deadline <= now:
                    program.late = True
            for key in list(selector.get_map().values()):
                if key.data.late:
                    selector.unregister(key.fd)
                    key.data.give_up()
                elif not key.data.running:
                    selector.unregister(key.fd)
