"""A scheduler, a Nanny or a client in a process of its own, with as little beside it as possible.

    python dask_peer.py scheduler ADDRESS-FILE FIFO HOST
    python dask_peer.py nanny ADDRESS MEMORY-LIMIT PRELOAD [FIRST]
    python dask_peer.py client ADDRESS

The scheduler writes "NAME NANOSECONDS" of CLOCK_MONOTONIC into FIFO when a worker has registered; NAME is 0
for one whose name is no number.  With FIRST the Nanny starts its processes through that program (`first.c`)
instead of Python itself.

The client reads what to do from standard input, a word a line, and answers each with a line of JSON:
`restart` all workers (the seconds it took), `hang` the event loop of one, `start` a process in a task (its
pid).
"""

import asyncio
import importlib
import json
import multiprocessing.spawn
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

distributed: Any = importlib.import_module("distributed")  # untyped


async def scheduler(address_file: str, fifo: str, host: str) -> None:
    """Run a scheduler for ever."""
    base: Any = distributed.SchedulerPlugin

    class Registered(base):  # type: ignore[misc]
        """Tells of every worker."""

        def add_worker(self, scheduler: Any, worker: str) -> None:
            """Tell."""
            name = str(scheduler.workers[worker].name)
            with Path(fifo).open("w") as file:
                file.write(f"{name if name.isdigit() else 0} {time.monotonic_ns()}\n")

    async with distributed.Scheduler(host=host, port=0, dashboard_address=None) as running:
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


def client(address: str) -> None:
    """Do what standard input says."""
    with distributed.Client(address, set_as_default=False) as connected:
        for line in sys.stdin:
            print(json.dumps(_ACTIONS[line.strip()](connected)), flush=True)


def _restart(connected: Any) -> float:
    began = time.monotonic()
    connected.restart(timeout=60)
    return time.monotonic() - began


_ACTIONS: dict[str, Callable[[Any], object]] = {
    "restart": _restart,
    "hang": lambda connected: connected.submit(_hang, pure=False).result(),
    "start": lambda connected: connected.submit(_start, pure=False).result(),
}


def _hang() -> None:
    """Let the worker's event loop do nothing else as soon as it has told that this task has ended."""
    loop = distributed.get_worker().loop
    loop.add_callback(loop.call_later, 0.5, time.sleep, 3600)


def _start() -> int:
    """Start a process as somebody does who forgets it."""
    return subprocess.Popen(["sleep", "3600"], start_new_session=True).pid


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "client":
        client(*arguments)
    else:
        asyncio.run(nanny(*arguments) if role == "nanny" else scheduler(*arguments))
