"""What is measured on this machine itself, where memory is polled: each function makes some rows."""

import os
import random
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from . import procs
from .eating import Record
from .figures import floor, long_row, memory_rows, restarts
from .lab import SOURCES, Lab
from .peers import Circusd, Nanny, Nannyd, Peer, Scheduler, Supervisord
from .procs import MIB, Births
from .table import Row

SETTLE = 4.0
CALM = {"restart.delay": "0.2s", "restart.growth": "1"}  # the record must be read before the next eater comes
IDLE = 20.0
RESTARTS = {"nannyd": 40, "Nanny": 7, "supervisord": 4, "circusd": 3}
STARTS = {"nannyd": 9, "Nanny": 5, "supervisord": 4, "circusd": 4}
EATERS = 12
LIMIT = 400 * MIB
TERMINATE = 0.95
RATE = 1 << 30
LONG_ROW = 1000


def memory(lab: Lab) -> list[Row]:
    """Resident memory of idle supervisors."""
    lab.say("memory: idle supervisors")
    found: dict[str, list[procs.Memory]] = {}
    with ExitStack() as stack:
        limited = Nannyd(lab.place("nannyd"), ["sleep", "3600"], {"memory.limit": "400MiB"})
        peers = [stack.enter_context(limited), *_other_peers(lab, stack)]
        time.sleep(SETTLE)
        for peer in peers:
            found[peer.name] = [procs.memory(peer.own())]
        text = "memory (idle, limit set, polled, log as text)"
    return memory_rows(text, found, ratio=0.32)


def idle(lab: Lab) -> list[Row]:
    """Wake-ups and CPU time of supervisors with nothing to do."""
    lab.say(f"idle: {IDLE:g} s of nothing")
    sleeper = ["sleep", "3600"]
    with ExitStack() as stack:
        near = stack.enter_context(Record(lab.place("near")))
        eater = near.command(lab.eater, 0, int(0.9 * LIMIT))
        limited, roomy = {"memory.limit": "400MiB"}, {"memory.limit": "20GiB"}
        measured: dict[str, Peer] = {
            "no limit": stack.enter_context(Nannyd(lab.place("free"), sleeper)),
            "poll near": stack.enter_context(Nannyd(lab.place("near"), eater, limited)),
            "poll far": stack.enter_context(Nannyd(lab.place("far"), sleeper, roomy)),
        }
        for peer in _other_peers(lab, stack):
            measured[peer.name] = peer
        near.waiting()
        near.go()
        time.sleep(SETTLE)
        before = {name: procs.activity(peer.own()) for name, peer in measured.items()}
        time.sleep(IDLE)
        found = {n: procs.activity(peer.own()).since(before[n]) for n, peer in measured.items()}
    rows = []
    others = ("Nanny", "supervisord", "circusd")
    for name, label, wakeups, cpu in (
        ("no limit", "without a limit", 0.2, 0.02),
        ("poll far", "polled, far from the threshold", 10, None),
        ("poll near", "polled, near the threshold", 10, None),
    ):
        values = {"nannyd": found[name], **{peer: found[peer] for peer in others}}
        rows.append(Row("idle", f"{label}: wake-ups", "1/s", _first(values, 0), at_most=wakeups))
        rows.append(Row("idle", f"{label}: CPU", "%", _first(values, 1), at_most=cpu))
    return rows


def _first(values: dict[str, tuple[float, float]], index: int) -> dict[str, list[float]]:
    return {name: [pair[index]] for name, pair in values.items()}


def restart(lab: Lab) -> list[Row]:
    """From the kill of a worker to the first instruction of the next."""
    spawned: dict[str, list[float]] = {}
    with Births(lab.place("births")) as births:
        command = [lab.first, births.path]
        peers: list[Peer] = [
            Nannyd(lab.place("nannyd"), command),
            Supervisord(lab.place("supervisord"), command),
            Circusd(lab.place("circusd"), command),
        ]
        for peer in peers:
            lab.say(f"restart: {peer.name}")
            with peer:
                spawned[peer.name] = restarts(births, RESTARTS[peer.name], peer.uptime)
        lab.say("restart: nannyd, by the exec helper")
        with Nannyd(lab.place("helper"), command, {"worker.nice": str(os.nice(0) + 1)}) as peer:
            helped = restarts(births, RESTARTS["nannyd"], peer.uptime)
        least = floor(births, lab.first, RESTARTS["nannyd"])
    spawned["Nanny"] = _nanny_restarts(lab)
    return [
        Row("restart", "kill -9 → first instruction", "ms", spawned, at_most=5),
        Row("restart", "the same by the exec helper", "ms", {"nannyd": helped}),
        Row("restart", "posix_spawn alone", "ms", {"nannyd": least}),
    ]


