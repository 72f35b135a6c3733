"""One after another, in the order of asking, but nobody waits longer than he likes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """Like asyncio.Lock, whose `acquire` does not go together with a deadline before Python 3.12."""

    def __init__(self) -> None:
        """Nobody is in it."""
        self._last: asyncio.Future[None] | None = None

    def is_free(self) -> bool:
        """Say whether nobody has the turn or waits for it."""
        return self._last is None or self._last.done()

    @contextlib.asynccontextmanager
    async def take(self, timeout: float | None) -> AsyncIterator[None]:
        """Wait for the turn, at most *timeout* seconds (then TimeoutError), and have it."""
        before, mine = self._last, asyncio.get_running_loop().create_future()
        self._last = mine
        try:
            if before is not None and not before.done():
                await asyncio.wait({before}, timeout=timeout)
                if not before.done():
                    raise TimeoutError
            yield
        finally:
            if before is None or before.done():
                mine.set_result(None)
            else:
                before.add_done_callback(lambda _: mine.set_result(None))
