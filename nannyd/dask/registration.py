"""What a Dask worker's process does in its nanny's place: it registers the nanny with the scheduler.

Registration is two messages.  Between them the scheduler tells nobody of a new plugin, so that none is
missed; the second one must not be late.  If this process dies instead, its connection ends, which counts.

The scheduler's answer may be long in coming: there is none while any nanny anywhere sets up a new plugin,
such as one that has wanted the worker restarted, so that this life is what the scheduler waits for.  A nanny
that was registered before does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nannyd.dask.plugins import digest, keep

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("distributed.nanny")

_PATIENCE = 1.0
"""Seconds of the first attempt to connect.  distributed waits longer and longer within one attempt."""
_REPLY_TIMEOUT = 1.0
"""Seconds that a scheduler has to reply to the second message, which says nothing."""


@dataclass(frozen=True)
class NannyPlugins:
    """The nanny's plugins as the scheduler has them, pickled."""

    pickled: dict[str, bytes]

    def differ(self, known: dict[str, str]) -> bool:
        """Say whether they are others than those *known*, by name and SHA-256."""
        return known != self._digests()

    def are_new(self, known: dict[str, str]) -> bool:
        """Say whether some of them are not *known*."""
        return not self._digests().items() <= known.items()

    def store(self, directory: Path) -> list[dict[str, str]]:
        """Write each to a file of *directory*, and return where."""
        stored = []
        for name, pickled in self.pickled.items():
            path = keep(pickled, directory)
            stored.append({"name": name, "path": str(path), "digest": digest(pickled)})
        return stored

    def _digests(self) -> dict[str, str]:
        return {name: digest(pickled) for name, pickled in self.pickled.items()}


class Registration:
    """A nanny's connection to the scheduler while its worker starts."""

    def __init__(self, comm: Any, answer: asyncio.Task[Any]) -> None:
        """Take over the connection, on which the scheduler says in its *answer* what plugins it has."""
        self._comm = comm
        self._answer = answer

    @property
    def is_answered(self) -> bool:
        """Say whether the scheduler has answered."""
        return self._answer.done()

    async def plugins(self) -> NannyPlugins:
        """Return what the scheduler has, when it says so.  Raises OSError if it is gone before."""
        return NannyPlugins(dict((await self._answer)["nanny-plugins"]))

    async def close(self, *, started: bool) -> None:
        """Send the second message, and hang up.  Does nothing the second time.

        Whoever hangs up before the scheduler has replied lets it write in vain.  In Python 3.13 that error
        may be taken for one of another TLS connection, whose worker is then lost: OpenSSL queues errors by
        thread.
        """
        if self._comm.closed():
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await self._comm.write({"status": "ok" if started else "error"})
            if self.is_answered:
                await asyncio.wait_for(self._comm.read(), _REPLY_TIMEOUT)
        await self._comm.close()


async def register(
    scheduler: str, security: Any, nanny: str, dead: str | None, patience: float | None
) -> Registration:
    """Register *nanny* as soon as the scheduler is to be reached; it is to forget the worker *dead*.

    Wait for its answer for *patience* seconds; None: for as long as it takes.
    """
    import dask
    from dask.utils import parse_timedelta
    from distributed.comm.core import FatalCommClosedError

    limit = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"), default="seconds")
    timeout = min(_PATIENCE, limit)
    arguments = security.get_connection_args("worker")  # here certificates are read
    delay, told = 0.1, None
    while True:
        try:
            return await _attempt(scheduler, {"timeout": timeout, **arguments}, nanny, dead, patience)
        except (OSError, asyncio.TimeoutError) as error:
            if isinstance(error, FatalCommClosedError):  # certificates; the next attempt would end so, too
                raise
            why = _reason(error)
        if told is None or why not in ("", told):
            logger.info("Waiting to connect to: %26s (%s)", scheduler, why or "it does not answer")
            told = why
        timeout = min(2 * timeout, limit)
        await asyncio.sleep(delay)  # some attempts fail at once, such as those to look up a name
        delay = min(2 * delay, 1.0)


def _reason(error: BaseException) -> str:
    """Return what ended an attempt to connect, in the same words each time; nothing if it was the time.

    distributed's own words name its objects and ports, others in each attempt, and the last of the many
    that one attempt consists of may find no time left whatever the others have met.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (asyncio.TimeoutError, asyncio.CancelledError)):
        return ""
    return (isinstance(error, OSError) and error.strerror) or str(error)


async def _attempt(
    scheduler: str, arguments: dict[str, Any], nanny: str, dead: str | None, patience: float | None
) -> Registration:
    from distributed.comm.core import connect

    comm = await connect(scheduler, **arguments)
    comm.name = "Nanny->Scheduler (registration)"
    if dead is not None:
        stimulus = f"nannyd-unregister-{time.time()}"  # noqa: TID251 (an identifier, in Dask's form)
        message = {"op": "unregister", "address": dead, "stimulus_id": stimulus, "reply": True}
        await comm.write(message)
        await comm.read()
    await comm.write({"op": "register_nanny", "address": nanny})
    answer = asyncio.get_running_loop().create_task(comm.read())
    await asyncio.wait({answer}, timeout=patience)
    if answer.done():
        answer.result()
    return Registration(comm, answer)
