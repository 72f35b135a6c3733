"""What is measured in the booted machine, as root: nannyd as a unit with a delegated cgroup, and systemd.

Writes its rows as JSON into $NANNYD_TEST_ARTIFACTS/bench.json.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from . import procs
from .eating import Record
from .figures import floor, long_row, memory_rows, restarts
from .peers import Scheduler
from .procs import MIB, BenchmarkError, Births
from .table import Row

PROGRAMS = Path(__file__).parent
SHARED = Path("/run/bench")
UNITS = Path("/run/systemd/system")
CONFIGURATION = Path("/etc/nannyd")
CGROUPS = Path("/sys/fs/cgroup")

SETTLE = 4.0
IDLE = 25.0
RESTARTS = 30
TRIPS = 20
LIMIT = 192 * MIB
LONG_ROW = 1000


def main() -> None:
    """Measure everything."""
    SHARED.mkdir()
    CONFIGURATION.mkdir(exist_ok=True)
    rows = [*idle(), *restart(), *tripwire(), *thousand()]
    written = json.dumps([asdict(row) for row in rows])
    Path(os.environ["NANNYD_TEST_ARTIFACTS"], "bench.json").write_text(written)


def idle() -> list[Row]:
    """Memory and wake-ups of two units: one with systemd's watchdog, one without."""
    say(f"guest: idle, {IDLE:g} s of nothing")
    settings = "command = ['sleep', '3600']\n[memory]\nlimit = '256MiB'\n"
    with (
        Births(SHARED / "registered") as registered,
        Scheduler(SHARED / "scheduler", registered) as scheduler,
        instance("calm", settings, watchdog=False) as calm,
        instance("watched", settings) as watched,
        instance("dask", _member(scheduler.address()), watchdog=False) as dask,
    ):
        registered.next()
        time.sleep(SETTLE)
        before = {pid: procs.activity([pid]) for pid in (calm, watched, dask)}
        time.sleep(IDLE)
        used = {pid: procs.memory([pid]) for pid in before}
        # No CPU time: user-mode Linux counts it in ticks of 10 ms, more than there is.
        woken = {pid: [procs.activity([pid]).since(then)[0]] for pid, then in before.items()}
        agents = [pid for pid in procs.children(dask) if "agent" in procs.command_line(pid)]
    group = "guest: idle unit (limit set, cgroup, log to the journal)"
    member = "guest: idle unit of a Dask worker (the same)"
    return [
        *memory_rows(group, {"nannyd": [used[watched]]}),
        Row(group, "wake-ups, no watchdog", "1/s", {"nannyd": woken[calm]}, at_most=0.2),
        Row(group, "wake-ups, WatchdogSec=30", "1/s", {"nannyd": woken[watched]}),
        *memory_rows(member, {"nannyd": [used[dask]]}),
        Row(member, "wake-ups, no watchdog", "1/s", {"nannyd": woken[dask]}, at_most=0.2),
        Row(member, "agents", "count", {"nannyd": [len(agents)]}, at_most=0),
    ]


def _member(address: str) -> str:
    return f"[dask]\nscheduler = '{address}'\nnthreads = 1\n[memory]\nlimit = '256MiB'\n"


def restart() -> list[Row]:
    """From the kill of a worker to the first instruction of the next."""
    found: dict[str, list[float]] = {}
    with Births(SHARED / "births") as births:
        command = f"{PROGRAMS}/first {births.path}"
        settings = _worker(command.split(), restart="delay = 0\nstart-limit-burst = 0")
        say("guest: restart, nannyd")
        with instance("restart", settings):
            found["nannyd"] = restarts(births, RESTARTS, 0.1)
        say("guest: restart, nannyd by the exec helper")
        with instance("helper", settings.replace("[restart]", "nice = 1\n[restart]")):
            helped = restarts(births, RESTARTS, 0.1)
        least = floor(births, PROGRAMS / "first", RESTARTS)
        say("guest: restart, systemd")
        with unit("bench-systemd.service", _systemd_unit(command)):
            found["systemd"] = restarts(births, RESTARTS, 0.5)
    births.path.unlink()
    group = "guest: restart"
    return [
        Row(group, "kill -9 → first instruction", "ms", found),
        Row(group, "the same by the exec helper", "ms", {"nannyd": helped}),
        Row(group, "posix_spawn alone", "ms", {"nannyd": least}),
    ]


def _systemd_unit(command: str) -> str:
    return f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart={command}
