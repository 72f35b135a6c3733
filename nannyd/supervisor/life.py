"""One life of the worker: every kernel object that belongs to one generation, and their end.

A life begins with `begin()` and is over when its main process was reaped and its group is empty; then it
posts `Exited`, and after that is handled, `close()` gives everything back.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nannyd.core import boot, wire
from nannyd.core.lifecycle import (
    AskToStop,
    Event,
    Exited,
    MainExited,
    WorkerAlive,
    WorkerExtends,
    WorkerHung,
    WorkerReady,
    WorkerStopping,
)
from nannyd.core.plan import KillMode
from nannyd.supervisor import leftover, scratch
from nannyd.supervisor.logs import is_unread
from nannyd.supervisor.mailbox import Mailbox
from nannyd.supervisor.notices import FOREIGN_MESSAGE, WORKER_ERROR, say
from nannyd.supervisor.outbox import Outbox
from nannyd.supervisor.spawn import Child, Program, SpawnError, spawn
from nannyd.supervisor.watch import Poller, Tripwire

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from nannyd.core.exits import WaitStatus
    from nannyd.core.memory import Reading, Verdict
    from nannyd.core.plan import Plan
    from nannyd.supervisor.cgroup import Leaf
    from nannyd.supervisor.delegation import Delegation
    from nannyd.supervisor.group import Group
    from nannyd.supervisor.mailbox import Sender
    from nannyd.supervisor.poll import Sampler
    from nannyd.supervisor.watch import Watch

_CLOSE_SHARE = 0.95
"""Share of the time to the kill that a Python worker's close() gets."""
_LAST_WORDS_TIMEOUT = 0.5
_LAST_WORDS_PAUSE = 0.002
"""Seconds in which the journal is to receive what the worker said last, and between two looks."""
_LINE_MAX = 300
"""Characters of a worker's error or status that go into one line of ours."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all lives of an instance share."""

    loop: asyncio.AbstractEventLoop
    runtime: Path
    """The instance's directory under /run."""
    library: Path
    """A directory that holds nothing but `nannyd`, for the interpreters of Python workers."""
    delegation: Delegation | None
    tree: Callable[[str], Group] | None
    """Makes the group of a worker that gets no leaf, by the mark of its life (`leftover`)."""
    sampler: Sampler | None
    """Reads memory where the kernel does not count it for us."""
    output: Callable[[], int]
    """Opens where the worker's output goes; the caller closes it, unless it is 1 or 2."""
    post: Callable[[Event], None]
    noted: Callable[[], None]
    """Is called when the worker has a new STATUS=."""
    overrides: Callable[[], dict[str, str]] = dict
    """Returns the variables that plugins have set."""
    arguments: Callable[[], dict[str, Any]] = dict
    """Returns what a life adds to the keyword arguments of a Python worker."""
    tidy: Callable[[], object] = gc.collect
    """Is called after each life.  The interpreter keeps up to 2,000 freed tuples of each size, and looks for
    cycles after thousands of allocations: left alone, a thousand lives make 1 MiB.  With all else frozen,
    this takes 0.1 ms."""
    heard: Callable[[Life, dict[str, str], tuple[int, ...]], None] = lambda life, said, descriptors: None
    """Is told every message of a worker, with the descriptors that came with it, which it may copy."""


