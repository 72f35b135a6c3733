"""A worker that allocates as fast as the machine can, until SIGTERM; test_memory.py runs it.

It is ready once it knows its limits.  Its SIGTERM handler runs in a thread while the allocation goes on,
as a native program's would, writes what it sees to $STATE_DIRECTORY/story as one line of JSON, and exits 0.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path

MIB = 1 << 20
BITE = 256 << 10

leaf = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().strip().removeprefix("0::"))
eaten: list[tuple[float, int]] = []


def read(name: str) -> int:
    return int((leaf / name).read_text())


def crossed(threshold: float) -> float | None:
    """Return when the leaf's usage went past *threshold*, as far as can be seen from in here."""
    return next((when for when, usage in eaten if usage >= threshold), None)


def end(fraction: float) -> None:
    signal.sigwait({signal.SIGTERM})
    now = time.monotonic()
    when = crossed(fraction * read("memory.max"))
    events = dict(line.split() for line in (leaf / "memory.events").read_text().splitlines())
    line = {
        "late": None if when is None else now - when,
        "peak": read("memory.peak") / read("memory.max"),
        "high": events["high"],
        "oom_kill": events["oom_kill"],
        "bytes per second": (eaten[-1][1] - eaten[0][1]) / (eaten[-1][0] - eaten[0][0]),
    }
    with Path(os.environ["STATE_DIRECTORY"], "story").open("a") as story:
        story.write(json.dumps(line) + "\n")
    os._exit(0)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end, args=(float(sys.argv[1]),), daemon=True).start()
    size = 2 * read("memory.max")
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    before = read("memory.current")
    for offset in range(0, size, BITE):
        eaten.append((time.monotonic(), before + offset))
        ctypes.memset(start + offset, 1, BITE)  # the kernel finds no page: this is where memory comes from


if __name__ == "__main__":
    main()
