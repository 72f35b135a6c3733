"""A Python worker that starts as fast as any can, and the same one without a supervisor.

    python python_worker.py FIFO

writes "PID NANOSECONDS" into FIFO when the worker would be ready.
"""

import asyncio
import os
import sys
import time


class Plain:
    """Does nothing, in an event loop."""

    async def start(self) -> None:
        """Be ready at once."""

    async def finished(self) -> None:
        """Never return."""
        await asyncio.get_running_loop().create_future()


async def _bare(fifo: str) -> None:
    worker = Plain()
    await worker.start()
    line = f"{os.getpid()} {time.monotonic_ns()}\n".encode()
    descriptor = os.open(fifo, os.O_WRONLY)
    os.write(descriptor, line)


if __name__ == "__main__":
    asyncio.run(_bare(sys.argv[1]))