class Life:
    """The worker of one generation."""

    def __init__(self, place: Place, plan: Plan, generation: int) -> None:
        """Prepare the life; nothing exists until `begin`."""
        self.generation = generation
        self.plan = plan
        self.pid: int | None = None
        self.began = place.loop.time()
        self.note = ""
        """The worker's own STATUS=."""
        self.address = ""
        self.directory = ""
        self.error = ""
        self.errno = 0
        self.scratch: scratch.Scratch | None = None
        self.group: Group | None = None
        self.watch: Watch | None = None
        self._place = place
        self._child: Child | None = None
        self._mailbox: Mailbox | None = None
        self._channel: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._status: WaitStatus | None = None
        self._output: int | None = None
        """Our end of the worker's stream to the journal, while its main process is there."""
        self._listening: asyncio.TimerHandle | None = None

    def begin(self, report: Callable[[Verdict, Reading, bool], None]) -> None:
        """Execute the worker.  Raises SpawnError with everything given back."""
        try:
            self._make()
            self._begin_watch(report)  # before there is anything to miss
            self._spawn()
        except (SpawnError, OSError) as error:
            if self._child is not None:
                self._child.end()  # what failed came after the spawn, and nobody will be told of its end
            if self.group is not None:
                self.group.kill()
            self.close()
            if isinstance(error, SpawnError):
                raise
            raise SpawnError(str(error.filename or error), error.errno or errno.EIO) from error

    def _make(self) -> None:
        place, worker = self._place, self.plan.worker
        parent = scratch.place(worker.local_directory, os.environ, self.plan.name)
        self.scratch = scratch.Scratch(parent, self.generation)
        self._mailbox = Mailbox(place.runtime, place.loop, self._told)
        if place.delegation is not None:
            leaf = place.delegation.leaf(self.generation)
            self.group = leaf
            if place.delegation.has_memory:
                leaf.set_limits(self.plan.memory.thresholds.max, self.plan.memory.swap)
        elif place.tree is not None:
            self.group = place.tree(leftover.of_life(self.scratch.path))

    def _spawn(self) -> None:
        worker, place = self.plan.worker, self._place
        inside = None
        if worker.python is not None:
            self._channel, inside = socket.socketpair()
            self._channel.setblocking(False)
            self._outbox = Outbox(self._channel, place.loop)
        output = place.output()
        self._output = output if output not in (1, 2) else None
        try:
            program = Program(
                argv=self._argv(),
                environ=self._environ(output),
                working_directory=worker.working_directory,
                umask=worker.umask,
                nice=worker.nice,
                oom_score_adj=worker.oom_score_adj,
                stdout=output,
                stderr=output if output not in (1, 2) else 2,
                channel=None if inside is None else inside.fileno(),
            )
            self._child = spawn(program, self._leaf())
        finally:
            if inside is not None:
                inside.close()
        self.pid = self._child.pid
        if self.group is not None:
            self.group.begin(self.pid)
        place.loop.add_reader(self._child.pidfd, self._main_exited)
        if self._outbox is not None:
            self._outbox.put(self._specification())

    def _leaf(self) -> Leaf | None:
        return self.group if self._place.delegation is not None else None  # type: ignore[return-value]

    def _argv(self) -> list[str]:
        worker = self.plan.worker
        if worker.python is None:
            return worker.command
        library, name = str(self._place.library), self.plan.name
        return boot.boot_argv(worker.command[0], library, name, worker.python.target)

    def _environ(self, output: int) -> dict[str, str]:
        environ = {**self.plan.environ, **self._place.overrides()}
        leaf = self._leaf()
        if leaf is not None:
            environ.pop("MEMORY_PRESSURE_WATCH", None)
            if leaf.memory_pressure is not None:
                environ["MEMORY_PRESSURE_WATCH"] = leaf.memory_pressure
            else:
                environ.pop("MEMORY_PRESSURE_WRITE", None)
        status = os.fstat(output)
        if output not in (1, 2) and stat.S_ISSOCK(status.st_mode):
            environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        if self.plan.worker.watchdog is not None:
            environ["WATCHDOG_USEC"] = str(int(self.plan.worker.watchdog * 1e6))
        if self._mailbox is not None:
            environ["NOTIFY_SOCKET"] = str(self._mailbox.path)
        if self.scratch is not None:
            environ["NANNYD_LOCAL_DIRECTORY"] = str(self.scratch.path)
        return {**environ, "NANNYD_INSTANCE": self.plan.name}

    def _specification(self) -> dict[str, object]:
        worker = self.plan.worker
        python = worker.python
        return {
            "protocol": wire.PROTOCOL,
            "name": self.plan.name,
            "target": python.target if python else "",
            "args": python.args if python else [],
            "kwargs": {**python.kwargs, **self._place.arguments()} if python else {},
            "environ": {**self.plan.late_environ, **self._place.overrides()},
            "preload": python.preload if python else [],
            "preload_argv": python.preload_argv if python else [],
            "stop_timeout": worker.stop_timeout,
            "local_directory": str(self.scratch.path) if self.scratch else None,
        }

    def _begin_watch(self, report: Callable[[Verdict, Reading, bool], None]) -> None:
        place, memory = self._place, self.plan.memory
        leaf = self._leaf()
        if leaf is not None and place.delegation is not None and place.delegation.has_memory:
            self.watch = Tripwire(leaf, memory.thresholds, place.loop, report)
        elif self.group is not None and place.sampler is not None:
            self.watch = Poller(self.group, place.sampler, memory.thresholds, place.loop, report)

    def follow(self, plan: Plan) -> None:
        """Take over from a new *plan* what can change while the worker lives."""
        worker = replace(
            self.plan.worker,
            stop_signal=plan.worker.stop_signal,
            stop_timeout=plan.worker.stop_timeout,
            kill_mode=plan.worker.kill_mode,
        )
        self.plan = replace(self.plan, worker=worker, memory=plan.memory)
        if self.watch is not None:
            self.watch.apply(plan.memory.thresholds, plan.memory.swap)

    # --- What the worker says ---------------------------------------------------------------------

    def _told(self, said: dict[str, str], sender: Sender) -> None:
        if self.group is not None and sender.pid != self.pid:
            belongs = self.group.contains(sender.pid)
            if belongs is None:
                belongs = self.group.contained(sender.cgroup())
            if not belongs:
                known = (
                    "which is not"
                    if belongs is False
                    else "which is gone, so that nobody can say whether it was"
                )
                say(FOREIGN_MESSAGE, sender_pid=sender.pid, known=known, worker_pid=self.pid)
                return
        note = said.get("STATUS", self.note)[:_LINE_MAX]  # systemd ignores messages of more than 4 KiB
        if note != self.note:
            self.note = note
            self._place.noted()
        self.address = said.get("X_NANNYD_ADDRESS", self.address)
        self.directory = said.get("X_NANNYD_DIRECTORY", self.directory)
        self.errno = wire.parse_unsigned(said.get("ERRNO", "")) or self.errno
        if "X_NANNYD_ERROR" in said:
            text = wire.parse_error(said["X_NANNYD_ERROR"]).strip()[-wire.ERROR_MAX :]
            self.error = wire.summarize_error(text, _LINE_MAX)
            say(WORKER_ERROR, worker_pid=self.pid, detail=text)
        self._place.heard(self, said, sender.descriptors)
        for event in self._events(said):
            self._place.post(event)

    def _events(self, said: dict[str, str]) -> list[Event]:
        life, events = self.generation, list[Event]()
        if said.get("READY") == "1":
            events.append(WorkerReady(life))
        if said.get("STOPPING") == "1":
            events.append(WorkerStopping(life))
        if said.get("WATCHDOG") == "1":
            events.append(WorkerAlive(life))
        if said.get("WATCHDOG") == "trigger":
            events.append(WorkerHung(life))
        extension = wire.parse_unsigned(said.get("EXTEND_TIMEOUT_USEC", ""))
        if extension is not None:
            events.append(WorkerExtends(life, extension / 1e6))
        return events

    # --- Its end ----------------------------------------------------------------------------------

    def ask_to_stop(self, asked: AskToStop) -> None:
        """Tell a Python worker why, then send the stop signal; a stopped process is continued."""
        abort = asked.abort
        number = signal.SIGABRT if abort else self.plan.worker.stop_signal
        if self._outbox is not None and not abort:
            # Its bootstrap gives up on close() itself, a little before it would be killed.
            timeout = asked.drain + _CLOSE_SHARE * (asked.timeout - asked.drain)
            self._outbox.put({"stop": {"timeout": timeout, "reason": asked.reason, "drain": asked.drain}})
            number = signal.SIGTERM
        if self.plan.worker.kill_mode is KillMode.CONTROL_GROUP and self.group is not None and not abort:
            self.group.signal(number)
            self.group.signal(signal.SIGCONT)
        elif self._child is not None and self._status is None:
            self._child.signal(number)
            self._child.signal(signal.SIGCONT)
        if self.watch is not None:
            self.watch.lift()

    def kill(self) -> None:
        """Kill the whole group."""
        if self.group is not None:
            self.group.kill()
        if self._child is not None and self._status is None:
            self._child.signal(signal.SIGKILL)

    def _main_exited(self) -> None:
        """Let the journal receive its last lines: of a process that is reaped it knows no unit."""
        if self._child is not None:
            self._place.loop.remove_reader(self._child.pidfd)
            self._listen(self._place.loop.time() + _LAST_WORDS_TIMEOUT)

    def _listen(self, deadline: float) -> None:
        loop = self._place.loop
        if self._output is not None and is_unread(self._output) and loop.time() < deadline:
            self._listening = loop.call_later(_LAST_WORDS_PAUSE, self._listen, deadline)
        else:
            self._close_output()
            self._reap()

    def _close_output(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        if self._output is not None:
            os.close(self._output)
        self._listening = self._output = None

    def _reap(self) -> None:
        if self._child is None:
            return
        if (status := self._child.reap()) is None:
            self._place.loop.add_reader(self._child.pidfd, self._main_exited)
            return
        self._status = status
        if self._mailbox is not None:
            self._mailbox.drain()  # the last words explain the exit
        if self.group is None or self.group.is_empty():
            self._over()
        else:
            self._place.post(MainExited(self.generation))
            self.group.watch_empty(self._perhaps_empty)

    def _perhaps_empty(self) -> None:
        if self.group is not None and self._status is not None and self.group.is_empty():
            self._over()

    def _over(self) -> None:
        if self.group is None or self._status is None:
            return
        if self._mailbox is not None:
            self._mailbox.drain()
        if self.watch is not None:
            self.watch.close()
        evidence = replace(self.group.evidence(self._status), error=self.error)
        # `random` would cost 4 MiB of memory, for the hashes it imports.
        chance = int.from_bytes(os.urandom(4)) / (1 << 32)
        self._place.post(Exited(self.generation, evidence, chance))

    def abandon(self) -> None:
        """Kill and reap the worker, and give everything back: nobody will hear of its end any more."""
        self.kill()
        if self._child is not None and self._status is None:
            self._child.end()
        if self.scratch is not None:
            self.scratch.forget(removed=False)
        self.close()

    def close(self) -> None:
        """Give everything back but the scratch directory, whose removal takes its time."""
        self._close_output()
        if self._child is not None:
            self._place.loop.remove_reader(self._child.pidfd)
            self._child.close()
        if self._outbox is not None:
            self._outbox.close()
        for thing in (self.watch, self._mailbox, self._channel, self.group):
            if thing is not None:
                thing.close()
        # They refer to this life in turn: cut, and its memory is free now, not at some later collection.
        self.watch = self._mailbox = self.group = None
