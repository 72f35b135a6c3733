"""The Nanny of distributed, with nannyd's supervisor in place of its own process handling.

For `LocalCluster(worker_class=nannyd.dask.Nanny)`, `SpecCluster` and tests; its arguments, attributes,
methods, handlers and loggers are those of `distributed.Nanny`, from which it has everything that is about
Dask: server, registration, plugins.  It must be one of them: LocalCluster asks `issubclass(worker_class,
Nanny)`.

What is another here: how a worker is started, watched, ended and followed by the next (`inprocess`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import distributed
from distributed._async_taskgroup import AsyncTaskGroupClosedError
from distributed.core import Status

from nannyd.core.environ import HASH_SEED
from nannyd.dask.inprocess import WorkerProcess, memory_logger


class Nanny(distributed.Nanny):  # its name is part of a key of Dask's configuration
    """Starts a Dask worker in a process of its own, watches it, and starts the next when it ends."""

    process: WorkerProcess | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of `distributed.Nanny`."""
        super().__init__(*args, **kwargs)
        self.periodic_callbacks.pop("memory_monitor", None)  # the supervisor watches, and all processes
        exported = os.environ.get("PYTHONHASHSEED", "0")
        if exported != "0" and self.pre_spawn_env["PYTHONHASHSEED"] == HASH_SEED:
            self.env = {**self.env, "PYTHONHASHSEED": exported, **_texts(kwargs.get("env"))}
            self.pre_spawn_env = {**self.pre_spawn_env, "PYTHONHASHSEED": exported}

    async def instantiate(self) -> Status:
        """Have a worker that runs; one that waits for its next start starts now."""
        if self.status is Status.closing:
            raise RuntimeError("the nanny is being closed")
        if self.process is None:
            self.process = WorkerProcess(self, self.Worker, self._worker_arguments(), self._worker_config())
        return await super().instantiate()

    def _worker_arguments(self) -> dict[str, Any]:
        return {
            "scheduler_ip": self.scheduler_addr,
            "nthreads": self.nthreads,
            "services": self.services,
            "nanny": self.address,
            "name": self.name,
            "memory_limit": self.memory_manager.memory_limit,
            "resources": self.resources,
            "validate": self.validate,
            "silence_logs": self.silence_logs,
            "death_timeout": self.death_timeout,
            "preload": self.preload,
            "preload_argv": self.preload_argv,
            "security": self.security,
            "contact_address": self.contact_address,
            **self.worker_kwargs,
        }

    def _worker_config(self) -> dict[str, Any]:
        """Return the worker's configuration: a client in this process is not the worker's."""
        try:
            distributed.client.default_client()
        except ValueError:
            return dict(self.config)
        return {key: value for key, value in self.config.items() if key not in ("scheduler", "shuffle")}

    def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        """Start no further worker, and end with this one."""
        if self.status is Status.closing:
            return
        super().close_gracefully(reason=reason)
        if self.process is not None:
            self.process.let_go(reason)

    def stop(self) -> None:
        """Accept no more connections, when there is no worker: one that closes itself has to say so first."""
        if self.process is None:
            super().stop()

    # --- What the supervisor tells ----------------------------------------------------------------

    def worker_buried(self, event: dict[str, Any]) -> None:
        """Learn how a worker has ended."""
        if self.status in (Status.running, Status.closing_gracefully):
            name = event["worker"] if self.name is None else self.name
            self._do(self._tell_end, event={**event, "name": name})

    async def _tell_end(self, event: dict[str, Any]) -> None:
        await self._unregister()  # type: ignore[no-untyped-call]
        with suppress(OSError):  # the scheduler is gone, or the nanny will be
            await self._log_event("nannyd", event)  # type: ignore[no-untyped-call]

    def worker_is_over(self) -> None:
        """Learn that no further worker will be started."""
        if self.status in (Status.running, Status.closing_gracefully):
            self._do(self.close, reason="nanny-close-gracefully")

    def memory_exceeded(self, pid: int | None, used: int) -> None:
        """Learn that the worker is ended for the memory that it uses."""
        share = self.memory_manager.memory_terminate_fraction
        message = "Worker %s (pid=%s) exceeded %d%% memory budget. Restarting..."
        memory_logger.warning(message, self.worker_address, pid, 100 * share)
        event = {"worker": self.worker_address, "pid": pid, "rss": used}
        self.log_event("worker-restart-memory", event)  # type: ignore[no-untyped-call]

    def _do(self, call: Any, **arguments: Any) -> None:
        try:
            self._ongoing_background_tasks.call_soon(call, **arguments)
        except AsyncTaskGroupClosedError:
            return  # it is closed, or about to be


def _texts(env: dict[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (env or {}).items()}
