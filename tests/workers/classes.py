"""Python workers for the tests: one for each way that a worker's life can take.

Paths to write to come as keyword arguments, as a user's settings would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nannyd.worker import Worker, notify

AT_IMPORT = dict(os.environ)


def _write(path: str, data: object) -> None:
    """Write *data* as JSON, never to be seen half written."""
    half = Path(path + ".part")
    half.write_text(json.dumps(data))
    half.rename(path)


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


class Good(Worker):
    """Does everything right, and writes its story, line by line, into *story*."""

    def __init__(self, *args: str, story: str | None = None, local_directory: str | None = None) -> None:
        """Take the scratch directory from nannyd."""
        self.args = args
        self.story = story
        self.local_directory = local_directory

    def tell(self, line: str) -> None:
        """Add *line* to the story."""
        if self.story is not None:
            _append(self.story, line)

    async def start(self) -> None:
        """Start."""
        self.tell(f"start {' '.join(self.args)}".rstrip())
        self.address = f"unix:{self.local_directory}/socket"
        notify(STATUS="working")

    async def close(self, timeout: float, reason: str) -> None:  # noqa: ASYNC109
        """Close."""
        await asyncio.sleep(0)
        self.tell(f"close timeout={timeout:g} reason={reason}")


class Duck:
    """Inherits from nothing, has plain methods and no `finished`."""

    def __init__(self, story: str) -> None:
        """Remember where to write."""
        self.story = story

    def start(self) -> None:
        """Start, without async."""
        _append(self.story, "start")

    def close(self) -> None:
        """Close, without arguments."""
        _append(self.story, "close")


class OnlyFinished:
    """Has no `start`, no `close`; is through at once."""

    async def finished(self) -> None:
        """Finish."""
        await asyncio.sleep(0)


class BlocksInFinished:
    """Has a `finished` that is not async."""

    def finished(self) -> None:
        """Return at once."""


class Neither:
    """Is no worker."""


class Looking:
    """Writes into *path* what it finds: variables at import and later, arguments, modules, the path."""

    def __init__(self, path: str, modules: list[str] | None = None) -> None:
        """Remember where to write, and which *modules* to look for."""
        self.path = path
        self.modules = modules or []

    async def start(self) -> None:
        """Look."""
        specs = {name: find_spec(name) for name in self.modules}
        found: dict[str, Any] = {
            "environ_at_import": AT_IMPORT,
            "environ": dict(os.environ),
            "argv": sys.argv,
            "path": sys.path,
            "version": list(sys.version_info[:2]),
            "modules": {name: spec.origin for name, spec in specs.items() if spec is not None},
            "channel_inheritable": os.get_inheritable(3),
        }
        _write(self.path, found)


class FailsInConstructor:
    """Cannot be made."""

    def __init__(self) -> None:
        """Fail."""
        raise ValueError("no such queue: 'jöbs'")

    async def start(self) -> None:
        """Never reached."""


class FailsInStart(Good):
    """Cannot start, and says so in a long text."""

    async def start(self) -> None:
        """Fail."""
        raise RuntimeError("cannot connect to the broker\n" + "🙂" * 20_000 + "\nthe last line")


class FailsLater(Good):
    """Is ready, then fails."""

    async def finished(self) -> None:
        """Fail."""
        await asyncio.sleep(0)
        raise RuntimeError("lost the broker")


class FailsInClose(Good):
    """Works, but cannot close."""

    async def close(self, timeout: float, reason: str) -> None:  # noqa: ASYNC109
        """Fail."""
        await super().close(timeout, reason)
        raise RuntimeError("cannot flush")


class Finishes(Good):
    """Finishes by itself *delay* seconds after it was ready."""

    delay = 0.05

    async def finished(self) -> None:
        """Finish."""
        await asyncio.sleep(self.delay)


class StartsForever(Good):
    """Is never ready."""

    async def start(self) -> None:
        """Wait for what never comes."""
        self.tell("starting")
        notify(STATUS="starting")
        try:
            await asyncio.sleep(3600)
        finally:
            self.tell("start cancelled")


class StartsDespiteAll(StartsForever):
    """Takes no notice of being cancelled, as asyncio.wait_for() of Python 3.11 may."""

    async def start(self) -> None:
        """Be ready."""
        with contextlib.suppress(asyncio.CancelledError):
            await super().start()


class ClosesForever(Good):
    """Never comes to the end of `close`, and does not let itself be cancelled either."""

    async def close(self, timeout: float, reason: str) -> None:  # noqa: ASYNC109
        """Go on."""
        await super().close(timeout, reason)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.tell("cancelled")
                if reason != "nanny-gone":
                    raise


class Hangs(Good):
    """Blocks its event loop *DELAY* seconds after it was ready."""

    DELAY = 0.25

    async def finished(self) -> None:
        """Block."""
        await asyncio.sleep(self.DELAY)
        notify(STATUS="hanging")
        time.sleep(60)


class Exits(Good):
    """Calls sys.exit: at the place named *where*, with the status *status*."""

    def __init__(self, where: str, status: int | str, story: str | None = None) -> None:
        """Remember where and how."""
        super().__init__(story=story)
        self.where = where
        self.status = status

    def leave(self, here: str) -> None:
        """Exit if *here* is the place."""
        if self.where == here:
            sys.exit(self.status)

    async def start(self) -> None:
        """Start."""
        self.leave("start")

    async def in_task(self) -> None:
        """Exit from a task of the worker's own."""
        self.leave("task")

    async def finished(self) -> None:
        """Finish."""
        self.leave("finished")
        self.task = asyncio.ensure_future(self.in_task())
        await asyncio.sleep(3600 if self.where == "task" else 0)

    async def close(self, timeout: float, reason: str) -> None:  # noqa: ASYNC109
        """Close."""
        await super().close(timeout, reason)
        self.leave("close")


class Forks(Good):
    """Forks a child, terminates it, and writes how it ended."""

    async def finished(self) -> None:
        """Fork."""
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        await asyncio.sleep(0.1)
        child.terminate()
        child.join(5)
        self.tell(f"child ended with {child.exitcode}")
        await asyncio.sleep(0.1)
        notify(STATUS="still here")
        await super().finished()
