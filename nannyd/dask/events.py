"""Why workers have died, as events at the scheduler: `Client.get_events("nannyd")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


async def log_exits(scheduler: Any, exits: Sequence[Mapping[str, Any]]) -> None:
    """Log each of *exits* at the *scheduler*, by its rpc.  Raises OSError where that is lost."""
    for exit_ in exits:
        await scheduler.log_event(topic="nannyd", msg=exit_)
        if exit_.get("result") == "memory":  # as Dask's nanny has it
            event = {"worker": exit_["worker"], "pid": exit_["pid"], "rss": exit_["memory"]}
            await scheduler.log_event(topic="worker-restart-memory", msg=event)
