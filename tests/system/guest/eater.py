"""A worker that allocates as fast as the machine can, until SIGTERM; test_memory.py runs it.

Its SIGTERM handler writes what it sees to $STATE_DIRECTORY/story as one line of JSON, and exits 0.  It runs
after the bite that is being eaten, which is small.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

MIB = 1 << 20
BITE = 64 << 10

leaf = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().strip().removeprefix("0::"))
eaten: list[tuple[float, int]] = []  # after each bite: when, and what the kernel counts for the leaf


def read(name: str) -> int:
    return int((leaf / name).read_text())


def before_crossing(threshold: float) -> float:
    """Return when the bite began with which the leaf's usage went past *threshold*."""
    below = [when for when, usage in eaten if usage < threshold]
    return below[-1]


def end(_number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    when = before_crossing(float(sys.argv[1]) * read("memory.max"))
    events = dict(line.split() for line in (leaf / "memory.events").read_text().splitlines())
    line = {
        "late": now - when,
        "peak": read("memory.peak") / read("memory.max"),
        "high": events["high"],
        "oom_kill": events["oom_kill"],
        "bytes per second": (eaten[-1][1] - eaten[0][1]) / (eaten[-1][0] - eaten[0][0]),
    }
    with Path(os.environ["STATE_DIRECTORY"], "story").open("a") as story:
        story.write(json.dumps(line) + "\n")
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    size = 2 * read("memory.max")
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    current = os.open(leaf / "memory.current", os.O_RDONLY)
    for offset in range(0, size, BITE):
        eaten.append((time.monotonic(), int(os.pread(current, 32, 0))))
        ctypes.memset(start + offset, 1, BITE)  # the kernel finds no page: this is where memory comes from


if __name__ == "__main__":
    main()
