"""The Worker's class as it runs under nannyd: the same, but that it says why it closes.

A Worker that closes asks its nanny over the network to go as well.  Here the supervisor decides, by the
reason, which it hears where it hears all else.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import math
from typing import Any

from nannyd.core.target import find_target
from nannyd.dask.telling import tell
from nannyd.worker.api import notify

logger = logging.getLogger("distributed.worker")

_SHORTEST_WAIT = 0.1
_LONGEST_WAIT = 60.0
"""Seconds for a name to become free, where somebody waits for the worker to start."""


def find_worker_class(name: str | None) -> Any:
    """Return the class that *name* (`pkg.mod.Class` or `pkg.mod:Class`) means, or distributed's own."""
    if name is None:
        return importlib.import_module("distributed.worker").Worker
    if ":" not in name:
        module, _, attribute = name.rpartition(".")
        name = f"{module}:{attribute}"
    return find_target(name, "worker class")


def make_subject(worker_class: Any) -> Any:
    """Return a class that is *worker_class* to whoever looks, and does what this module says."""

    class Subject(make_patient(worker_class, math.inf)):  # type: ignore[misc]
        nannyd_end: dict[str, Any] | None = None
        """Arguments of the end that nannyd has asked for."""
        nannyd_drain: asyncio.Task[None] | None = None
        """What is to be over before."""

        @functools.wraps(worker_class.close)
        async def close(self, *args: Any, **kwargs: Any) -> Any:
            if self.nannyd_drain is not None:
                await asyncio.wait({self.nannyd_drain})
            if self.nannyd_end is not None:
                return await super().close(**self.nannyd_end)
            if self.status.name not in ("init", "closing", "closed", "failed", "undefined"):
                tell(closing=self._nannyd_reason(kwargs.get("reason", "worker-close")))
            return await super().close(*args, **{**kwargs, "nanny": False})

        def _nannyd_reason(self, reason: str) -> str:
            """Return *reason*, but one for each cause: one that retires is also said to be removed."""
            if reason == "scheduler-remove-worker" and self.status.name == "closing_gracefully":
                return "scheduler-close-worker"
            return reason

    return _disguised(Subject, worker_class)


def make_patient(worker_class: Any, longest: float = _LONGEST_WAIT) -> Any:
    """Return a class that is *worker_class* to whoever looks, and waits until its name is free.

    It does so for its death-timeout, and without one for *longest* seconds.
    """

    class Patient(worker_class):  # type: ignore[misc]
        async def _register_with_scheduler(self) -> None:
            """Wait while the name is that of another worker: one that died, as the scheduler will see.

            A task may come, and end the process, before it is ready; where it was, is wanted then.
            """
            notify(X_NANNYD_ADDRESS=self.contact_address or self.address)
            loop = asyncio.get_running_loop()
            until = loop.time() + (self.death_timeout or longest)
            delay = _SHORTEST_WAIT
            while True:
                try:
                    await super()._register_with_scheduler()
                except ValueError as error:
                    if "name taken" not in str(error) or loop.time() + delay > until:
                        raise
                else:
                    return
                if delay == _SHORTEST_WAIT:
                    logger.info("Waiting for the name %r to become free", self.name)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 1.0)

    return _disguised(Patient, worker_class)


def _disguised(derived: Any, worker_class: Any) -> Any:
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(derived, attribute, getattr(worker_class, attribute))
    return derived
