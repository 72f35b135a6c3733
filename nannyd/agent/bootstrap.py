"""What the agent's process does: from the channel to the conversation."""

from __future__ import annotations

import os
import sys
import traceback

from nannyd.agent import frugal
from nannyd.core import boot, wire


def main() -> None:
    """Host what the channel specifies, until the supervisor is gone.

    Nothing is cleaned up at the end, whatever brings it about: a thread of a plugin's could hold that up.
    """
    frugal.import_asyncio()
    import asyncio

    boot.arrive()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as it is for who started without the descriptor
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_converse())
    except BaseException:  # noqa: BLE001 (such as the SystemExit of a task that a plugin has begun)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


async def _converse() -> None:
    from nannyd.agent.channel import Channel, parse_specification
    from nannyd.agent.service import Service

    channel = Channel(wire.CHANNEL_FD)
    await channel.open()
    service: Service | None = None
    async for message in channel.read():
        if service is None:
            spec = parse_specification(message)
            os.environ.update(spec.environ)
            service = Service(spec, channel)
        else:
            service.take(message)
