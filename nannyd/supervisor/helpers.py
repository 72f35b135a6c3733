"""nannyd's own short-lived children: rm(1) for scratch directories, the launcher for a reload.

They are no part of the worker.  Each is held by a pidfd and has a deadline.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Protocol

from nannyd.supervisor import scratch
from nannyd.supervisor.notices import SCRATCH_FAILED, say
from nannyd.supervisor.spawn import Child, Program, SpawnError, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_OOM_SCORE_ADJ = 1000
"""Where memory runs out in the unit, a reload fails rather than the worker."""
_LARGEST = 16 << 20
"""Bytes of output that are read from a helper."""


class Forget(Protocol):
    """What is done when rm(1) has ended."""

    def __call__(self, *, removed: bool) -> None:
        """Say whether the directory is gone."""


class Helpers:
    """The children that are not the worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, oom_score_adj: int | None = _OOM_SCORE_ADJ) -> None:
        """Start with none."""
        self._loop = loop
        self._oom_score_adj = oom_score_adj
        self._running: dict[int, Child] = {}
        self._adopted: set[int] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def pids(self) -> set[int]:
        """Return the processes that do not belong to the worker although they descend from us."""
        return self._running.keys() | self._adopted

    def adopt(self, pid: int) -> None:
        """Take note of a child that is no worker's, and that somebody else watches."""
        self._adopted.add(pid)

    def release(self, pid: int) -> None:
        """Forget a child that has ended."""
        self._adopted.discard(pid)

    def remove(self, path: Path, forget: Forget) -> None:
        """Remove a scratch directory and *forget* it."""

        def done(code: int | None) -> None:
            forget(removed=code == 0)
            if code != 0:
                how = "was killed" if code is None else f"ended with status {code}"
                say(SCRATCH_FAILED, path=path, detail=f"rm {how}")

        try:
            self._start(scratch.removal(path), 2, done, "/")
        except SpawnError as error:
            forget(removed=False)
            say(SCRATCH_FAILED, path=path, detail=str(error))

    def _start(
        self, argv: Sequence[str], output: int, done: Callable[[int | None], None], directory: str | None
    ) -> Child:
        program = Program(
            argv=list(argv),
            environ=dict(os.environ),
            working_directory=directory,
            umask=None,
            nice=None,
            oom_score_adj=self._oom_score_adj,
            stdout=output,
            stderr=2,
            channel=None,
        )
        child = spawn(program, None)
        self._running[child.pid] = child
        self._idle.clear()

        def exited() -> None:
            status = child.reap()
            if status is None:
                return
            self._loop.remove_reader(child.pidfd)
            del self._running[child.pid]
            child.close()
            if not self._running:
                self._idle.set()
            done(status.code)

        self._loop.add_reader(child.pidfd, exited)
        return child

    async def output(self, argv: Sequence[str], within: float) -> tuple[int | None, bytes]:
        """Run *argv* where we run ourselves; return its exit status (None: a signal's end) and what it wrote.

        Raises TimeoutError after *within* seconds, when it was killed; SpawnError.
        """
        inside, outside = os.pipe()
        ended: asyncio.Future[int | None] = self._loop.create_future()

        def done(code: int | None) -> None:
            if not ended.done():  # not cancelled by the timeout
                ended.set_result(code)

        try:
            child = self._start(argv, outside, done, None)
        except SpawnError:
            os.close(inside)
            raise
        finally:
            os.close(outside)
        reader = asyncio.StreamReader(limit=_LARGEST)
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(inside, "rb")
        )
        try:
            async with asyncio.timeout(within):
                written = await reader.read()  # to the end: with a number, the first chunk would do
                return await ended, written
        except TimeoutError:
            child.signal(signal.SIGKILL)
            raise
        finally:
            transport.close()

    async def wait(self, within: float) -> None:
        """Wait until all are done, at most *within* seconds, then kill what is left."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            for child in self._running.values():
                child.signal(signal.SIGKILL)
