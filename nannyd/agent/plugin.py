"""A plugin as its author sees it, and what it is told of the worker.

What a plugin is told may grow: fields are added, never renamed or removed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from nannyd.agent.nanny import Nanny


@dataclass(frozen=True)
class WorkerStarted:
    """A worker is ready."""

    pid: int | None = None
    generation: int | None = None
    """Which life it is of this instance: 1, 2, …"""
    address: str | None = None
    """Where it can be reached, if it has said so already."""


@dataclass(frozen=True)
class WorkerExited:
    """A worker ended, and all that it had forked."""

    pid: int | None = None
    generation: int | None = None
    result: str | None = None
    """In systemd's words: `success`, `exit-code`, `signal`, `oom-kill`, `memory`, `timeout`, …"""
    who: str | None = None
    """Whose doing it was, for example `nannyd (memory.terminate: …)`."""
    status: int | None = None
    """The exit status; None if a signal ended it."""
    signal: str | None = None
    """The signal that ended it, for example `SIGKILL`."""
    uptime: float | None = None
    """Seconds since its start."""
    memory_peak: int | None = None
    """Bytes; None where the kernel does not tell."""


@dataclass(frozen=True)
class MemoryReading:
    """What a worker uses, in bytes; None for what is not known."""

    working_set: int | None = None
    """What cannot be reclaimed; this is what is held against the limit."""
    limit: int | None = None
    anon: int | None = None
    shmem: int | None = None
    kernel: int | None = None
    swap: int | None = None


class NannyPlugin:
    """Code that accompanies the nanny of a worker.  Inherit, and override what is needed.

    Every method may be plain or async.  A plain one runs in a thread of its own and may block, an async one
    in the event loop that all plugins share and must not.  Each has a deadline.  Of one plugin the methods
    are called one after another, never two at a time, except that `teardown` does not wait for one that is
    past its deadline.  What one raises is logged with its traceback and harms nothing else.
    """

    name: str | None = None
    """By what name it is known, and replaced or removed, if whoever adds it gives none."""

    restart: bool = False
    """Whether the worker is restarted when this has been added to a running nanny."""

    def setup(self, nanny: Nanny) -> Awaitable[None] | None:
        """Begin.  Before the worker starts, or when added; also after a crash of the agent process.

        If it raises, the plugin is not kept, and what it has set in `nanny.env` is taken back.
        """

    def teardown(self, nanny: Nanny) -> Awaitable[None] | None:
        """End: the plugin is removed or replaced, or nannyd ends; then before the worker is stopped."""

    def worker_started(self, info: WorkerStarted) -> Awaitable[None] | None:
        """A worker is ready."""

    def worker_exiting(self, reason: str) -> Awaitable[None] | None:
        """The worker was asked to end."""

    def worker_exited(self, info: WorkerExited) -> Awaitable[None] | None:
        """A worker ended."""

    def memory_warning(self, reading: MemoryReading) -> Awaitable[None] | None:
        """The worker uses more than `memory.warn` of its limit."""


HOOKS = ("worker_started", "worker_exiting", "worker_exited", "memory_warning")

_Told = TypeVar("_Told", WorkerStarted, WorkerExited, MemoryReading)


def hook_argument(hook: str, info: Mapping[str, Any]) -> object:
    """Return what *hook* is called with."""
    if hook == "worker_exiting":
        return str(info.get("reason"))
    if hook == "worker_started":
        return _told(WorkerStarted, info)
    return _told(WorkerExited, info) if hook == "worker_exited" else _told(MemoryReading, info)


def hook_of(plugin: object, hook: str) -> Any:
    """Return the method of *plugin* called *hook*; None where it has none of its own."""
    method = getattr(plugin, hook, None)
    inherited = getattr(method, "__func__", None) is getattr(NannyPlugin, hook)
    return None if inherited else method


def is_nanny_plugin(plugin: object) -> bool:
    """Say whether *plugin* inherits from NannyPlugin, this one or Dask's."""
    return any(base.__name__ == NannyPlugin.__name__ for base in type(plugin).__mro__)


def _told(kind: type[_Told], info: Mapping[str, Any]) -> _Told:
    return kind(**{field.name: info.get(field.name) for field in dataclasses.fields(kind)})
