"""The supervisor: the one place where decisions become deeds.

It owns the event queue and the loop over it.  `core.lifecycle.step()` decides; this does, and tells systemd
what changed.  The queue holds lifecycle events and, for everything else, functions to call, so that all of it
happens in one order and a hung loop cannot feed the watchdog.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nannyd.core import lifecycle
from nannyd.core.errors import ExitCode
from nannyd.core.lifecycle import (
    AskToStop,
    CloseGracefullyRequested,
    DeadlineReached,
    Effect,
    Event,
    Kill,
    KillRequested,
    MemoryExceeded,
    Policy,
    RestartRequested,
    Spawn,
    Spawned,
    SpawnFailed,
    StartRequested,
    State,
    StopRequested,
    Worker,
    step,
)
from nannyd.core.memory import Verdict
from nannyd.core.reload import changes, in_words
from nannyd.supervisor import logs, notices, status, telling
from nannyd.supervisor.history import History
from nannyd.supervisor.life import Life, Place
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError
from nannyd.supervisor.systemd import Systemd
from nannyd.supervisor.ticker import Ticker

if TYPE_CHECKING:
    from pathlib import Path

    from nannyd.core.exits import Exit
    from nannyd.core.memory import Reading
    from nannyd.core.plan import Plan
    from nannyd.supervisor.helpers import Helpers

Item = Event | Callable[[], None]

_ENDING = (State.STOP_SIGTERM, State.STOP_SIGKILL)

_STOP_MARGIN = 5.0
_NOTE_DELAY = 0.1
_FIRST_LOOK = 2.0
_READING_AGE = 0.1


class Supervisor:
    """Keeps one worker to its plan until it has ended."""

    def __init__(
        self, plan: Plan, place: Place, helpers: Helpers, weaker: str, systemd: Systemd | None = None
    ) -> None:
        """*weaker* says why there is no leaf, or nothing; *systemd* is who is told how it goes."""
        self.plan = plan
        self.worker = Worker()
        self.life: Life | None = None
        self.queue: asyncio.Queue[Item] = asyncio.Queue()
        self.place = replace(place, post=self.post, noted=self.noted)
        self._helpers = helpers
        self.weaker = weaker
        self.memory_mode = "cgroup" if place.sampler is None else "poll"
        self._loop = place.loop
        self.systemd = Systemd(os.environ) if systemd is None else systemd
        self._ticker = Ticker(self, place.loop)
        self._now = self._loop.time()
        self.was_ready = False
        self.ending = False
        """nannyd itself was asked to end: no worker is started any more."""
        self.signalled = False
        """It was asked by a signal, which is how systemd asks."""
        self.why_down = ""
        """Why the goal is to be down, where that was asked for."""
        self._excess: telling.Excess | None = None
        self._noting = False
        self._reading: Reading | None = None
        self._read_of: Life | None = None
        self._read_at = 0.0
        self._past: Life | None = None
        """The life that is over but for its scratch directory."""
        self.ended: telling.Ended | None = None
        self.restarts: dict[str, int] = {}
        """How many restarts of the policy each result has led to."""
        self.history = History()
        self.watchers: list[Callable[[], None]] = []
        """Are called after each step of the worker: who waits for something looks whether it came true."""
        self.begun = False
        """Preloads and plugins are set up; or it will not come to that."""
        self.local_directory: Path | None = None
        """Where scratch directories are made, and what plugins bring along is kept."""
        self._start_failed = ""
        self.hear: Callable[..., None] = lambda what, **info: None
        """Is told what happens to the worker: a word and facts."""
        self.buried: Callable[[Life, Exit, float], None] = lambda life, exit_, uptime: None
        """Is told how a life ended, after how many seconds, before what belongs to it is given back."""
        self.words: Callable[[], str] = str
        """Returns what else is to be said in the status sentence."""
        self.before_stop: Callable[[Callable[[], None]], None] | None = None
        """Does what is to be done before the worker is stopped, then calls back; at once, perhaps."""
        self._stop: Callable[[], None] | None = None
        """The stop that waits for that."""

    def post(self, item: Item) -> None:
        """Queue an event, or a function to call in its turn."""
        self.queue.put_nowait(item)

    def begin(self) -> None:
        """Start the first worker, unless a stop was asked for meanwhile."""
        self.post(self._begin)

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self.handle(StartRequested())

    def fail_start(self, reason: str) -> None:
        """End before the first worker was started."""

        def fail() -> None:
            if not self.begun:
                self.begun, self._start_failed = True, reason
                say(notices.START_FAILED, detail=reason)

        self.post(fail)

    async def run(self) -> int:
        """Supervise from `begin` until the worker has ended; return the exit status of nannyd.

        There is one timer for the worker, and it belongs to its state.
        """
        self._ticker.tick()
        while not self.begun or not self.worker.ended:
            try:
                async with asyncio.timeout_at(self.worker.deadline):
                    item = await self.queue.get()
            except TimeoutError:
                item = DeadlineReached()
            if callable(item):
                item()
            else:
                self.handle(item)
        return self._finish()

    def handle(self, event: Event) -> None:
        """Take one step and do what it asks for, a spawn's answer before anything else."""
        before = self.worker
        if (
            isinstance(event, CloseGracefullyRequested | StartRequested | RestartRequested)
            and not self.ending
        ):
            self.why_down = event.reason if isinstance(event, CloseGracefullyRequested) else ""
        policy = self._policy()
        self._now = self._loop.time()
        self.worker, effects = step(before, event, self._now, policy)
        if self.worker.stop is not None and before.stop is None:
            self.reading()  # for who asks later what it used in the end
        # A signal does not wait for what is said about it, a start does for the end of the life before.
        for effect in effects:
            self._signal(effect)
        self._tell(before, event)
        for effect in effects:
            if isinstance(effect, Spawn):
                self.handle(self._spawn(effect.generation))
        if self._past is not None:
            # Only now: rm(1) would take the CPU from the next worker's start.
            past, self._past = self._past, None
            self._clean_up(past)
            self.place.tidy()
        after = self.worker
        if (after.state, after.generation, after.goal) != (before.state, before.generation, before.goal):
            self.show()
        if self.worker.state is State.STOP_SIGTERM and self.worker.deadline != before.deadline:
            self._extend_stop(self.worker)
        for watcher in tuple(self.watchers):
            watcher()

    def _tell(self, before: Worker, event: Event) -> None:
        """Say what changed, and let go of a life that is over."""
        after = self.worker
        if after.exit is not None and after.exit is not before.exit:
            self._bury(after.exit)
        if isinstance(event, MemoryExceeded) and self._excess is not None and after.stop is not before.stop:
            self._excess.tell_termination()
            self._excess = None
        telling.tell(before, after, event, self.life, self._now)
        if after.restarts > before.restarts and after.exit is not None:
            self.restarts[after.exit.result] = self.restarts.get(after.exit.result, 0) + 1
        if after.state is State.FAILED and before.state is not State.FAILED:
            telling.tell_failed(after, self.plan.restart)
        if after.state is State.RUNNING and before.state is not State.RUNNING and self.life is not None:
            if self.systemd.present:  # what it uses at first says nothing
                self._loop.call_later(_FIRST_LOOK, self.post, self.show)
            self.hear(
                "worker_started", pid=self.life.pid, generation=after.generation, address=self.life.address
            )
        if after.state in _ENDING and before.state not in _ENDING and after.stop is not None:
            self.hear("worker_exiting", reason=after.stop.reason)
        if after.state is State.RUNNING and not self.was_ready:
            self.was_ready = True
            self.show()
            self.systemd.ready()

    def _bury(self, exit_: Exit) -> None:
        life, self.life = self.life, None
        if exit_.status is None or life is None:  # a failed spawn was told already
            self.ended = telling.Ended(exit_, self._now, None)
            return
        self.ended = telling.Ended(exit_, self._now, self._now - life.began)
        telling.tell_exit(life, exit_, self._now - life.began)
        self.hear("worker_exited", pid=life.pid, **telling.exit_facts(exit_, self._now - life.began))
        self.buried(life, exit_, self._now - life.began)
        if life.errno:
            self.systemd.errno(life.errno)
        life.close()
        self._past = life

    def _policy(self) -> Policy:
        # A life is judged by the plan it was started with only where it cannot be otherwise.
        worker = self.plan.worker
        alive = self.life.plan.worker if self.life is not None else worker
        return Policy(
            restart=self.plan.restart,
            ready=alive.ready,
            start_timeout=worker.start_timeout,
            stop_timeout=worker.stop_timeout,
            watchdog=alive.watchdog,
            kill_mode=worker.kill_mode,
            drain_timeout=self.plan.dask.drain_timeout if self.plan.dask is not None else 0.0,
        )

    # --- Deeds ------------------------------------------------------------------------------------

    def _signal(self, effect: Effect) -> None:
        if self.life is None:
            return
        match effect:
            case AskToStop():
                self.life.ask_to_stop(effect)
            case Kill():
                self.life.kill()
            case Spawn():
                pass

    def _spawn(self, generation: int) -> Event:
        life = Life(self.place, self.plan, generation)
        try:
            life.begin(lambda said, reading, wall: self._memory(life, said, reading, wall))
        except SpawnError as error:
            say(notices.START_FAILED, detail=str(error), errno=error.errno, nannyd_generation=generation)
            self.systemd.errno(error.errno)
            self._clean_up(life)
            return SpawnFailed(generation, str(error))
        self.life = life
        say(notices.WORKER_STARTED, worker_pid=life.pid, nannyd_generation=generation)
        return Spawned(generation)

    def _clean_up(self, life: Life) -> None:
        if life.scratch is not None:
            self._helpers.remove(life.scratch.path, life.scratch.forget)

    def _memory(self, life: Life, said: Verdict, reading: Reading, wall: bool) -> None:  # noqa: FBT001
        if life is not self.life or self.worker.state not in (State.START, State.RUNNING):
            if wall and life is self.life:
                self.post(MemoryExceeded(life.generation, "at the wall while stopping", wall=True))
            return
        self._reading, self._read_of, self._read_at = reading, life, self._loop.time()
        if said is Verdict.FINE:
            return
        excess = telling.Excess(life, reading, said, wall=wall)
        if said is Verdict.WARN:
            excess.tell_warning()
            self.hear("memory_warning", **telling.memory_facts(reading, life.plan.memory.thresholds.limit))
            self.show()
            return
        self._excess = excess
        self.post(
            MemoryExceeded(life.generation, f"memory.{'max' if wall else 'terminate'}: {excess}", wall=wall)
        )

    # --- How it is, in one sentence ---------------------------------------------------------------

    def show(self) -> None:
        """Bring the status sentence up to date."""
        if self.systemd.present:
            self.systemd.status(self.sentence())

    def noted(self) -> None:
        """Show the worker's new STATUS= soon; a worker that says one after the other costs little."""
        if not self._noting and self.systemd.present:
            self._noting = True
            self._loop.call_later(_NOTE_DELAY, self.post, self._show_note)

    def _show_note(self) -> None:
        self._noting = False
        self.show()

    def sentence(self) -> str:
        """Return how the instance is, in one sentence."""
        life = self.life
        facts = status.Facts(
            pid=life.pid if life is not None else None,
            reading=self.reading(),
            limit=(life.plan if life is not None else self.plan).memory.thresholds.limit,
            note=life.note if life is not None else "",
            weaker=self.weaker,
            beside=self.words(),
        )
        return status.sentence(self.worker, facts, self._loop.time())

    def reading(self) -> Reading | None:
        """Return what the worker uses now, or a moment ago: asking often is not looking often."""
        if self.life is None or self.life.watch is None:
            return None
        now = self._loop.time()
        if self._reading is None or self._read_of is not self.life or now - self._read_at > _READING_AGE:
            if (reading := self.life.watch.reading()) is None:
                return None  # and what was read before stays, for who asks later
            self._reading, self._read_of, self._read_at = reading, self.life, now
        return self._reading

    def last_reading(self, life: Life) -> Reading | None:
        """Return what *life* used when somebody last looked."""
        return self._reading if self._read_of is life else None

    # --- Stop, reload -----------------------------------------------------------------------------

    def stop(self, reason: str, timeout: float | None = None) -> None:
        """Stop the worker, then end: nothing that is asked later changes that.

        What is to be done before the worker is stopped has a deadline of its own.
        """
        self.why_down = self.why_down if self.ending else reason
        self.ending = True
        say(notices.STOP_REQUESTED, reason=reason)
        self.systemd.stopping()
        self.begun = True
        self._stop = lambda: self.handle(StopRequested(reason, timeout))
        if self.before_stop is None or self.worker.ended:
            self._stop_now()
            return
        before, self.before_stop = self.before_stop, None
        self.handle(CloseGracefullyRequested(reason))  # one that ends meanwhile is not started again
        before(self._stop_now)

    def kill(self, reason: str) -> None:
        """End this life without asking it; a stop that waits for something waits no longer."""
        self._stop_now()
        self.handle(KillRequested(reason))

    def _stop_now(self) -> None:
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()

    def _extend_stop(self, worker: Worker) -> None:
        """Ask systemd for the time that the worker has to end, and a margin to kill it in."""
        if worker.stop is not None and worker.deadline is not None:
            left = worker.deadline - self._now
            self.systemd.extend(left + worker.stop.timeout + _STOP_MARGIN)

    def is_of_worker(self, pid: int) -> bool | None:
        """Say whether process *pid* belongs to a worker of this instance; None: it is gone."""
        if self.place.delegation is not None:
            return self.place.delegation.in_leaf(pid)
        group = self.life.group if self.life is not None else None
        return group.contains(pid) if group is not None else False

    def adopt(self, plan: Plan) -> str:
        """Put a new plan in force, whole; return what that means, in words."""
        found = changes(self.plan, plan)
        if "log-level" in found:
            logs.set_level(plan.log_level)
        self.plan = plan
        if self.life is not None:
            self.life.follow(plan)
        return in_words(found)

    def reloaded(self) -> None:
        """Tell systemd that a reload is over."""
        self.show()
        if self.was_ready:
            self.systemd.ready()  # before the first worker is ready, it would be a lie

    def fail(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make an exception in a callback of the loop end `run`: nothing goes on half broken."""
        error = context.get("exception") or RuntimeError(context["message"])

        def fail() -> None:
            raise error

        self.post(fail)

    def abandon(self) -> None:
        """Kill the worker: it must not outlive a supervisor that has a bug."""
        if self.life is not None:
            self.life.kill()

    def _finish(self) -> int:
        self._ticker.stop()
        code = ExitCode.COULD_NOT_START if self._start_failed else lifecycle.exit_code(self.worker)
        self.systemd.status(self.sentence())
        if code is ExitCode.CLEAN and not self.was_ready and not self.signalled:
            # To systemd an end before READY=1 that it did not ask for is a failure, however clean: it would
            # start us again.
            self.systemd.ready()
        self.systemd.stopping()
        reason = self._start_failed or status.sentence(self.worker, status.Facts(), self._loop.time())
        say(notices.FINISHED, nannyd_instance=self.plan.name, exit_status=int(code), reason=reason)
        return int(code)
