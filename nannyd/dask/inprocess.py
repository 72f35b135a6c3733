"""The worker's process of an in-process Nanny: a supervisor in the caller's event loop.

To the Nanny it is what `distributed.nanny.WorkerProcess` is, but for this: it starts the next worker itself,
and it is through when the supervisor is, which ends the Nanny.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from nannyd.core.exits import Cause, Result
from nannyd.core.lifecycle import (
    AskToStop,
    CloseGracefullyRequested,
    RestartRequested,
    StartRequested,
    State,
    StopRequested,
)
from nannyd.core.memory import Thresholds
from nannyd.core.restart import RestartMode
from nannyd.dask import lodging
from nannyd.dask.child import pack
from nannyd.dask.guard import guarded
from nannyd.supervisor import notices, telling
from nannyd.supervisor.helpers import Helpers
from nannyd.supervisor.life import Place
from nannyd.supervisor.lineage import Lineage
from nannyd.supervisor.poll import Sampler
from nannyd.supervisor.supervisor import Supervisor
from nannyd.supervisor.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.core.exits import Exit
    from nannyd.core.lifecycle import Event, Worker
    from nannyd.dask.nanny import Nanny
    from nannyd.supervisor.life import Life

logger = logging.getLogger("distributed.nanny")
memory_logger = logging.getLogger("distributed.nanny.memory")

_REMOVAL_TIMEOUT = 20.0
_KILL_TIMEOUT = 5.0
"""Seconds at least until a process that was killed must be gone."""
_ENDING = (Status.closing, Status.closing_gracefully, Status.closed, Status.failed, Status.stopping)
_UP = (State.START, State.RUNNING)


class Process:
    """One worker, with the manners of `multiprocessing.Process` that are asked of it."""

    def __init__(self, life: Life) -> None:
        """Stand for the worker of *life*."""
        self.pid = life.pid
        self.exitcode: int | None = None
        """As in subprocess: negative is a signal."""
        self.ended = asyncio.Event()
        self._life = life

    def is_alive(self) -> bool:
        """Say whether any process of it is left."""
        return not self.ended.is_set()

    def end(self, exit_: Exit) -> None:
        """Take note that it has ended."""
        status = exit_.status
        if status is not None:
            self.exitcode = status.code if status.signal is None else -status.signal
        self.ended.set()

    async def terminate(self) -> None:
        """Ask it to end."""
        if self.is_alive():
            self._life.ask_to_stop(AskToStop(lodging.STOP_TIMEOUT, "terminate"))

    async def kill(self) -> None:
        """Kill it and all that it has started."""
        if self.is_alive():
            self._life.kill()

    async def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended.  Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            await self.ended.wait()


class WorkerProcess:
    """The workers of a Nanny, one after the other."""

    def __init__(self, nanny: Nanny, worker: Any, arguments: dict[str, Any], config: dict[str, Any]) -> None:
        """Prepare to run *worker*, a class, with *arguments* and the Dask configuration *config*."""
        self.Worker = worker
        self.worker_kwargs = arguments
        self.config = config
        self.status = Status.init
        self.worker_address: str | None = None
        self.worker_dir: str | None = None
        self.process: Process | None = None
        self.running = asyncio.Event()
        """The start is over, well or not."""
        self.stopped = asyncio.Event()
        self._nanny = nanny
        self._supervisor: Supervisor | None = None
        self._task: asyncio.Task[None] | None = None
        self._step = asyncio.Event()
        """Is set at the next step."""
        self._exit: Exit | None = None
        self._error: Exception | None = None
        """Why the latest worker did not start."""
        self._generation = 0
        self._warned_of = 0

    @property
    def pid(self) -> int | None:
        """The worker's, while it is alive."""
        return self.process.pid if self.process is not None else None

    def is_alive(self) -> bool:
        """Say whether there is a worker."""
        return self.process is not None

    # --- What a Nanny asks ------------------------------------------------------------------------

    async def start(self) -> Status:
        """Have a worker that is ready, unless it ends before.  Raises what its start has raised."""
        supervisor = self._supervisor or self._begin()
        first = supervisor.worker.generation
        if self.status not in (Status.starting, Status.running):
            first += 1
            self._post(StartRequested())
        await self._until(lambda worker: _judged(worker, first))
        if self._error is not None and self.status is not Status.running:
            raise self._error
        return self.status

    async def kill(
        self,
        timeout: float = 5,
        executor_wait: bool = True,  # noqa: FBT001, FBT002 - Dask's
        reason: str = "workerprocess-kill",
    ) -> None:
        """End the worker: 0.8 × *timeout* after it was asked to, it is killed.

        It is gone, with whatever it has started, when this returns.  Raises TimeoutError if it does not die;
        a nanny that is being closed goes without it.
        """
        supervisor, task = self._supervisor, self._task
        if supervisor is None or task is None or task.done():
            return
        is_last = self._nanny.status in _ENDING
        if not (is_last or self.is_alive()):
            return
        logger.info("Nanny asking worker to close. Reason: %s", reason)
        life = supervisor.worker.generation
        self._post((StopRequested if is_last else RestartRequested)(reason, timeout))
        try:
            async with asyncio.timeout(0.8 * timeout + max(timeout, _KILL_TIMEOUT)):
                await self._until(lambda worker: worker.exit is not None and worker.exit.generation >= life)
        except TimeoutError:
            if self._nanny.status is not Status.closing:
                raise
            logger.error("Worker %s does not die", self.pid)
        else:
            await asyncio.wait({task}, timeout=_REMOVAL_TIMEOUT if is_last else 0)

    def let_go(self, reason: str) -> None:
        """Start no further worker."""
        self._post(CloseGracefullyRequested(reason))

    # --- The supervisor ---------------------------------------------------------------------------

    def _begin(self) -> Supervisor:
        pickled = pack(self.config, self.Worker, self.worker_kwargs)
        nanny, loop = self._nanny, asyncio.get_running_loop()
        name = lodging.instance_name(nanny.name)
        self._rooms = rooms = lodging.Rooms(name, nanny.local_directory)
        self._failure = rooms.runtime / "failure"
        kwargs = {"pickled": pickled, "failure": str(self._failure)}
        manager = nanny.memory_manager
        limit, fraction = manager.memory_limit, manager.memory_terminate_fraction
        terminate = int(limit * fraction) if limit and fraction else None
        thresholds = Thresholds(limit or None, None, terminate, limit if terminate else None)
        plan = lodging.plan(name, "nannyd.dask.child:Child", kwargs, nanny.local_directory, thresholds)
        loop = guarded(loop, self._fail)
        delegation = lodging.delegation()
        place = Place(
            loop=loop,
            runtime=rooms.runtime,
            library=lodging.LIBRARY,
            delegation=delegation,
            tree=lambda mark: Lineage(loop, mark),
            sampler=None if delegation is not None else Sampler(),
            output=lodging.output,
            post=lambda event: None,
            noted=lambda: None,
            overrides=lambda: lodging.environ(nanny.pre_spawn_env, nanny.env),
            arguments=self._arguments,
            tidy=lambda: None,
        )
        helpers = Helpers(loop, oom_score_adj=None)
        self._supervisor = supervisor = Supervisor(plan, place, helpers, "", Systemd({}))
        supervisor.watchers.append(self._look)
        supervisor.buried = self._bury
        supervisor.begun = True
        self._task = asyncio.get_running_loop().create_task(self._supervise(supervisor, helpers))
        # Not for the worker, which ends when this process does, but for what it has started.
        self._abandon = weakref.finalize(self, _abandon, os.getpid(), supervisor, rooms)
        return supervisor

    def _arguments(self) -> dict[str, Any]:
        self._failure.unlink(missing_ok=True)
        return {"path": [*sys.path]}

    async def _supervise(self, supervisor: Supervisor, helpers: Helpers) -> None:
        notices.LOGGER.set(logger)
        try:
            supervisor.handle(StartRequested())
            await supervisor.run()
            await helpers.wait(_REMOVAL_TIMEOUT)
        except Exception:
            logger.exception("The nanny's supervisor has failed")
        finally:
            if supervisor.life is not None:  # it failed, or the loop is being closed under it
                supervisor.life.abandon()
            self._abandon.detach()
            self._rooms.remove()
        self._nanny.worker_is_over()

    def _fail(self, error: Exception) -> None:
        def fail() -> None:
            raise error

        if self._supervisor is not None:
            self._supervisor.post(fail)

    def _post(self, event: Event) -> None:
        if (supervisor := self._supervisor) is not None:
            supervisor.post(event)

    async def _until(self, is_true: Callable[[Worker], bool]) -> None:
        """Wait until something is true of the worker, or there will be none."""
        while self._supervisor is not None and self._task is not None:
            if self._task.done() or is_true(self._supervisor.worker):
                return
            step = asyncio.ensure_future(self._step.wait())
            try:
                await asyncio.wait({self._task, step}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                step.cancel()

    def _why(self, exit_: Exit) -> Exception | None:
        """Return why the worker did not start, if that is known."""
        with suppress(Exception):  # it left none, or its class is not to be found here
            error: Exception = pickle.loads(self._failure.read_bytes())  # noqa: S301 - our own process's
            return error
        known = exit_.result in (Result.RESOURCES, Result.EXIT_CODE) and exit_.detail
        return RuntimeError(exit_.detail) if known else None

    # --- What becomes of a worker -----------------------------------------------------------------

    def _look(self) -> None:
        """Take note of a step of the supervisor's."""
        supervisor = self._supervisor
        if supervisor is None:
            return
        worker, life = supervisor.worker, supervisor.life
        if worker.exit is not self._exit and worker.exit is not None:
            self._exit = worker.exit
            self._ended(worker.exit, again=worker.state in (*_UP, State.AUTO_RESTART))
        if worker.generation != self._generation and life is not None:
            self._generation = worker.generation
            self._started(life)
        if worker.state is State.RUNNING and self.status is Status.starting and life is not None:
            self._ready(supervisor, life)
        if worker.state in (State.STOP_SIGTERM, State.STOP_SIGKILL):
            self.status = Status.stopping
            if worker.stop is not None and worker.stop.cause is Cause.MEMORY:
                self._exceeded(supervisor)
        step, self._step = self._step, asyncio.Event()
        step.set()

    def _started(self, life: Life) -> None:
        self.status, self.process = Status.starting, Process(life)
        self.running, self.stopped = asyncio.Event(), asyncio.Event()

    def _ready(self, supervisor: Supervisor, life: Life) -> None:
        self.worker_address, self.worker_dir = life.address, life.directory
        self.status = Status.running
        mode = RestartMode.ALWAYS if self._nanny.reconnect else RestartMode.NO
        supervisor.plan = replace(supervisor.plan, restart=replace(supervisor.plan.restart, mode=mode))
        self.running.set()

    def _bury(self, life: Life, exit_: Exit, uptime: float) -> None:
        if (supervisor := self._supervisor) is not None:
            reading, restarts = supervisor.last_reading(life), supervisor.worker.restarts
            self._nanny.worker_buried(telling.cluster_event(life, exit_, uptime, reading, restarts))

    def _ended(self, exit_: Exit, *, again: bool) -> None:
        self._error = None if exit_.was_ready else self._why(exit_)
        if self.process is not None:
            self.process.end(exit_)
        self.status, self.process, self.worker_dir = Status.stopped, None, None
        self.running.set()  # whoever waits for the start
        self.running.clear()
        self.stopped.set()
        if again:
            logger.warning("Restarting worker (status=%s)", self._nanny.status)

    def _exceeded(self, supervisor: Supervisor) -> None:
        """Tell, once for each, that a worker is ended for its memory."""
        life = supervisor.life
        if life is None or life.generation == self._warned_of:
            return
        self._warned_of, reading = life.generation, supervisor.last_reading(life)
        self._nanny.memory_exceeded(life.pid, reading.working_set if reading is not None else 0)


def _judged(worker: Worker, first: int) -> bool:
    """Say whether life number *first*, or one after it, is ready or over."""
    is_over = worker.exit is not None and worker.exit.generation >= first
    return is_over or (worker.state is State.RUNNING and worker.generation >= first)


def _abandon(pid: int, supervisor: Supervisor, rooms: lodging.Rooms) -> None:
    """Leave nothing behind when the program ends with a Nanny that was not closed."""
    if os.getpid() == pid:  # and not a forked child, which runs what was left for the end, too
        supervisor.abandon()
        rooms.remove()
