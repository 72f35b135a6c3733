"""Commands that operators run in an instance's environment, beside the worker (`Run`).

Each has a leaf of its own, or a session where no cgroup is delegated.  What comes and goes by its
descriptors never passes through here.  It ends with its main process, at its timeout, when its caller hangs
up, or with nannyd; then whatever it has left behind is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import leftover
from nannyd.supervisor.facts import signal_name
from nannyd.supervisor.messages import Kind
from nannyd.supervisor.rights import Right
from nannyd.supervisor.spawn import Program, SpawnError, spawn
from nannyd.supervisor.varlink import Method
from nannyd.supervisor.waits import error, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.core.exits import WaitStatus
    from nannyd.supervisor.agentlife import Room
    from nannyd.supervisor.cgroup import Leaf
    from nannyd.supervisor.supervisor import Supervisor
    from nannyd.supervisor.tree import Session
    from nannyd.supervisor.varlink import Call

RUNS_MAX = 16
"""At the same time."""
_DESCRIPTORS = 3
_END_TIMEOUT = 5.0
"""Seconds for what is left of them when nannyd ends."""
_SHOWN_MAX = 200
"""Characters of a command that go into the record of the call."""
_OOM_SCORE_ADJ = 1000
"""Where memory runs out, a command goes rather than the worker."""
_OF_A_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
"""Go to all of the command's process group, as from a terminal; others to its main process."""
_LAST_SIGNAL = int(signal.SIGRTMAX)


class Run:
    """One command."""

    def __init__(
        self, room: Room, program: Program, number: int, over: Callable[[Run, WaitStatus], None]
    ) -> None:
        """Execute *program*; *over* is called when nobody is left.  Raises SpawnError and OSError."""
        self.timed_out = False
        self._room, self._over = room, over
        self._timer: asyncio.TimerHandle | None = None
        self._group: Leaf | Session
        mark = leftover.of_command(room.runtime, f"{number}-{os.urandom(4).hex()}")
        variable, _, value = mark.rstrip("\0").partition("=")
        program.environ[variable] = value
        if room.session is not None:
            self._group = room.session(mark)
            self._child = spawn(program, None)
            self._group.begin(self._child.pid)
        else:
            assert room.delegation is not None  # noqa: S101 - one of the two there is
            self._group = room.delegation.run_leaf(number)
            try:
                self._child = spawn(program, self._group)
            except SpawnError:
                self._group.close()
                raise
        self.pid = self._child.pid
        room.helpers.adopt(self.pid)
        room.loop.add_reader(self._child.pidfd, self._main_ended)

    def limit(self, timeout: float) -> None:
        """Kill it after *timeout* seconds."""
        self._timer = self._room.loop.call_later(timeout, self._late)

    def _late(self) -> None:
        self.timed_out = True
        self.kill()

    def signal(self, number: int) -> None:
        """Send it signal *number*, as if it were its caller."""
        with suppress(ProcessLookupError, PermissionError):  # gone, or a set-user-ID program's
            if number in _OF_A_TERMINAL:
                os.killpg(self.pid, number)  # it is reaped last, so the number is still its own
            else:
                self._child.signal(number)

    def kill(self) -> None:
        """Kill all of it."""
        self._group.kill()
        self.signal(signal.SIGKILL)

    def _main_ended(self) -> None:
        if self._child.has_ended():
            self._room.loop.remove_reader(self._child.pidfd)
            self._group.kill()
            self._group.watch_empty(self._perhaps_empty)

    def _perhaps_empty(self) -> None:
        if not self._group.is_empty() or (status := self._child.reap()) is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._room.helpers.release(self.pid)
        self._child.close()
        self._group.close()
        self._over(self, status)


