"""`nannyctl metrics`: figures of all instances as OpenMetrics text.

It is read as such, and in the older text format of Prometheus by node_exporter's textfile collector, which
knows no `stateset`; so the state is a gauge for each word, as in node_exporter's own systemd collector.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.core.exits import Result
from nannyd.ctl.client import RefusedError
from nannyd.ctl.command import FAILED, complain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.replies import Status

_PATIENCE = 2.0
"""Seconds; an instance that is merely slow must not raise an alarm."""
_STATES = (
    "inactive",
    "start",
    "running",
    "draining",
    "stop-sigterm",
    "stop-sigkill",
    "auto-restart",
    "failed",
    "masked",
    "not answering",
)
_NO_RESTARTS = {result.value: 0 for result in Result if result is not Result.START_LIMIT_HIT}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples."""

    name: str
    kind: str
    help: str
    unit: str = ""
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: str) -> None:
        """Add a sample, unless its value is not known."""
        if value is not None:
            self.samples.append((labels, value))

    def __str__(self) -> str:
        """Return its lines."""
        if not self.samples:
            return ""
        suffix = "_total" if self.kind == "counter" else ""
        lines = [f"# TYPE {self.name} {self.kind}"]
        lines += [f"# UNIT {self.name} {self.unit}"] if self.unit else []
        lines.append(f"# HELP {self.name} {self.help}")
        lines += [f"{self.name}{suffix}{_labels(labels)} {value!r}" for labels, value in self.samples]
        return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    # A line ends at a newline only; a lone surrogate cannot be written at all.
    text = value.encode(errors="backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", " ")


def metrics(command: Command) -> int:
    """Print the figures of the instances; of all, where none is named."""
    patience = _PATIENCE if command.timeout is None else command.timeout
    known, problems = command.filtered(command.find(patience=patience))
    if command.json:
        from nannyd.ctl.listing import describe
        from nannyd.ctl.render import dump_json

        sys.stdout.write(dump_json([describe(one) for one in known]))
    else:
        sys.stdout.write(exposition(known, command.now))
    # No figure says so: whoever may not look would take its instances for hung.
    refused = [one for one in known if isinstance(one.failure, RefusedError)]
    problems += [f"{one.name}: {one.reason}" for one in refused]
    for problem in problems:
        complain(problem)
    return FAILED if problems else ExitCode.CLEAN


def exposition(instances: Sequence[Instance], now: float) -> str:
    """Return the figures of *instances*, of which each name counts once: the system's."""
    named = {instance.name: instance for instance in reversed(instances)}
    families = _families()
    for name, instance in sorted(named.items()):
        families["up"].add(float(instance.answers), instance=name)
        for state in dict.fromkeys((*_STATES, instance.state)):
            families["state"].add(float(state == instance.state), instance=name, state=state)
        if instance.status is not None:
            _add(families, name, instance.status, now)
    return "".join(map(str, families.values())) + "# EOF\n"


def _families() -> dict[str, Family]:
    size = "bytes"
    return {
        "up": Family("nannyd_up", "gauge", "Whether nannyd answers."),
        "state": Family("nannyd_state", "gauge", "The state of the worker: 1 for the one it is in."),
        "restarts": Family(
            "nannyd_worker_restarts", "counter", "Restarts by the result that made them necessary."
        ),
        "generation": Family(
            "nannyd_worker_generation", "gauge", "The number of the present or latest life."
        ),
        "uptime": Family(
            "nannyd_worker_uptime_seconds", "gauge", "How long the worker has been running.", "seconds"
        ),
        "used": Family(
            "nannyd_memory_working_set_bytes", "gauge", "Memory that cannot be reclaimed without harm.", size
        ),
        "limit": Family("nannyd_memory_limit_bytes", "gauge", "What memory.limit comes to.", size),
        "terminate": Family(
            "nannyd_memory_terminate_bytes", "gauge", "Where the worker is asked to end.", size
        ),
        "peak": Family(
            "nannyd_memory_peak_bytes", "gauge", "The most memory of this life, cache included.", size
        ),
    }


def _add(families: dict[str, Family], name: str, status: Status, now: float) -> None:
    # With its zeros: Prometheus sees no increase in a counter that begins with its first restart.
    for result, count in sorted({**_NO_RESTARTS, **status.restarts_by_result}.items()):
        families["restarts"].add(float(count), instance=name, result=result)
    families["generation"].add(float(status.generation), instance=name)
    if status.worker is not None:
        families["uptime"].add(round(max(0.0, now - status.worker.started_at), 3), instance=name)
    memory = status.memory
    for key, value in (
        ("used", memory.working_set),
        ("limit", memory.limit),
        ("terminate", memory.terminate),
        ("peak", memory.peak),
    ):
        families[key].add(value, instance=name)