def _nanny_restarts(lab: Lab) -> list[float]:
    lab.say("restart: Nanny")
    spawned = []
    with _nanny(lab) as (nanny, births, ready):
        ready.next()
        for _ in range(RESTARTS["Nanny"]):
            time.sleep(nanny.uptime * random.uniform(1, 1.5))
            _drain(births)
            killed = procs.kill(nanny.worker())
            spawned.append((births.next().at - killed) / 1e6)
            ready.next()
    return spawned


def _drain(births: Births) -> None:
    """Forget who was born before: the resource tracker comes through the same door."""
    while True:
        try:
            births.next(0)
        except procs.BenchmarkError:
            return


def ready(lab: Lab) -> list[Row]:
    """From the kill of a Python worker to the next one's READY, and what the worker itself takes."""
    lab.say("ready: a Python worker, bare and under nannyd")
    bare, supervised = [], []
    settings = {
        "worker.class": "python_worker:Plain",
        "worker.python": sys.executable,
        "nanny.env.PYTHONPATH": str(SOURCES),
    }
    with Births(lab.place("births")) as births, _Logged(lab.place("class"), [], settings) as peer:
        peer.wait_ready()
        # In turns, so that both meet the same noise.
        for _ in range(20):
            time.sleep(0.05)
            bare.append(_bare_start(births))
            killed = procs.kill(peer.worker())
            supervised.append((peer.wait_ready() - killed) / 1e6)
    allowed = statistics.median(bare) + 20
    return [
        Row("ready", "bare start of a Python worker", "ms", {"nannyd": bare}),
        Row("ready", "kill -9 → READY of the next", "ms", {"nannyd": supervised}, at_most=round(allowed, 1)),
    ]


def _bare_start(births: Births) -> float:
    began = time.monotonic_ns()
    script = SOURCES / "python_worker.py"
    with subprocess.Popen([sys.executable, script, births.path], stdin=subprocess.DEVNULL) as process:
        birth = births.next()
        process.wait()
    return (birth.at - began) / 1e6


class _Logged(Nannyd):
    """A nannyd whose records are read as they come."""

    def errors(self) -> int:
        reader, self._writer = os.pipe()
        self._records = os.fdopen(reader, "rb", buffering=0)
        return self._writer

    def __enter__(self) -> Self:
        super().__enter__()
        os.close(self._writer)
        return self

    def wait_ready(self) -> int:
        """Return when, in nanoseconds, the next worker was said to be ready."""
        while select.select([self._records], [], [], procs.TIMEOUT)[0]:
            said = self._records.read(1 << 16)
            if b"is ready" in said:
                return time.monotonic_ns()
            if not said:
                break
        raise procs.BenchmarkError("the worker did not get ready")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._records.close()


def threshold(lab: Lab) -> list[Row]:
    """A worker that crosses the threshold at 1 GiB/s, under nannyd and under the Nanny, in turns."""
    lab.say(f"threshold: {EATERS} eaters each")
    late: dict[str, list[float]] = {"nannyd": [], "Nanny": []}
    peak: dict[str, list[float]] = {"nannyd": [], "Nanny": []}
    with ExitStack() as stack:
        records = {name: stack.enter_context(Record(lab.place("record"))) for name in late}
        # By the measure of each: the Nanny counts the pages of mapped files too.
        counted = {"nannyd": ("RssAnon", "RssShmem"), "Nanny": ("VmRSS",)}
        command = records["nannyd"].command(lab.eater, RATE, 1 << 30)
        stack.enter_context(Nannyd(lab.place("nannyd"), command, {"memory.limit": "400MiB", **CALM}))
        environ = {
            "BENCH_EATER": str(lab.eater_library),
            "BENCH_RECORD": str(records["Nanny"].path),
            "BENCH_GATE": str(records["Nanny"].gate),
            "BENCH_RATE": str(RATE),
        }
        stack.enter_context(_nanny(lab, preload=SOURCES / "preload_eater.py", environ=environ))
        for _ in range(EATERS):
            for name, record in records.items():
                milliseconds, share = _one_eater(record, counted[name])
                late[name].append(milliseconds)
                peak[name].append(share)
    group = "threshold (polled, 95 % of 400 MiB, 1 GiB/s)"
    return [
        Row(group, "crossing → dead", "ms", late, ratio=1),
        Row(group, "crossing → dead, worst", "ms", late, "max"),
        Row(group, "peak, of the limit", "%", peak, ratio=1),
        Row(group, "peak, of the limit, worst", "%", peak, "max"),
    ]


