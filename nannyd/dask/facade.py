"""The nanny as code written for Dask's knows it: plugins, preloads, functions of `Client.run(nanny=True)`.

It stands for `distributed.Nanny`, which would be in the same process.  What it has not, the server may have.
"""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from distributed.protocol.serialize import _is_dumpable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distributed.core import Status

    from nannyd.agent.nanny import Nanny as AgentNanny
    from nannyd.dask.endpoint import Nanny


class Facade:
    """One nanny, in the name of one owner.  To be used in Dask's event loop."""

    def __init__(self, nanny: AgentNanny, server: Nanny) -> None:
        """*nanny* is what plugins of nannyd's own are given."""
        self._nanny = nanny
        self._server = server
        self.env = nanny.env
        self._reads_directory = False

    def __getattr__(self, name: str) -> Any:
        """Return what nannyd's own nanny has, or Dask's server."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._nanny if hasattr(type(self._nanny), name) else self._server, name)

    def __repr__(self) -> str:
        """As Dask's."""
        return f"<Nanny: {self.worker_address}, threads: {self.nthreads}>"

    @property
    def local_directory(self) -> str:
        """Where to put files; modules that lie there can be imported by the next worker, as is so in Dask."""
        self._reads_directory = True
        directory: str = self._server.local_directory
        return directory

    @property
    def shared(self) -> Sequence[str]:
        """Directories of which the owner may expect that the worker imports from them."""
        return [self._server.local_directory] if self._reads_directory else []

    @property
    def name(self) -> Any:
        """The worker's name."""
        return self._server.worker_name

    @property
    def status(self) -> Status:
        """What the nanny itself is doing, not the worker."""
        return self._server.status

    @property
    def plugins(self) -> Mapping[str, Any]:
        """All that are set up, by name."""
        return self._server.plugins

    @property
    def scheduler(self) -> Any:
        """For requests to the scheduler."""
        return self._server.scheduler

    @property
    def memory_manager(self) -> SimpleNamespace:
        """Its `memory_limit` in bytes; `memory_terminate_fraction` is nannyd's business."""
        return SimpleNamespace(memory_limit=self._nanny.memory_limit, memory_terminate_fraction=None)

    def is_alive(self) -> bool:
        """Say whether there is a worker's process."""
        return self._nanny.pid is not None

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Log an event at the scheduler, and in the journal."""
        if not _is_dumpable(msg):
            raise TypeError(f"Message must be msgpack serializable. Got {type(msg)=} instead.")
        self._server.log_event(topic, msg)
        try:
            json.dumps(msg, allow_nan=False)
        except (TypeError, ValueError):
            msg = repr(msg)
        _ = self._nanny.log_event(topic if isinstance(topic, str) else ", ".join(topic), msg)

    async def kill(self, timeout: float | None = None, reason: str = "nanny-kill") -> None:
        """End the worker; the next one is started at once."""
        await self._server.kill(timeout, reason)

    async def instantiate(self) -> Status:
        """Start the worker, if it is not running."""
        return await self._server.instantiate()

    async def restart(self, timeout: float = 30, reason: str = "nanny-restart") -> Any:
        """End the worker, start the next one, and wait for it."""
        return await self._server.restart(timeout, reason)

    async def close(self, timeout: float | None = None, reason: str = "nanny-close") -> str:
        """End the worker, then nannyd."""
        return await self._server.terminate(timeout, reason)

    def close_gracefully(self, reason: str = "nanny-close-gracefully") -> asyncio.Task[None]:
        """Let nannyd end when the worker does."""
        return asyncio.get_running_loop().create_task(self._server.close_gracefully(reason))
