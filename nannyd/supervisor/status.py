"""The one sentence that says how an instance is, for `systemctl status` and `nannyctl`.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.core.exits import Result, describe
from nannyd.core.lifecycle import Goal, State
from nannyd.core.units import format_duration, format_size

if TYPE_CHECKING:
    from nannyd.core.lifecycle import Worker
    from nannyd.core.memory import Reading


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sentence is made of, beside the worker itself."""

    pid: int | None = None
    reading: Reading | None = None
    limit: int | None = None
    note: str = ""
    """The worker's own STATUS=."""
    weaker: str = ""
    """Why memory is polled, where it is."""
    beside: str = ""
    """What is to be said of others than the worker."""


def sentence(worker: Worker, facts: Facts, now: float) -> str:
    """Return how the instance is, for example `worker 4242 running, 2.1 of 4.0 GiB (52 %), 2 restarts`."""
    parts = [_what(worker, facts, now)]
    if worker.state in (State.RUNNING, State.START) and facts.reading is not None:
        parts.append(share(facts.reading.working_set, facts.limit))
    if worker.state in (State.RUNNING, State.START) and worker.goal is Goal.DOWN:
        parts.append("not to be restarted")
    if worker.restarts:
        parts.append(f"{worker.restarts} restart{'s' if worker.restarts > 1 else ''}")
    if facts.weaker:
        parts.append(f"memory only polled: {facts.weaker}")
    if facts.beside:
        parts.append(facts.beside)
    text = ", ".join(parts)
    return f"{text}; worker: {facts.note}" if facts.note else text


def share(used: int, limit: int | None) -> str:
    """Return `2.1 of 4.0 GiB (52 %)`, or the size alone without a limit."""
    if not limit:
        return format_size(used)
    used_text, limit_text = format_size(used), format_size(limit)
    if used_text.split()[1] == limit_text.split()[1]:
        used_text = used_text.split()[0]
    return f"{used_text} of {limit_text} ({100 * used / limit:.0f} %)"


def _what(worker: Worker, facts: Facts, now: float) -> str:
    who = f"worker {facts.pid}" if facts.pid is not None else "worker"
    reason = worker.stop.reason if worker.stop is not None else ""
    match worker.state:
        case State.INACTIVE:
            return "down"
        case State.START:
            return f"{who} starting"
        case State.RUNNING:
            return f"{who} running"
        case State.STOP_SIGTERM:
            return f"{who} stopping ({reason})"
        case State.STOP_SIGKILL:
            return f"{who} being killed" + (f" ({reason})" if reason else "")
        case State.AUTO_RESTART:
            left = max(0.0, (worker.deadline or now) - now)
            return f"{_ended(worker)}; next start in {format_duration(left)}"
        case State.FAILED:
            return "failed: " + _ended(worker)


def _ended(worker: Worker) -> str:
    if worker.exit is None:
        return "worker never started"
    text = f"worker {describe(worker.exit)} ({worker.exit.result}, by {worker.exit.who})"
    if worker.exit.status is None:
        text = f"worker {describe(worker.exit)}: {worker.exit.detail}"
    if worker.no_scheduler:
        return f"{text}; no scheduler"
    return f"{text}; {Result.START_LIMIT_HIT}" if worker.start_limit_hit else text
