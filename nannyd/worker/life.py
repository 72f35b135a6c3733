"""The life of one worker in the event loop.

Constructor, preloads' setup, `start`, READY=1, `finished`, until the worker is through or somebody asks
for its end; then, exactly once, `close`, and the preloads' teardown.

Who asks first, wins: nannyd by a line on the channel (its signal comes after the line and only makes
sure that it is read), a signal from elsewhere, or the end of the channel, for a worker must not outlive
its supervisor.  A signal from elsewhere may be for nannyd, too, as where a batch system ends all processes
of a job; nannyd's line says more, so it is waited for.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import signal
from typing import TYPE_CHECKING, Any

from nannyd.core.preload import Preload, maybe_await
from nannyd.worker import signals
from nannyd.worker.api import notify
from nannyd.worker.channel import Channel, Specification, Stop
from nannyd.worker.report import report, report_exit, report_failure

if TYPE_CHECKING:
    from collections.abc import Callable

_ECHO = 0.5
"""Seconds for nannyd to say that it has had the same signal."""
_LEAST = 0.1
"""Seconds that a teardown gets when all the time was used up before."""


class Life:
    """One worker, and who may end it."""

    def __init__(
        self,
        spec: Specification,
        channel: Channel,
        make: Callable[..., Any],
        preloads: list[Preload],
        watchdog: float | None,
    ) -> None:
        """*watchdog* is the time in seconds within which nannyd wants to hear of the loop."""
        self._spec = spec
        self._channel = channel
        self._make = make
        self._preloads = preloads
        self._watchdog = watchdog
        self._worker: Any = None
        self._set_up: list[Preload] = []
        self._started = False
        self._failed = False
        self._exit: SystemExit | None = None

    async def run(self) -> int | str | None:
        """Live, and return the exit status (in the sense of sys.exit)."""
        self._loop = asyncio.get_running_loop()
        self._asked: asyncio.Future[Stop] = self._loop.create_future()
        self._loop.add_reader(self._channel.fileno(), self._on_channel)
        signals.tell_loop(self._loop, self._on_signal)
        work = self._loop.create_task(_outcome(self._work))
        ends: list[asyncio.Future[Any]] = [work, self._asked]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            outcome = work.result() if work.done() else None
        except asyncio.CancelledError:
            outcome = None  # sys.exit() in a task of the worker's own: asyncio.run() cancels all, then exits
        self._judge(outcome)
        own_end = Stop(self._spec.grace, "failed" if self._failed else "finished")
        await self._end(work, self._asked.result() if self._asked.done() else own_end)
        signals.ignore()
        return int(self._failed) if self._exit is None else self._exit.code

    def _judge(self, outcome: BaseException | None) -> None:
        """Take note of how a part of the life ended.  The first failure is the one that nannyd hears of."""
        if isinstance(outcome, SystemExit):
            if self._exit is None and not self._failed:
                report_exit(outcome)
            self._exit = self._exit or outcome
        elif outcome is not None:
            (report if self._failed else report_failure)(outcome)
            self._failed = True

    def _on_channel(self) -> None:
        stop = self._channel.read_stop(self._spec.grace)
        if self._channel.ended:
            self._loop.remove_reader(self._channel.fileno())
            # Nobody is left to kill us if we hang from now on.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(math.ceil(self._spec.grace) + 1)
        if stop is not None:
            self._ask(stop)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._channel.ended:
            self._on_channel()  # for the line that came before nannyd's signal
        stop = Stop(self._spec.grace, number.name)
        if self._channel.ended:
            self._ask(stop)
        else:
            self._loop.call_later(_ECHO, self._ask, stop)

    def _ask(self, stop: Stop) -> None:
        if not self._asked.done():
            self._asked.set_result(stop)

    async def _work(self) -> None:
        """From the constructor to the end of `finished`."""
        kwargs = dict(self._spec.kwargs)
        if self._spec.local_directory is not None and "local_directory" in _parameters(self._make):
            kwargs.setdefault("local_directory", self._spec.local_directory)
        worker = self._worker = self._make(*self._spec.args, **kwargs)
        if not (hasattr(worker, "start") or hasattr(worker, "finished")):
            raise TypeError(f"worker class {self._spec.target!r}: has neither start() nor finished()")
        for preload in self._preloads:
            await maybe_await(preload.set_up(worker))
            self._set_up.append(preload)
        if hasattr(worker, "start"):
            await maybe_await(worker.start())
        self._started = True
        if self._asked.done():
            return  # it was cancelled, and did not notice: asyncio.wait_for() of Python 3.11 may swallow that
        notify(READY="1", **_details(worker))
        self._feed_watchdog()
        end = worker.finished() if hasattr(worker, "finished") else self._loop.create_future()
        if not inspect.isawaitable(end):
            raise TypeError(f"worker class {self._spec.target!r}: finished() is not async")
        await end

    def _feed_watchdog(self) -> None:
        if self._watchdog is not None:
            notify(WATCHDOG="1")
            self._loop.call_later(self._watchdog / 2, self._feed_watchdog)

    async def _end(self, work: asyncio.Task[BaseException | None], stop: Stop) -> None:
        """Close and tear down, each once."""
        notify(STOPPING="1")
        deadline = self._loop.time() + stop.timeout
        timeout = stop.timeout
        if not self._started and not work.done():
            await _cancel(work, timeout / 2)
            timeout = deadline - self._loop.time()
        close = getattr(self._worker, "close", None)
        if close is not None:
            offers = _accepted(close, timeout=timeout, reason=stop.reason, drain=min(stop.drain, timeout))
            call = functools.partial(close, **offers)
            await self._bounded(call, timeout, "close()")
        if not work.done():
            await _cancel(work, max(deadline - self._loop.time(), _LEAST))
        for preload in reversed(self._set_up):
            call = functools.partial(preload.tear_down, self._worker)
            left = max(deadline - self._loop.time(), _LEAST)
            await self._bounded(call, left, f"nannyd_teardown() of preload {preload.name}")

    async def _bounded(
        self,
        call: Callable[[], Any],
        timeout: float,
        what: str,
    ) -> None:
        """Await *call* for at most *timeout* seconds, and judge."""
        task = self._loop.create_task(_outcome(call))
        await asyncio.wait({task}, timeout=timeout)
        if task.done():
            self._judge(task.result())
        else:
            task.cancel()
            name = self._spec.name
            self._judge(TimeoutError(f"{what} of worker {name!r} did not end within {timeout:.3g} s"))


async def _outcome(call: Callable[[], Any]) -> BaseException | None:
    """Call, await, and return what was raised: SystemExit must not escape from a task, it ends the loop."""
    try:
        await maybe_await(call())
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001
        return error
    return None


async def _cancel(work: asyncio.Task[BaseException | None], timeout: float) -> None:
    """Cancel *work* and give it *timeout* seconds; asked to end, it may complain, but does not fail."""
    work.cancel()
    await asyncio.wait({work}, timeout=timeout)
    error = work.result() if work.done() and not work.cancelled() else None
    if isinstance(error, Exception):
        report(error)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # something compiled that does not tell
        return {}


def _accepted(function: Callable[..., Any], **offers: Any) -> dict[str, Any]:
    """Return those of *offers* that *function* has parameters for."""
    parameters = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offers
    return {name: value for name, value in offers.items() if name in parameters}


def _details(worker: object) -> dict[str, str]:
    names = {"X_NANNYD_ADDRESS": "address", "X_NANNYD_DIRECTORY": "local_directory"}
    found = {field: getattr(worker, name, None) for field, name in names.items()}
    return {field: str(value) for field, value in found.items() if value is not None}