Restart=always
RestartSec=0
User=_nannyd
"""


def tripwire() -> list[Row]:
    """A worker that allocates as fast as it can crosses the threshold, again and again."""
    say(f"guest: tripwire, {TRIPS} eaters")
    late, peaks, bad = [], [], 0
    with Record(SHARED / "record") as record:
        command = list(map(str, record.command(PROGRAMS / "eater", 0, 2 * LIMIT, polite=True)))
        settings = _worker(
            command, memory=f"limit = '{LIMIT // MIB}MiB'", restart="growth = 1\nstart-limit-burst = 0"
        )
        with instance("trip", settings):
            for _ in range(TRIPS):
                trip = _one_trip(record)
                bad += trip is None
                if trip is not None:
                    late.append(trip[0])
                    peaks.append(trip[1])
    group = f"guest: tripwire (cgroup, 95 % of {LIMIT // MIB} MiB, at full speed)"
    return [
        Row(group, "kernel's event → SIGTERM", "ms", {"nannyd": late}, at_most=25),
        Row(group, "kernel's event → SIGTERM, worst", "ms", {"nannyd": late}, "max"),
        Row(group, "peak, of the limit, worst", "%", {"nannyd": peaks}, "max", at_most=97),
        Row(group, "runs with an OOM kill or no SIGTERM", f"of {TRIPS}", {"nannyd": [bad]}, at_most=0),
    ]


def _one_trip(record: Record) -> tuple[float, float] | None:
    """Let one eat; return the ms from the kernel's event to SIGTERM, and the peak in %.

    None: it was killed, or never asked.
    """
    pid = record.waiting()
    time.sleep(0.1)
    leaf = CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")
    pidfd, events = os.pidfd_open(pid), os.open(leaf / "memory.events", os.O_RDONLY)
    try:
        os.read(events, 4096)  # the kernel rings only after that
        record.go()
        rung = _rings(events, pidfd)
    finally:
        os.close(pidfd)
        os.close(events)
    eaten = record.read()
    record.clear()
    # The rings of the warning came before, and later ones come every 10 ms as long as it is held back.
    near = eaten.crossed(int(0.9 * LIMIT))
    after = [at for at in rung if near is not None and at > near]
    if eaten.pid != pid or not eaten.asked or eaten.oom_kill or eaten.oom or not after:
        say(f"guest: tripwire: {eaten.pid=} {eaten.asked=} {eaten.oom_kill=} {eaten.oom=} {len(rung)} events")
        return None
    # The one CPU may have served nannyd first.
    return max(0, eaten.asked - after[0]) / 1e6, 100 * eaten.peak / LIMIT


def _rings(events: int, pidfd: int) -> list[int]:
    """Return when the kernel rang for memory.events, until the process of *pidfd* ended."""
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    poll.register(pidfd, select.POLLIN)
    found: list[int] = []
    while True:
        ready = dict(poll.poll(60_000))
        now = time.monotonic_ns()
        if not ready:
            raise BenchmarkError("an eater was not ended")
        if pidfd in ready:
            return found
        found.append(now)
        os.lseek(events, 0, os.SEEK_SET)
        try:
            os.read(events, 4096)
        except OSError:  # the leaf was removed
            poll.unregister(events)


def thousand() -> list[Row]:
    """A thousand restarts in a row, and what is left of them."""
    say(f"guest: {LONG_ROW} restarts in a row")
    with Births(SHARED / "row") as births:
        settings = _worker(
            [f"{PROGRAMS}/first", str(births.path)],
            memory="limit = '256MiB'",
            restart="delay = 0\nstart-limit-burst = 0",
        )
        with instance("row", settings) as pid:
            rows = long_row("guest: thousand (restarts in a row, cgroup)", pid, births, LONG_ROW)
            own = CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")
            leaves = len(list(own.parent.glob("worker-*")))
    return [*rows, Row(rows[0].group, "leaves", "count", {"nannyd": [leaves]}, at_most=1)]


def _worker(command: list[str], memory: str = "limit = 'none'", restart: str = "") -> str:
    return f"command = {json.dumps(command)}\n[restart]\n{restart}\n[memory]\n{memory}\n"


@contextmanager
def instance(name: str, worker: str, *, watchdog: bool = True) -> Iterator[int]:
    """Run `nannyd@NAME` with the packaged unit; *worker* is its `[worker]` table and what follows."""
    (CONFIGURATION / f"{name}.toml").write_text(f"[worker]\n{worker}")
    drop_ins: Mapping[str, str] = {} if watchdog else {"calm.conf": "[Service]\nWatchdogSec=0\n"}
    with unit(f"nannyd@{name}.service", drop_ins=drop_ins) as pid:
        yield pid


@contextmanager
def unit(name: str, text: str = "", drop_ins: Mapping[str, str] | None = None) -> Iterator[int]:
    """Start unit *name*, give its main process, and stop it."""
    if text:
        (UNITS / name).write_text(text)
    for file, content in (drop_ins or {}).items():
        directory = UNITS / f"{name}.d"
        directory.mkdir()
        (directory / file).write_text(content)
    systemctl("daemon-reload")
    systemctl("start", name)
    try:
        yield int(systemctl("show", "--property=MainPID", "--value", name))
    finally:
        systemctl("stop", name)


def systemctl(*arguments: str) -> str:
    """Run systemctl(1) and return what it prints."""
    done = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise BenchmarkError(f"systemctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def say(text: str) -> None:
    """Tell how far we are."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"guest: {error}")
