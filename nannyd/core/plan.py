"""The plan: everything the supervisor needs, decided and checked beforehand by the launcher.

The launcher reads configuration with pydantic and hands the plan over as JSON in a memfd, so that the
supervisor never imports pydantic.  A reload makes a new plan in the same way; plans are swapped whole.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass, field
from typing import Any

from nannyd.core.dask import Cause, Then
from nannyd.core.memory import Thresholds
from nannyd.core.restart import RestartMode, RestartPolicy


class Ready(enum.StrEnum):
    """When a worker counts as ready."""

    EXEC = "exec"
    """As soon as its program was executed."""
    NOTIFY = "notify"
    """When it says READY=1."""


class KillMode(enum.StrEnum):
    """Who gets the stop signal; what is left is killed in either mode (systemd.kill(5))."""

    MIXED = "mixed"
    """The main process; when it is gone, the rest is killed."""
    CONTROL_GROUP = "control-group"
    """All processes; they have the stop timeout to end."""


class MemoryMode(enum.StrEnum):
    """How memory is watched."""

    AUTO = "auto"
    CGROUP = "cgroup"
    POLL = "poll"


class PreloadFailure(enum.StrEnum):
    """What a preload or configured plugin of the nanny that cannot be set up means."""

    FAIL = "fail"
    IGNORE = "ignore"


class LogFormat(enum.StrEnum):
    """Where the supervisor's own records go, and how."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class PythonWorker:
    """A worker that is a Python class."""

    target: str
    """`pkg.mod:Class`."""
    args: list[Any]
    kwargs: dict[str, Any]
    preload: list[str]
    preload_argv: list[list[str]]
    """One list for each preload."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The `[worker]` table, complete.  Durations are seconds; None: none, or as inherited."""

    command: list[str]
    """The program and its arguments; the interpreter alone where *python* is set."""
    python: PythonWorker | None
    ready: Ready
    working_directory: str | None
    local_directory: str | None
    umask: int | None
    nice: int | None
    oom_score_adj: int | None
    start_timeout: float | None
    stop_signal: int
    stop_timeout: float
    kill_mode: KillMode
    watchdog: float | None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The `[memory]` table in bytes."""

    mode: MemoryMode
    thresholds: Thresholds
    swap: int | None
    """Bytes of swap the worker may use; None: as much as there is."""
    where: str
    """Where the limit comes from, in words."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin of the nanny, to be made in the agent."""

    name: str | None
    """None: as the plugin calls itself."""
    target: str
    """`pkg.mod:Class`, or the name of an entry point."""
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """What runs in the agent, and how."""

    python: str
    """The interpreter."""
    preload: list[str]
    preload_argv: list[list[str]]
    """One list for each preload."""
    plugins: list[Plugin]
    preload_failure: PreloadFailure
    memory_limit: int | None
    """Bytes."""
    idle_timeout: float | None
    """Seconds; None: it stays."""

    @property
    def is_wanted(self) -> bool:
        """There is something for the agent from the start."""
        return bool(self.preload or self.plugins)


@dataclass(frozen=True, slots=True)
class DaskPlan:
    """What the supervisor must know of `[dask]`; the rest is in the worker's keyword arguments."""

    after: dict[Cause, Then]
    """What follows when the worker closes itself, for each cause that is decided by the administrator."""
    drain_timeout: float
    """Seconds for the worker's data to move away before a stop; 0: it is not asked to."""
    server: dict[str, Any]
    """What the nanny's server needs: `security`, `protocol`, `blocked_handlers`, `name`, `nthreads`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One instance, ready to be supervised."""

    name: str
    worker: WorkerPlan
    memory: MemoryPlan
    restart: RestartPolicy
    agent: AgentPlan
    environ: dict[str, str]
    """The worker's environment at `execve`, without what is known only then (NOTIFY_SOCKET …)."""
    late_environ: dict[str, str]
    """What the bootstrap of a Python worker adds before the first import."""
    log_format: LogFormat
    log_level: str
    arguments: list[str] = field(default_factory=list)
    """The command line of `nannyd` after the program's name: a reload reads it again."""
    secrets: list[str] = field(default_factory=list)
    """Names of variables whose values are masked wherever the plan is shown."""
    dask: DaskPlan | None = None
    """Not None: the worker is a member of a Dask cluster."""


def to_json(plan: Plan) -> str:
    """Return *plan* as one line of JSON."""
    return json.dumps(dataclasses.asdict(plan), separators=(",", ":"))


def from_json(text: str) -> Plan:
    """Return the plan that `to_json` wrote.  Raises ValueError, KeyError or TypeError for anything else."""
    data = json.loads(text)
    worker, memory, restart, agent = data["worker"], data["memory"], data["restart"], data["agent"]
    python, dask = worker["python"], data["dask"]
    return Plan(
        **{
            **data,
            "worker": WorkerPlan(
                **{
                    **worker,
                    "python": None if python is None else PythonWorker(**python),
                    "ready": Ready(worker["ready"]),
                    "kill_mode": KillMode(worker["kill_mode"]),
                }
            ),
            "memory": MemoryPlan(
                **{
                    **memory,
                    "mode": MemoryMode(memory["mode"]),
                    "thresholds": Thresholds(**memory["thresholds"]),
                }
            ),
            "restart": RestartPolicy(**{**restart, "mode": RestartMode(restart["mode"])}),
            "agent": AgentPlan(
                **{
                    **agent,
                    "plugins": [Plugin(**plugin) for plugin in agent["plugins"]],
                    "preload_failure": PreloadFailure(agent["preload_failure"]),
                }
            ),
            "log_format": LogFormat(data["log_format"]),
            "dask": None
            if dask is None
            else DaskPlan(
                **{**dask, "after": {Cause(cause): Then(then) for cause, then in dask["after"].items()}}
            ),
        }
    )