def _one_eater(record: Record, counted: tuple[str, ...]) -> tuple[float, float]:
    """Let one eat till it dies; return the milliseconds from crossing to death, and the peak in %."""
    pid = record.waiting()
    pidfd = os.pidfd_open(pid)
    try:
        time.sleep(random.uniform(0.5, 0.7))  # the supervisor's clock must not be met in step
        before = procs.resident(pid, *counted)
        record.go()
        if not select.select([pidfd], [], [], procs.TIMEOUT)[0]:
            raise procs.BenchmarkError("an eater was not ended")
        died = time.monotonic_ns()
    finally:
        os.close(pidfd)
    eaten = record.read()
    if eaten.pid != pid:
        raise procs.BenchmarkError("an eater was followed before its end was seen")
    record.clear()
    crossed = eaten.crossed(int(TERMINATE * LIMIT) - before)
    if crossed is None:
        raise procs.BenchmarkError("an eater was ended below the threshold")
    return (died - crossed) / 1e6, 100 * (before + eaten.size) / LIMIT


def thousand(lab: Lab) -> list[Row]:
    """A thousand restarts in a row, and what is left of them."""
    lab.say(f"thousand: {LONG_ROW} restarts")
    with Births(lab.place("births")) as births:
        command = [lab.first, births.path]
        with Nannyd(lab.place("row"), command, {"memory.limit": "1GiB"}) as peer:
            return long_row("thousand (restarts in a row, polled)", peer.pid, births, LONG_ROW)


def start(lab: Lab) -> list[Row]:
    """From the start of the supervisor's command to its worker's first instruction."""
    begun: dict[str, list[float]] = {}
    with Births(lab.place("births")) as births:
        command = [lab.first, births.path]
        makers: dict[str, Callable[[], Peer]] = {
            "nannyd": lambda: Nannyd(lab.place("nannyd"), command),
            "supervisord": lambda: Supervisord(lab.place("supervisord"), command),
            "circusd": lambda: Circusd(lab.place("circusd"), command),
        }
        for name, make in makers.items():
            lab.say(f"start: {name}")
            begun[name] = [_time_to_birth(make(), births) for _ in range(STARTS[name])]
    begun["Nanny"] = _nanny_starts(lab)
    return [Row("start", "command → the worker's first instruction", "ms", begun)]


def _time_to_birth(peer: Peer, births: Births) -> float:
    began = time.monotonic_ns()
    with peer:
        return (births.next().at - began) / 1e6


def _nanny_starts(lab: Lab) -> list[float]:
    lab.say("start: Nanny")
    begun = []
    for _ in range(STARTS["Nanny"]):
        with _scheduler(lab) as (address, ready), Births(lab.place("births")) as births:
            began = time.monotonic_ns()
            with Nanny(lab.place("nanny"), address, births, lab.first) as nanny:
                worker = nanny.worker()
                while (birth := births.next()).pid != worker:
                    pass  # the resource tracker
                begun.append((birth.at - began) / 1e6)
                ready.next()
    return begun


# --- Peers, started --------------------------------------------------------------------------------


def _other_peers(lab: Lab, stack: ExitStack) -> list[Peer]:
    """Start everybody but nannyd, with a worker that does nothing."""
    sleeper = ["sleep", "3600"]
    peers: list[Peer] = [
        stack.enter_context(Supervisord(lab.place("supervisord"), sleeper)),
        stack.enter_context(Circusd(lab.place("circusd"), sleeper)),
    ]
    address, ready = stack.enter_context(_scheduler(lab))
    peers.append(stack.enter_context(Nanny(lab.place("nanny"), address)))
    ready.next()
    return peers


@contextmanager
def _scheduler(lab: Lab) -> Iterator[tuple[str, Births]]:
    """Run a scheduler; give its address, and who has registered."""
    with Births(lab.place("registered")) as ready, Scheduler(lab.place("scheduler"), ready) as scheduler:
        yield scheduler.address(), ready


@contextmanager
def _nanny(lab: Lab, **options: Any) -> Iterator[tuple[Nanny, Births, Births]]:
    """Run a Nanny and its scheduler; give who is born and who has registered."""
    with (
        _scheduler(lab) as (address, ready),
        Births(lab.place("births")) as births,
        Nanny(lab.place("nanny"), address, births, lab.first, **options) as nanny,
    ):
        yield nanny, births, ready
