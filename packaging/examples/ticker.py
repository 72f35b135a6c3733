"""A worker that counts; see python.toml."""

import asyncio
import json
import os
import sys
from pathlib import Path

from nannyd.worker import notify


class Ticker:
    """Counts on from where the last one stopped."""

    def __init__(self, interval: float) -> None:
        """*interval*, in seconds, is what stands in `args`."""
        self.interval = interval
        self.file = Path(os.environ.get("STATE_DIRECTORY", "."), "ticker.json")
        self.count = json.loads(self.file.read_text()) if self.file.exists() else 0

    async def finished(self) -> None:
        """Do the work; when this returns, the worker is through."""
        while True:
            self.count += 1
            notify(STATUS=f"tick {self.count}")
            await asyncio.sleep(self.interval)

    async def close(self, reason: str) -> None:
        """Save the work.  The reason is a word, for example "memory"."""
        self.file.write_text(json.dumps(self.count))
        sys.stderr.write(f"saved tick {self.count} ({reason})\n")
