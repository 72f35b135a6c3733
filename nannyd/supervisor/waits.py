"""Callers that wait: each is answered when what it asked for is true, cannot become true, or is late."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nannyd.core.exits import Result, Who
from nannyd.core.lifecycle import Goal, State
from nannyd.supervisor.varlink import CallError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from nannyd.core.lifecycle import Worker
    from nannyd.supervisor.varlink import Call

_LONGEST = 365 * 86400.0
"""Seconds of a timeout."""

Verdict = dict[str, Any] | CallError | None
"""The reply, the error, or not yet."""
ENDING = "the instance is to end"


def error(name: str, /, **parameters: Any) -> CallError:
    """Return an error of our interface."""
    return CallError(f"io.nannyd.Nanny.{name}", **parameters)


def seconds(timeout: float | None) -> float | None:
    """Return *timeout* if it is one.  Raises CallError."""
    if timeout is not None and not (math.isfinite(timeout) and 0 <= timeout <= _LONGEST):
        reason = f"{timeout:g} is not a number of seconds from 0 to {_LONGEST:g}"
        raise error("InvalidArgument", parameter="timeout", reason=reason)
    return timeout


class Wait:
    """One call that is answered later."""

    def __init__(
        self,
        call: Call,
        loop: asyncio.AbstractEventLoop,
        timeout: float | None,
        verdict: Callable[[], Verdict],
        state: Callable[[], State],
    ) -> None:
        """Answer *call* by *verdict*, which `look` asks, or after *timeout* seconds with TimedOut."""
        self._call = call
        self._verdict = verdict
        self._state = state
        self._timer = None if timeout is None else loop.call_later(timeout, self._late, timeout)
        call.when_closed(self._forget)

    def look(self) -> bool:
        """Answer if there is an answer; say whether this is over."""
        if not self._call.open:
            return True
        verdict = self._verdict()
        if verdict is None:
            return False
        self._forget()
        if isinstance(verdict, CallError):
            self._call.fail(verdict)
        else:
            self._call.reply(verdict)
        return True

    def _late(self, timeout: float) -> None:
        self._call.fail(error("TimedOut", timeout=timeout, state=self._state()))

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def until_ready(
    first: int, worker: Worker, pid: int | None, start_limit: dict[str, Any], exit_: dict[str, Any] | None
) -> Verdict:
    """Judge a start or restart: life number *first*, or one after it, is ready; or it has ended before."""
    if worker.state is State.RUNNING and worker.generation >= first:
        return {"processId": pid}
    if worker.start_limit_hit:
        return error("StartLimitHit", **start_limit, exit=exit_)
    if worker.exit is not None and worker.exit.generation >= first:
        if worker.exit.who is Who.NANNYD and worker.exit.result in (Result.SUCCESS, Result.SIGNAL):
            return error("Superseded", by=worker.exit.detail)  # somebody asked for its end meanwhile
        return error("WorkerFailed", exit=exit_)
    if worker.goal is Goal.DOWN:
        return error("Superseded", by=ENDING)
    return None


def until_over(life: int, worker: Worker, exit_: dict[str, Any] | None) -> Verdict:
    """Judge a kill: life number *life* is over."""
    if worker.exit is not None and worker.exit.generation >= life:
        return {"exit": exit_}
    return None
