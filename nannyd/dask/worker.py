"""A Dask worker as the worker of an instance, and the nanny's registration, which its process sees to.

The order of a life: configuration, `import distributed`, the scheduler's address, registration of the nanny
(a new plugin of the nanny's ends this life here), the Worker, the registration's second message, what is to
be published; ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.dask.configuration import configure, find_runner, make_security
from nannyd.dask.events import log_exits
from nannyd.dask.sparing import complete, spare
from nannyd.dask.telling import hand_over, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.dask.registration import Registration

logger = logging.getLogger("distributed.nanny")

_PATIENCE = 0.25
"""Seconds for which a nanny that was registered before waits for the scheduler's answer with its worker."""


class DaskWorker:
    """Has the form of `nannyd.worker.Worker`.  The keyword arguments are made by nannyd's launcher."""

    def __init__(
        self,
        *,
        scheduler: str | None,
        scheduler_file: str | None,
        worker_class: str | None,
        options: dict[str, Any],
        security: dict[str, Any],
        nanny: dict[str, Any],
        death_timeout: float | None,
        life: dict[str, Any],
        local_directory: str | None = None,
    ) -> None:
        """*life* is what the supervisor knows of the lives before; all else is configuration."""
        from distributed.proctitle import enable_proctitle_on_children, enable_proctitle_on_current

        from nannyd.dask.subject import find_worker_class, make_subject

        enable_proctitle_on_current()
        enable_proctitle_on_children()

        self._class = make_subject(find_worker_class(worker_class))
        self._options = {"local_directory": local_directory, **options}
        self._silence = _silence(self._options.get("silence_logs"))
        self._security = make_security(security)
        self._scheduler, self._scheduler_file = scheduler, scheduler_file
        self._where = nanny
        self._death_timeout = death_timeout
        self._life = life
        self._worker: Any = None
        self._registration: Registration | None = None
        self._agreeing: asyncio.Task[None] | None = None
        self._started = False

    @staticmethod
    def nannyd_runner(kwargs: dict[str, Any]) -> Callable[..., Any]:
        """Take the configuration from the keyword arguments; return what runs the event loop it wants."""
        configure(kwargs.pop("config"), spare("distributed.worker"))
        return find_runner()

    @property
    def address(self) -> str | None:
        """Where the worker is found."""
        return None if self._worker is None else str(self._worker.address)

    @property
    def local_directory(self) -> str | None:
        """Where it keeps its files."""
        return None if self._worker is None else str(self._worker.local_directory)

    async def start(self) -> None:
        """Register the nanny, and start the worker.  Raises TimeoutError without a scheduler in time."""
        began = time.monotonic()
        try:
            scheduler, nanny = await asyncio.wait_for(self._introduce(), self._death_timeout)
            if self._registration is not None and self._registration.is_answered:
                await self._agree_on_plugins(self._registration)
            options = {"nanny": nanny, "security": self._security, "death_timeout": self._left(began)}
            self._worker = self._class(scheduler, **options, **self._options)
            await self._start_worker(began)
            self._started = True
        except (asyncio.TimeoutError, TimeoutError):
            if self._is_late(began):
                tell(closing="death-timeout")
            raise
        finally:
            await self._conclude()
        await self._publish()
        asyncio.get_running_loop().call_soon(complete)  # registered first, and told to be ready

    async def finished(self) -> None:
        """Return when the worker has closed."""
        await self._worker.finished()

    async def close(self, timeout: float, reason: str, drain: float = 0.0) -> None:
        """Let the worker's data move away within *drain* of these seconds, and close it."""
        worker = self._worker
        if worker is None or worker.status.name in ("closed", "failed"):
            return
        until = time.monotonic() + timeout
        if drain > 0 and self._started:
            worker.nannyd_drain = asyncio.get_running_loop().create_task(self._drain(min(drain, timeout)))
            await worker.nannyd_drain
        left = max(0.1, 0.8 * (until - time.monotonic()))  # for each thing that it waits for
        worker.nannyd_end = {"nanny": False, "executor_wait": True, "timeout": left, "reason": reason}
        await worker.close()

    # The start

    async def _introduce(self) -> tuple[str, str]:
        """Return the scheduler's address and the nanny's, which the scheduler then knows."""
        scheduler = self._scheduler or await self._read_scheduler_file()
        nanny = self._life["nanny"]
        from nannyd.dask.registration import register

        patience = None
        if nanny is None:
            from nannyd.dask.port import open_port

            listening, nanny = open_port(self._where, scheduler, self._security)
            with listening:
                hand_over(listening, nanny=nanny, scheduler=scheduler)
        else:
            tell(scheduler=scheduler)
            patience = _PATIENCE
        self._registration = await register(
            scheduler, self._security, nanny, self._life["unregister"], patience
        )
        logger.info("        Start Nanny at: %r", nanny)
        return scheduler, nanny

    async def _conclude(self) -> None:
        """Tell the scheduler how the start went, once it has answered."""
        registration = self._registration
        if registration is None:
            return
        if self._started and not registration.is_answered:
            self._agreeing = asyncio.get_running_loop().create_task(self._agree_late(registration))
        else:
            await registration.close(started=self._started)

    async def _agree_late(self, registration: Registration) -> None:
        """Tell of plugins that are not known; for new ones, the supervisor replaces this process."""
        with contextlib.suppress(OSError):  # the worker will notice, too
            plugins = await registration.plugins()
            if plugins.differ(self._life["known"]):
                tell(plugins=plugins.store(Path(self._life["directory"])))
        await registration.close(started=True)

    async def _agree_on_plugins(self, registration: Registration) -> None:
        """Return if the scheduler has no plugin for the nanny that is not known there.

        Otherwise the supervisor has the agent set it up, and then replaces this process.
        """
        plugins, known = await registration.plugins(), self._life["known"]
        if not plugins.differ(known):
            return
        tell(plugins=plugins.store(Path(self._life["directory"])))
        if plugins.are_new(known):
            await registration.close(started=False)
            logger.info("Waiting for the nanny's plugins")
            await asyncio.get_running_loop().create_future()

    async def _start_worker(self, began: float) -> None:
        """Start it.  Raises what went wrong, and not Server.start's word that something did."""
        try:
            await self._worker.start()
        except (RuntimeError, asyncio.TimeoutError, TimeoutError) as error:
            wrong = error.__cause__
            if wrong is None or self._is_late(began):
                raise
        else:
            return
        raise wrong

    def _is_late(self, began: float) -> bool:
        """Say whether the death-timeout is over, so that a timeout is of that."""
        return self._death_timeout is not None and time.monotonic() - began >= self._death_timeout

    def _left(self, began: float) -> float | None:
        """Return what is left of the death-timeout."""
        if self._death_timeout is None:
            return None
        return max(0.1, began + self._death_timeout - time.monotonic())

    async def _read_scheduler_file(self) -> str:
        """Return the address in the scheduler's file, which may come late, and half of it first."""
        import dask

        path = self._scheduler_file
        if path is None:
            address = dask.config.get("scheduler-address", None)
            if address is None:
                raise ValueError("no scheduler is configured")
            return str(address)
        delay = 0.02
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                return str(json.loads(Path(path).read_text())["address"])  # noqa: ASYNC240 (a small file)
            if delay == 0.02:
                logger.info("Waiting for the scheduler's file %s", path)
            await asyncio.sleep(delay)
            delay = min(1.5 * delay, 1.0)

    async def _publish(self) -> None:
        """Log how earlier workers ended, as events at the scheduler."""
        exits = self._life["exits"]
        try:
            await log_exits(self._worker.scheduler, exits)
        except OSError:
            logger.info("Lost the scheduler before it was told how workers ended")
        else:
            if exits:
                tell(published=len(exits))

    # The end

    async def _drain(self, seconds: float) -> None:
        try:
            moved = await asyncio.wait_for(
                self._worker.scheduler.retire_workers(
                    workers=[self._worker.contact_address],
                    close_workers=False,
                    remove=True,
                    stimulus_id=f"nannyd-drain-{time.time()}",  # noqa: TID251 (an identifier)
                ),
                seconds,
            )
        except (asyncio.TimeoutError, TimeoutError):
            logger.warning("Data of this worker could not be moved away within %.3g s", seconds)
        except OSError as error:
            logger.warning("Data of this worker could not be moved away: %s", error)
        else:
            if not moved:
                logger.warning("Data of this worker could not be moved away: no other worker takes it")


def _silence(level: int | None) -> contextlib.ExitStack:
    """Silence Dask's log below *level* from now on; a Worker does it while it lives."""
    stack = contextlib.ExitStack()
    if level:
        from distributed.utils import silence_logging_cmgr

        stack.enter_context(silence_logging_cmgr(level))
    return stack
