"""The supervisor: the one place where decisions become deeds.

It owns the event queue and the loop over it.  `core.lifecycle.step()` decides; `_perform()` does; what
changed is told to systemd, to the log, and in the status sentence.  The queue holds lifecycle events and,
for everything else, functions to call, so that all of it happens in one order and a hung loop cannot
feed the watchdog.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nannyd.core import lifecycle
from nannyd.core.exits import Result, describe
from nannyd.core.lifecycle import (
    AskToStop,
    DeadlineReached,
    Effect,
    Event,
    Kill,
    KillRequested,
    MemoryExceeded,
    Policy,
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
from nannyd.core.reload import When, changes
from nannyd.core.units import format_duration, format_size
from nannyd.core.wire import SUPERVISED
from nannyd.supervisor import notices, status
from nannyd.supervisor.control import CallError
from nannyd.supervisor.life import Life, Place
from nannyd.supervisor.notices import say
from nannyd.supervisor.poll import breakdown
from nannyd.supervisor.spawn import SpawnError
from nannyd.supervisor.systemd import Systemd, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from nannyd.core.memory import Reading
    from nannyd.core.plan import Plan
    from nannyd.supervisor.helpers import Helpers

Item = Event | Callable[[], None]

_EXTEND_EVERY = 10.0
_EXTEND_BY = 30.0
"""Until the first READY systemd is asked for this much more time, again and again: the time that a start
or a back-off takes is the worker's and nannyd's to limit."""
_CALM_DOWN_EVERY = 15.0
"""Without systemd's watchdog, a worker that was warned is looked at this often."""
_STOP_MARGIN = 5.0
_NOTE_DELAY = 0.1
_STATUS_EVERY = 15.0
"""Without a watchdog, how often the sentence of `systemctl status` is brought up to date."""


