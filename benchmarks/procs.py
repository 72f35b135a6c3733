"""What a process uses, read from /proc, and how to wait for things without disturbing them."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

MIB = 1 << 20
TIMEOUT = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


class BenchmarkError(Exception):
    """Something to be measured did not happen."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes hold, in MiB."""

    rss: float
    pss: float
    uss: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What processes have done so far."""

    at: float
    wakeups: int
    cpu: float

    def since(self, before: Self) -> tuple[float, float]:
        """Return wake-ups a second and the percentage of a CPU."""
        seconds = self.at - before.at
        return (self.wakeups - before.wakeups) / seconds, 100 * (self.cpu - before.cpu) / seconds


def memory(pids: Iterable[int]) -> Memory:
    """Return the sum of smaps_rollup over *pids*."""
    total = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
    for pid in pids:
        fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
        for name in total:
            total[name] += int(fields[name].split()[0])
    kib = {name: value / 1024 for name, value in total.items()}
    return Memory(kib["Rss"], kib["Pss"], kib["Private_Clean"] + kib["Private_Dirty"])


def activity(pids: Iterable[int]) -> Activity:
    """Return how often the threads of *pids* gave up a CPU by themselves, and the CPU time they had."""
    wakeups, cpu = 0, 0.0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            wakeups += int(_fields(task / "status")["voluntary_ctxt_switches"])
        cpu += _cpu_seconds(pid)
    return Activity(time.monotonic(), wakeups, cpu)


def _cpu_seconds(pid: int) -> float:
    try:  # nanoseconds, where the kernel counts them (CONFIG_SCHED_INFO)
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int, *names: str) -> int:
    """Return the bytes of fields of /proc/PID/status, `RssAnon` for example."""
    fields = _fields(Path(f"/proc/{pid}/status"))
    return sum(int(fields[name].split()[0]) * 1024 for name in names)


def children(pid: int) -> list[int]:
    """Return the children of *pid*, zombies too."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of *pid*, theirs, and so on."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def is_zombie(pid: int) -> bool:
    """Say whether *pid* has ended and nobody has noticed."""
    try:
        return _fields(Path(f"/proc/{pid}/status"))["State"].startswith("Z")
    except OSError:
        return False


def is_gone(pid: int) -> bool:
    """Say whether *pid* has ended, noticed or not."""
    return is_zombie(pid) or not Path(f"/proc/{pid}").exists()


def command_line(pid: int) -> str:
    """Return the arguments of *pid*, with spaces between them; nothing for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descriptors(pid: int) -> int:
    """Return how many files *pid* has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """Return how many threads *pid* has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _fields(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def kill(pid: int) -> int:
    """Send SIGKILL to *pid*, and return when, in nanoseconds of CLOCK_MONOTONIC."""
    pidfd = os.pidfd_open(pid)
    try:
        began = time.monotonic_ns()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return began


def until(condition: Callable[[], T | None], what: str, timeout: float = TIMEOUT) -> T:
    """Return the first true value of *condition*; raise BenchmarkError, naming *what*, without one."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Birth:
    """The first words of a process."""

    pid: int
    at: int
    """Nanoseconds of CLOCK_MONOTONIC."""


class Births:
    """A FIFO in which `first.c` tells when a process began.  Nothing polls, so nothing is disturbed."""

    def __init__(self, path: Path) -> None:
        """Make the FIFO at *path*, for writers of every user."""
        os.mkfifo(path)
        path.chmod(0o666)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lines: list[str] = []

    def next(self, timeout: float = TIMEOUT) -> Birth:
        """Return the next birth, or the oldest that nobody asked for."""
        while not self._lines:
            if not select.select([self._fd], [], [], timeout)[0]:
                raise BenchmarkError(f"no process began within {timeout:g} s")
            self._lines = os.read(self._fd, 4096).decode().splitlines()
        pid, at = map(int, self._lines.pop(0).split())
        return Birth(pid, at)

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
