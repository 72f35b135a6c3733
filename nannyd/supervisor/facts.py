"""How an instance is, in the words of the control interface (io.nannyd.Nanny.varlink)."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from nannyd import __version__
from nannyd.core import exits
from nannyd.core.exits import describe
from nannyd.core.lifecycle import ACTIVE_STATE, State
from nannyd.core.procfs import parse_cgroup
from nannyd.supervisor.logs import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.life import Life
    from nannyd.supervisor.supervisor import Supervisor
    from nannyd.supervisor.telling import Ended

Facts = dict[str, Any]

_CLOCK_WAS_SET = 500_000
"""Microseconds."""


class WallClock:
    """Makes microseconds since the epoch of the loop's seconds, the same for the same instant."""

    def __init__(self) -> None:
        """Begin with no idea."""
        self._since_epoch = 0

    def at(self, now: float) -> Callable[[float | None], int | None]:
        """Return the conversion; *now* is the loop's now."""
        offset = time.time_ns() // 1000 - int(now * 1e6)
        # The two clocks are never read at the same time: only a clock that was set is heeded.
        if abs(offset - self._since_epoch) > _CLOCK_WAS_SET:
            self._since_epoch = offset

        def convert(instant: float | None) -> int | None:
            return None if instant is None else self._since_epoch + int(instant * 1e6)

        return convert


def own_unit() -> str | None:
    """Return the unit that systemd runs this process in, by its cgroup."""
    with open("/proc/self/cgroup") as file:  # noqa: PTH123
        path = parse_cgroup(file.read()).get("", "")
    return next((part for part in reversed(path.split("/")) if part.endswith(".service")), None)


def status(
    supervisor: Supervisor,
    agent: Agent,
    at: Callable[[float | None], int | None],
    started: float,
    unit: str | None,
) -> Facts:
    """Return the reply to Status."""
    worker = supervisor.worker
    level = logging.getLogger().level
    return {
        "instance": supervisor.plan.name,
        "version": __version__,
        "processId": os.getpid(),
        "startedAt": at(started),
        "unit": unit,
        "state": worker.state,
        "activeState": ACTIVE_STATE[worker.state],
        "goal": worker.goal,
        "sentence": supervisor.sentence(),
        "logLevel": PRIORITIES.get(level, 6),
        "generation": worker.generation,
        "restarts": worker.restarts,
        "restartsByResult": supervisor.restarts,
        "nextStartAt": at(worker.deadline) if worker.state is State.AUTO_RESTART else None,
        "startLimitHit": worker.start_limit_hit,
        "worker": _process(supervisor.life, worker.ready_at, at) if supervisor.life is not None else None,
        "memory": memory(supervisor),
        "lastExit": ended(supervisor.ended, at),
        "agent": {
            "state": agent.state,
            "processId": agent.pid,
            "memory": agent.memory(),
            "restarts": agent.restarts,
            "plugins": agent.plugins,
        },
    }


def _process(life: Life, ready_at: float | None, at: Callable[[float | None], int | None]) -> Facts:
    return {
        "processId": life.pid,
        "startedAt": at(life.began),
        "readyAt": at(ready_at),
        "status": life.note,
        "address": life.address,
        "directory": life.directory,
        "localDirectory": str(life.scratch.path) if life.scratch is not None else None,
        "controlGroup": life.group.path if life.group is not None else None,
    }


def memory(supervisor: Supervisor) -> Facts:
    """Return the worker's memory and its limits."""
    life = supervisor.life
    plan = (life.plan if life is not None else supervisor.plan).memory
    reading = supervisor.reading()
    parts = ("working_set", "anon", "shmem", "kernel", "swap")
    return {
        "mode": supervisor.memory_mode,
        "weaker": supervisor.weaker or None,
        "limit": plan.thresholds.limit,
        "where": plan.where,
        "warn": plan.thresholds.warn,
        "terminate": plan.thresholds.terminate,
        "max": plan.thresholds.max,
        **{_camel(part): getattr(reading, part, None) for part in parts},
        "peak": life.group.memory_peak() if life is not None and life.group is not None else None,
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def ended(life: Ended | None, at: Callable[[float | None], int | None]) -> Facts | None:
    """Return how the latest life that is over ended."""
    if life is None:
        return None
    exit_ = life.exit
    return {
        "generation": exit_.generation,
        "result": exit_.result,
        "who": exit_.who,
        "how": describe(exit_),
        "detail": exit_.detail,
        "exitStatus": exit_.status.code if exit_.status is not None else None,
        "signal": signal_name(exit_.status.signal) if exit_.status is not None else None,
        "at": at(life.at),
        "uptime": life.uptime,
        "memoryPeak": exit_.memory_peak,
        "wasReady": exit_.was_ready,
    }


def signal_name(number: int | None) -> str | None:
    """Return the name of a signal; None stays None."""
    return None if number is None else exits.signal_name(number) or str(number)


def _directory(life: Life | None) -> str:
    """Return where the worker says that it keeps its files, else its scratch directory."""
    if life is None:
        return ""
    return life.directory or (str(life.scratch.path) if life.scratch is not None else "")


def for_plugins(supervisor: Supervisor) -> Facts:
    """Return what the nanny object of the agent knows."""
    life = supervisor.life
    plan = life.plan if life is not None else supervisor.plan
    return {
        "state": supervisor.worker.state,
        "pid": life.pid if life is not None else None,
        "worker_address": life.address if life is not None else "",
        "worker_dir": _directory(life),
        "local_directory": str(supervisor.local_directory)
        if supervisor.local_directory is not None
        else None,
        "memory_limit": plan.memory.thresholds.limit,
    }
