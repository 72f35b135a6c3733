"""The agent's event loop, and Dask's in a thread of its own.

It is usual in Dask to block the nanny's event loop: by `pip install` in a plugin, by any function that is
given to `Client.run(nanny=True)`.  An agent that does not answer for so long would be taken for hung.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


class Loops:
    """Both."""

    def __init__(self) -> None:
        """To be made in the agent's."""
        self._agents = asyncio.get_running_loop()
        self._dasks: asyncio.AbstractEventLoop | None = None

    async def in_dasks(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do *work* in Dask's event loop; to be awaited in the agent's."""
        if self._dasks is None:
            self._dasks = asyncio.new_event_loop()
            threading.Thread(target=_run, args=[self._dasks], name="Dask's event loop", daemon=True).start()
        return await _await_in(self._dasks, work)

    async def in_agents(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do *work* in the agent's event loop; to be awaited in Dask's."""
        return await _await_in(self._agents, work)


async def _await_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:
    result, error = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_outcome(work), loop))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


async def _outcome(work: Coroutine[Any, Any, _T]) -> tuple[_T | None, BaseException | None]:
    """Do *work*, and return what it raises: SystemExit must not escape from a task, it ends the loop."""
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 (the user's code)
        return None, error


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    except BaseException:  # noqa: BLE001 (such as the SystemExit of a function that a client runs)
        traceback.print_exc()
        os._exit(1)