class Supervisor:
    """Keeps one worker to its plan until it has ended."""

    def __init__(self, plan: Plan, place: Place, helpers: Helpers, weaker: str) -> None:
        """*weaker* says why there is no leaf, or nothing."""
        self.plan = plan
        self.worker = Worker()
        self.life: Life | None = None
        self.queue: asyncio.Queue[Item] = asyncio.Queue()
        self._place = replace(place, post=self.post, noted=self.noted)
        self._helpers = helpers
        self._weaker = weaker
        self._loop = place.loop
        self.systemd = Systemd()
        self._watchdog = watchdog_interval()
        self._ticking: asyncio.TimerHandle | None = None
        self._now = self._loop.time()
        self._was_ready = False
        self._interrupted = False
        self._excess: dict[str, object] = {}
        self._noting = False
        self._past: Life | None = None
        """The life that is over but for its scratch directory."""
        self.post(StartRequested())  # before any signal can ask for a stop

    def post(self, item: Item) -> None:
        """Queue an event, or a function to call in its turn."""
        self.queue.put_nowait(item)

    async def run(self) -> int:
        """Supervise until the worker has ended; return the exit status of nannyd.

        There is one timer for the worker, and it belongs to its state.
        """
        self._tick()
        while not self.worker.ended or self.worker.generation == 0:
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
        policy = self._policy()
        self._now = self._loop.time()
        self.worker, effects = step(before, event, self._now, policy)
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
            # The interpreter keeps up to 2,000 freed tuples of each size, and looks for cycles after
            # thousands of allocations: left alone, a thousand lives make 1 MiB.  All else is frozen, so
            # this takes 0.1 ms.
            gc.collect()
        if self.worker.state is not before.state or self.worker.generation != before.generation:
            self.show()
        if self.worker.state is State.STOP_SIGTERM and self.worker.deadline != before.deadline:
            self._extend_stop(self.worker)

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
        )

    # --- Deeds ------------------------------------------------------------------------------------

    def _signal(self, effect: Effect) -> None:
        if self.life is None:
            return
        match effect:
            case AskToStop(timeout, reason, abort):
                self.life.ask_to_stop(timeout, reason, abort=abort)
            case Kill():
                self.life.kill()
            case Spawn():
                pass

    def _spawn(self, generation: int) -> Event:
        life = Life(self._place, self.plan, generation)
        try:
            life.begin(lambda said, reading, wall: self._memory(life, said, reading, wall))
        except SpawnError as error:
            say(notices.START_FAILED, detail=str(error), errno=error.errno)
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
        thresholds = life.plan.memory.thresholds
        limit = thresholds.limit or 0
        threshold = thresholds.warn if said is Verdict.WARN else thresholds.terminate
        if wall:
            threshold = thresholds.max
        fields = {
            "worker_pid": life.pid,
            "used": format_size(reading.working_set),
            "limit": format_size(limit),
            "share": f"{100 * reading.working_set / limit:.1f} %" if limit else "?",
            "threshold": format_size(threshold or 0),
            "memory_working_set": reading.working_set,
            "memory_limit": limit,
            "memory_threshold": threshold,
        }
        if said is Verdict.WARN:
            say(notices.MEMORY_WARNING, **fields)
            self.show()
            return
        pids = life.group.pids() if life.group is not None else []
        self._excess = {  # looked at now, told when the worker was asked to end
            **fields,
            "breakdown": parts(reading),
            "largest": ", ".join(f"{it.comm} {it.pid} {format_size(it.size)}" for it in breakdown(pids, 3)),
            "memory_anon": reading.anon,
            "memory_shmem": reading.shmem,
            "memory_kernel": reading.kernel,
            "memory_swap": reading.swap,
        }
        rule = "max" if wall else "terminate"
        detail = f"memory.{rule}: {fields['used']} of {fields['limit']} ({fields['share']})"
        self.post(MemoryExceeded(life.generation, detail, wall=wall))

    # --- What changed, told -----------------------------------------------------------------------

    def _tell(self, before: Worker, event: Event) -> None:
        after = self.worker
        life = self.life
        if after.exit is not None and after.exit is not before.exit:
            self._tell_exit(after)
        if isinstance(event, MemoryExceeded) and self._excess and after.stop is not before.stop:
            say(notices.MEMORY_TERMINATE, **self._excess)
            self._excess = {}
        if after.state is before.state and after.generation == before.generation:
            if isinstance(event, DeadlineReached) and after.state is State.STOP_SIGKILL:
                pids = life.group.pids() if life is not None and life.group is not None else []
                say(notices.WORKER_REMAINS, worker_pid=life.pid if life else None, pids=pids)
            return
        pid = life.pid if life is not None else None
        match after.state:
            case State.RUNNING:
                self._tell_ready(pid)
            case State.STOP_SIGTERM:
                self._tell_stopping(after, pid)
            case State.STOP_SIGKILL:
                self._tell_killing(after, pid)
            case State.AUTO_RESTART:
                seconds = (after.deadline or 0) - self._now
                delay = format_duration(seconds)
                say(notices.RESTARTING, delay=delay, restarts=after.restarts, seconds=round(seconds, 3))
            case State.FAILED:
                self._tell_failed(after)
            case State.INACTIVE | State.START:
                pass

    def _tell_ready(self, pid: int | None) -> None:
        began = self.life.began if self.life is not None else 0
        say(notices.WORKER_READY, worker_pid=pid, after=format_duration(self._loop.time() - began))
        if not self._was_ready:
            self._was_ready = True
            self.show()
            self.systemd.ready()

    def _tell_stopping(self, after: Worker, pid: int | None) -> None:
        grace = format_duration((after.deadline or 0) - self._now)
        reason = after.stop.reason if after.stop is not None else ""
        say(notices.STOPPING_WORKER, worker_pid=pid, reason=reason, grace=grace)

    def _tell_killing(self, after: Worker, pid: int | None) -> None:
        if after.stop is None:
            reason = "the main process is gone, others are left"
        elif after.stop.escalated:
            reason = f"still there {0.8 * after.stop.timeout:g}s after the stop signal"
        else:
            reason = after.stop.reason
        say(notices.KILLING_WORKER, worker_pid=pid, reason=reason)

    def _tell_exit(self, after: Worker) -> None:
        life, exit_ = self.life, after.exit
        self.life = None
        if exit_ is None or exit_.status is None or life is None:
            return  # a failed spawn was told already
        notice = notices.WORKER_ENDED if exit_.result is Result.SUCCESS else notices.WORKER_FAILED
        say(
            notice,
            worker_pid=life.pid,
            nannyd_generation=exit_.generation,
            how=describe(exit_),
            uptime=format_duration(self._loop.time() - life.began),
            result=exit_.result,
            who=exit_.who,
            detail=notices.Aside(exit_.detail),
            exit_status=exit_.status.code,
            exit_signal=exit_.status.signal,
        )
        if life.errno:
            self.systemd.errno(life.errno)
        life.close()
        self._past = life

    def _tell_failed(self, after: Worker) -> None:
        rules = self.plan.restart
        if after.start_limit_hit:
            interval = format_duration(rules.start_limit_interval)
            say(notices.START_LIMIT_HIT, burst=rules.start_limit_burst, interval=interval)
        else:
            say(notices.GIVING_UP, result=after.result, mode=rules.mode)

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
        reading = life.watch.reading() if life is not None and life.watch is not None else None
        facts = status.Facts(
            pid=life.pid if life is not None else None,
            reading=reading,
            limit=(life.plan if life is not None else self.plan).memory.thresholds.limit,
            note=life.note if life is not None else "",
            weaker=self._weaker,
        )
        return status.sentence(self.worker, facts, self._loop.time())

    # --- Signals, ticks, reload -------------------------------------------------------------------

    def catch_signals(self) -> None:
        """Take SIGTERM and SIGINT as requests to stop; a second SIGINT does not ask."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.post, lambda number=number: self._asked(number))
        self._loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SUPERVISED)

    def reap_orphans(self, reap: Callable[[Collection[int]], bool]) -> None:
        """Without a leaf the worker's orphans become our children: reap them, and learn of the last."""

        def some_child_ended() -> None:
            life = self.life
            known = self._helpers.pids() | (
                {life.pid} if life is not None and life.pid is not None else set()
            )
            if reap(known) and life is not None and life.group is not None:
                life.group.child_reaped()

        self._loop.add_signal_handler(signal.SIGCHLD, some_child_ended)

    def reload_on_sighup(
        self, tasks: asyncio.TaskGroup, reload: Callable[[], Coroutine[None, None, str]]
    ) -> None:
        """Reload on SIGHUP; the verdict is in the log."""

        async def quietly() -> None:
            with suppress(CallError):
                await reload()

        self._loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(quietly()))

    def _asked(self, number: signal.Signals) -> None:
        say(notices.STOP_REQUESTED, reason=number.name)
        self.systemd.stopping()
        self.handle(StopRequested(number.name))
        if number is signal.SIGINT:
            if self._interrupted:
                self.handle(KillRequested("a second SIGINT"))
            self._interrupted = True

    def _extend_stop(self, worker: Worker) -> None:
        """Ask systemd for the time that the worker has to end, and a margin to kill it in."""
        if worker.stop is not None and worker.deadline is not None:
            left = worker.deadline - self._now
            self.systemd.extend(left + worker.stop.timeout + _STOP_MARGIN)

    def _tick(self) -> None:
        """Feed the watchdog, ask for time until the first READY, look whether a warning is over."""
        every = [] if self._watchdog is None else [self._watchdog]
        if not self._was_ready and self.systemd.present:
            self.systemd.extend(_EXTEND_BY)
            every.append(_EXTEND_EVERY)
        if self._watchdog is not None:
            self.systemd.alive()
        if self.life is not None and self.life.watch is not None:
            self.life.watch.sample()
        if self.systemd.present:
            every.append(_STATUS_EVERY)
        if self.plan.memory.thresholds.warn is not None and not self._weaker:
            every.append(_CALM_DOWN_EVERY)
        self.show()
        if every:
            self._ticking = self._loop.call_later(min(every), self.post, self._tick)

    def adopt(self, plan: Plan) -> str:
        """Put a new plan in force, whole; return what that means, in words."""
        found = changes(self.plan, plan)
        self.plan = plan
        if self.life is not None:
            self.life.follow(plan)
        said = {when: [key for key, w in found.items() if w is when] for when in When}
        return (
            "; ".join(f"{', '.join(keys)} {when}" for when, keys in said.items() if keys) or "nothing changed"
        )

    def reloaded(self) -> None:
        """Tell systemd that a reload is over."""
        self.show()
        if self._was_ready:
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
        if self._ticking is not None:
            self._ticking.cancel()
        code = lifecycle.exit_code(self.worker)
        self.systemd.status(self.sentence())
        self.systemd.stopping()
        reason = status.sentence(self.worker, status.Facts(), self._loop.time())
        say(notices.FINISHED, nannyd_instance=self.plan.name, exit_status=int(code), reason=reason)
        return int(code)


def parts(reading: Reading) -> str:
    """Return the parts of a working set in words."""
    sizes = {"anon": reading.anon, "shmem": reading.shmem, "kernel": reading.kernel, "swap": reading.swap}
    return ", ".join(f"{name} {format_size(size)}" for name, size in sizes.items() if size is not None)
