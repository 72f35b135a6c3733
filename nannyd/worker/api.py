"""The worker as its author sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from nannyd.core import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTIFY_SOCKET = os.environ.get("NOTIFY_SOCKET")
"""Remembered: some libraries remove the variable when they have used it."""


class Worker:
    """A worker in the form of a class.  To inherit from this is optional.

    Any class will do that has `start()` or `finished()`; each of the methods may be left out.  The
    order of a life is: constructor, `nannyd_setup` of the preloads, `start`, READY=1, `finished`,
    `close`, `nannyd_teardown` of the preloads.  All of it happens in one asyncio event loop, in the
    main thread; what blocks the loop is seen as a hang by the watchdog.
    """

    address: str | None = None
    """Where the worker can be reached, in whatever form; told to nannyd when `start` has returned."""

    local_directory: str | None = None
    """Where the worker keeps scratch files; told to nannyd when `start` has returned.

    A constructor with a parameter of this name is given the private directory that nannyd made and
    removes.
    """

    async def start(self) -> None:
        """Get ready to work.  The worker counts as ready when this returns.

        Cancelled if the worker has to end meanwhile.
        """

    async def finished(self) -> None:
        """Return when there is nothing left to do; then the process ends with status 0.

        The default never returns.  An exception ends the process with status 1.
        """
        await asyncio.get_running_loop().create_future()

    async def close(self, timeout: float, reason: str) -> None:
        """End the work and give back what the worker holds.

        A third parameter, `drain`, is given the seconds of *timeout* in which a worker that is not to come
        back may pass on what it holds; 0 where it is to be replaced.

        Called exactly once for every worker whose constructor returned, even if `start` was cancelled,
        failed, or was never reached.  `finished` is cancelled when this has returned.  After *timeout*
        seconds it is cancelled and the process ends with status 1.  *reason* is what nannyd said,
        `SIGTERM` or `SIGINT` for a signal from elsewhere, `nanny-gone` if nannyd died, `finished` or
        `failed` if the worker ends by itself.
        """


def notify(descriptors: Sequence[int] = (), /, **fields: str) -> None:
    """Tell nannyd something in the words of sd_notify(3), for example `notify(STATUS="42 jobs")`.

    Does nothing where no nannyd is listening.  *descriptors* stay the caller's.
    """
    with contextlib.suppress(OSError):  # nannyd is gone, which is seen at the channel
        wire.send(_NOTIFY_SOCKET, descriptors, **fields)
