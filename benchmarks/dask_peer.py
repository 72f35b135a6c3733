"""A scheduler or a Nanny in a process of its own, with as little beside it as possible.

    python dask_peer.py scheduler ADDRESS-FILE FIFO
    python dask_peer.py nanny ADDRESS MEMORY-LIMIT PRELOAD [FIRST]

The scheduler writes "0 NANOSECONDS" of CLOCK_MONOTONIC into FIFO when a worker has registered.  With FIRST
the Nanny starts its processes through that program (`first.c`) instead of Python itself.
"""

import asyncio
import importlib
import multiprocessing.spawn
import sys
import time
from pathlib import Path
from typing import Any

distributed: Any = importlib.import_module("distributed")  # untyped


async def scheduler(address_file: str, fifo: str) -> None:
    """Run a scheduler for ever."""
    base: Any = distributed.SchedulerPlugin

    class Registered(base):  # type: ignore[misc]
        """Tells of every worker."""

        def add_worker(self, scheduler: object, worker: str) -> None:
            """Tell."""
            with Path(fifo).open("w") as file:
                file.write(f"0 {time.monotonic_ns()}\n")

    async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address=None) as running:
        running.add_plugin(Registered())
        Path(address_file).write_text(running.address)  # noqa: ASYNC240 - once
        await running.finished()


async def nanny(address: str, memory_limit: str, preload: str, first: str = "") -> None:
    """Run a Nanny with a worker of one thread until it is told to end."""
    if first:
        multiprocessing.spawn.set_executable(first)
    async with distributed.Nanny(
        address, nthreads=1, memory_limit=memory_limit, preload=preload or None, host="127.0.0.1",
        dashboard_address=None,
    ) as running:  # fmt: skip
        await running.finished()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    asyncio.run(nanny(*arguments) if role == "nanny" else scheduler(*arguments))