class Runs:
    """The methods about commands."""

    def __init__(self, room: Room, supervisor: Supervisor, asked: Callable[[Call, str, str], None]) -> None:
        """*asked* records who called what."""
        self._room, self._supervisor, self._asked = room, supervisor, asked
        self._runs: dict[int, Run] = {}
        self._number = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def methods(self) -> dict[str, Method]:
        """Return the methods by name."""
        run = {
            "command": Kind.STRINGS,
            "terminal": Kind.MAYBE_BOOL,
            "environ": Kind.MAYBE_TABLE,
            "directory": Kind.MAYBE_STRING,
            "timeout": Kind.MAYBE_FLOAT,
        }
        return {
            "Run": Method(Right.ALL, self._run, run),
            "RunSignal": Method(Right.ALL, self._signal, {"processId": Kind.INT, "signal": Kind.INT}),
        }

    def _run(
        self,
        call: Call,
        command: list[str],
        terminal: bool | None,  # noqa: FBT001
        environ: dict[str, str] | None,
        directory: str | None,
        timeout: float | None,
    ) -> None:
        within = seconds(timeout)
        _check(command, environ or {}, call.descriptors, terminal=bool(terminal))
        if self._closed:
            raise error("Superseded", by="the instance is to end")
        if len(self._runs) >= RUNS_MAX:
            raise error("TooManyRuns", limit=RUNS_MAX)
        self._asked(call, "Run", " ".join(command)[:_SHOWN_MAX])
        program = self._program(call.descriptors, command, environ or {}, directory, terminal=bool(terminal))

        def over(run: Run, status: WaitStatus) -> None:
            del self._runs[run.pid]
            if not self._runs:
                self._idle.set()
            call.reply(_ended(run, status))

        self._number += 1
        try:
            run = Run(self._room, program, self._number, over)
        except (SpawnError, OSError) as failed:
            raise error("CannotExecute", reason=str(failed), errno=failed.errno) from None
        self._runs[run.pid] = run
        self._idle.clear()
        if within is not None:
            run.limit(within)
        call.when_closed(run.kill)
        if call.more:
            call.more_reply({"processId": run.pid})

    def _program(
        self,
        descriptors: tuple[int, ...],
        command: list[str],
        environ: dict[str, str],
        directory: str | None,
        *,
        terminal: bool,
    ) -> Program:
        plan = self._supervisor.plan
        stdin, stdout, stderr = descriptors
        where = plan.worker.working_directory
        overrides = self._supervisor.place.overrides()
        own = {"NANNYD_INSTANCE": plan.name}
        return Program(
            argv=command,
            environ={**plan.environ, **plan.late_environ, **overrides, **environ, **own},
            working_directory=where if directory is None else os.path.join(where or "", directory),  # noqa: PTH118
            umask=plan.worker.umask,
            nice=None,
            oom_score_adj=_OOM_SCORE_ADJ,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
        )

    def _signal(self, _: Call, signal: int, **given: int) -> dict[str, Any]:
        if not 0 < signal <= _LAST_SIGNAL:
            reason = f"signals are 1 to {_LAST_SIGNAL}"
            raise error("InvalidArgument", parameter="signal", reason=reason)
        run = self._runs.get(given["processId"])
        if run is None:
            raise error("NoSuchRun", **given)
        run.signal(signal)
        return {}

    async def close(self) -> None:
        """Kill all, and wait until nobody is left."""
        self._closed = True
        for run in tuple(self._runs.values()):
            run.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT):
                await self._idle.wait()


def _ended(run: Run, status: WaitStatus) -> dict[str, Any]:
    name = signal_name(status.signal)
    return {"processId": run.pid, "exitStatus": status.code, "signal": name, "timedOut": run.timed_out}


def _check(
    command: list[str], environ: dict[str, str], descriptors: tuple[int, ...], *, terminal: bool
) -> None:
    """Raise CallError for what cannot be run."""
    if not command:
        raise error("InvalidArgument", parameter="command", reason="is empty")
    for name, value in environ.items():
        if not name or "=" in name or "\0" in name + value:
            reason = f"{name!r} is not the name of a variable, or its value has a NUL character"
            raise error("InvalidArgument", parameter="environ", reason=reason)
    if len(descriptors) != _DESCRIPTORS:
        reason = f"three come with the call, stdin, stdout and stderr, not {len(descriptors)}"
        raise error("InvalidArgument", parameter="descriptors", reason=reason)
    if terminal and not os.isatty(descriptors[0]):
        raise error("InvalidArgument", parameter="terminal", reason="the first descriptor is no terminal")
