"""A fleet: many workers on several hosts, in one Dask cluster, under real work and in real trouble.

    python -m benchmarks.fleet [--nanny] [--workers N] [--kills N] [--cut SECONDS] [--seed N]

Workers are killed at random and by their memory, and one host is cut off from the others for a while.
Prints what became of it as JSON (`Outcome`).  The hosts are network namespaces; everything runs in a pid
namespace, so that nothing outlives the run.
"""

import argparse
import dataclasses
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import procs
from .lab import SOURCES, Lab
from .network import HERE, Network
from .peers import Nannyd, Peer, Scheduler
from .procs import BenchmarkError, Births
from .table import Row

WORKERS = 20
HOSTS = 4
KILLS = 10
CUT = 15.0
"""Seconds.  After 11 without an answer both ends give the connection up."""
MEMORY = 220 << 20
TASKS = 120
"""In one round of work."""
EATERS = 2
"""Tasks of a round that take more memory than a worker may have, until one of them was ended for it."""
PATIENCE = 60.0
ENVIRON = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",  # the least it takes
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "100",  # it is not the tasks' fault
}
INSIDE = "--inside"


@dataclasses.dataclass
class Outcome:
    """What became of the fleet."""

    workers: int
    registered: float = 0.0
    """Seconds from the commands until all have registered."""
    seconds: float = 0.0
    """Of work."""
    tasks: int = 0
    wrong: int = 0
    """Results that are missing or not what they should be."""
    again: list[float] = dataclasses.field(default_factory=list)
    """Milliseconds from each kill -9 until the worker has registered again."""
    back: float | None = None
    """Seconds from the end of the cut until all workers of that host have registered; None: they have not."""
    missing: int = 0
    """Workers that have not come back."""
    ends: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many ended how, as the cluster was told."""
    statuses: list[int | None] = dataclasses.field(default_factory=list)
    """The exit status of each supervisor after the scheduler was closed; None: it did not end."""


class DaskWorker(Peer):
    """`dask worker`, with its Nanny."""

    name = "Nanny"

    def __init__(self, directory: Path, scheduler: str, number: int) -> None:
        """Join the cluster of *scheduler*."""
        super().__init__(directory, ENVIRON)
        self._arguments = [scheduler, "--name", str(number), "--memory-limit", str(MEMORY)]

    def command(self) -> list[str | Path]:
        """Return the command line."""
        program = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads=1", "--no-dashboard"]
        return [*program, *self._arguments]

    def _newest_worker(self) -> int | None:
        found = (pid for pid in procs.children(self.pid) if "spawn_main" in procs.command_line(pid))
        return max(found, default=None)


def nannyd(directory: Path, scheduler: str, number: int) -> Nannyd:
    """Return the same worker under nannyd, with what a file of the administrator would say, and no more."""
    made = Nannyd(directory, [], environ=ENVIRON)
    made.settings = {
        "dask.scheduler": scheduler,
        "dask.name": str(number),
        "dask.nthreads": "1",
        "dask.dashboard": "false",
        "memory.limit": f"{MEMORY}B",
    }
    return made


class Fleet:
    """All workers, and who has registered when."""

    def __init__(self, network: Network, workers: list[Peer], registered: Births) -> None:
        """Listen to *registered*."""
        self.network = network
        self.workers = workers
        """Number N is on host N modulo the number of hosts."""
        self._news = threading.Condition()
        self._registered: list[tuple[int, int]] = []
        self._births = registered
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            birth = self._births.next(3600)
            with self._news:
                self._registered.append((birth.pid, birth.at))
                self._news.notify_all()

    def registered(self, number: int, after: int, timeout: float = PATIENCE) -> int | None:
        """Return when the worker *number* has registered first *after* a time; all in nanoseconds."""

        def found() -> int | None:
            return next((at for name, at in self._registered if name == number and at > after), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None, timeout)
            return found()

    def all_registered(self, numbers: range, after: int, timeout: float = PATIENCE) -> list[int]:
        """Return when each of these has registered, as far as they have in time."""
        deadline = time.monotonic() + timeout
        found = (self.registered(n, after, max(0.0, deadline - time.monotonic())) for n in numbers)
        return [at for at in found if at is not None]

    def numbers(self, host: int) -> range:
        """Return the workers of a host."""
        return range(host + 1, len(self.workers) + 1, len(self.network.hosts))


# --- The work ------------------------------------------------------------------------------------------


def produce(number: int, place: str, *, eats: bool) -> bytes:
    """Make some megabytes; who *eats* takes too much, if nobody has done so before."""
    if eats:
        try:
            Path(place, str(number)).open("x").close()
        except FileExistsError:
            eats = False
    held = []
    while eats:
        held.append(bytearray(b"x") * (1 << 20))
    return number.to_bytes(8, "big") * (1 << 14) * (1 + number % 16)


def check(data: bytes) -> int:
    """Return what stands for *data*."""
    time.sleep(0.05)
    return zlib.crc32(data)


class Work:
    """Rounds of it, and what is kept over all of them."""

    def __init__(self, client: Any, place: Path, outcome: Outcome) -> None:
        """Make what is to be kept."""
        self._client, self._place, self._outcome = client, place, outcome
        self._next = 1
        self._kept = self._map()

    def round(self) -> None:
        """Do one."""
        self._verify(self._map())

    def finish(self) -> None:
        """See that what was kept is still what it was."""
        self._verify(self._kept)

    def _map(self) -> tuple[range, list[Any]]:
        numbers = range(self._next, self._next + TASKS)
        self._next += TASKS
        eats = [number % (TASKS // EATERS) == 7 for number in numbers]
        place = str(self._place)
        made = [
            self._client.submit(produce, number, place, eats=eating, pure=False)
            for number, eating in zip(numbers, eats, strict=True)
        ]
        return numbers, made

    def _verify(self, made: tuple[range, list[Any]]) -> None:
        numbers, futures = made
        checks = self._client.map(check, futures, pure=False)
        found = self._client.gather(checks, errors="skip")
        wanted = [zlib.crc32(produce(number, "", eats=False)) for number in numbers]
        self._outcome.tasks += 2 * len(numbers)
        self._outcome.wrong += sum((Counter(wanted) - Counter(found)).values())


# --- The trouble ---------------------------------------------------------------------------------------


def trouble(fleet: Fleet, kills: int, cut: float, chance: random.Random, outcome: Outcome) -> None:
    """Kill workers, and cut one host off in the midst of it."""
    host = chance.randrange(len(fleet.network.hosts))
    others = [n for n in range(1, len(fleet.workers) + 1) if n not in fleet.numbers(host)]
    outcome.again += _kill(fleet, kills // 2, list(range(1, len(fleet.workers) + 1)), chance)
    fleet.network.hosts[host].cut_off()
    until = time.monotonic() + cut
    outcome.again += _kill(fleet, kills - kills // 2, others, chance)
    time.sleep(max(0.0, until - time.monotonic()))
    joined = time.monotonic_ns()
    fleet.network.hosts[host].connect()
    numbers = fleet.numbers(host)
    back = fleet.all_registered(numbers, joined, PATIENCE / 2)
    outcome.missing += len(numbers) - len(back)
    outcome.back = (max(back) - joined) / 1e9 if len(back) == len(numbers) else None


def _kill(fleet: Fleet, count: int, numbers: list[int], chance: random.Random) -> list[float]:
    killed = []
    for _ in range(count):
        time.sleep(chance.uniform(0.3, 1.0))
        number = chance.choice(numbers)
        killed.append((number, procs.kill(fleet.workers[number - 1].worker())))
    again = ((fleet.registered(number, at), at) for number, at in killed)
    return [(registered - at) / 1e6 for registered, at in again if registered is not None]


# --- The run -------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Outcome:
    """Run the fleet."""
    outcome = Outcome(options.workers)
    distributed: Any = importlib.import_module("distributed")
    with _fleet(options, outcome) as (fleet, address, place):
        with distributed.Client(address, set_as_default=False, timeout=30) as client:
            began = time.monotonic()
            work = Work(client, place, outcome)
            chance = random.Random(options.seed)
            troubles = threading.Thread(
                target=trouble, args=(fleet, options.kills, options.cut, chance, outcome)
            )
            troubles.start()
            while troubles.is_alive():
                work.round()
            troubles.join()
            work.round()
            work.finish()
            outcome.seconds = time.monotonic() - began
            told = (event for _, event in client.get_events("nannyd"))
            outcome.ends = dict(Counter(event["result"] for event in told))
            client.shutdown()
        outcome.statuses = [worker.ended(PATIENCE / 4) for worker in fleet.workers]
    return outcome


@contextmanager
def _fleet(options: argparse.Namespace, outcome: Outcome) -> Iterator[tuple[Fleet, str, Path]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nannyd-fleet-")))
        lab = Lab(directory)
        network = Network(HOSTS)
        stack.callback(network.close)
        registered = stack.enter_context(Births(lab.place("registered")))
        scheduler = stack.enter_context(Scheduler(lab.place("scheduler"), registered, ENVIRON, HERE))
        address = scheduler.address()
        make = DaskWorker if options.nanny else nannyd
        workers: list[Peer] = [
            make(lab.place(f"worker{n}"), address, n) for n in range(1, options.workers + 1)
        ]
        fleet = Fleet(network, workers, registered)
        began = time.monotonic_ns()
        for index, worker in enumerate(workers):
            worker.within = network.hosts[index % HOSTS].enter
            stack.enter_context(worker)
        at = fleet.all_registered(range(1, options.workers + 1), began)
        if len(at) < options.workers:
            raise BenchmarkError(f"only {len(at)} of {options.workers} workers have registered")
        outcome.registered = (max(at) - began) / 1e9
        place = lab.place("eaten")
        place.mkdir()
        yield fleet, address, place


def everything(lab: Lab) -> list[Row]:
    """Let the fleet meet the same trouble under nannyd and under `dask worker`."""
    outcomes = {}
    for column, options in (("nannyd", []), ("Nanny", ["--nanny"])):
        lab.say(f"fleet: {column}")
        command = [sys.executable, "-m", "benchmarks.fleet", *options]
        ended = subprocess.run(command, check=False, cwd=SOURCES.parent, stdout=subprocess.PIPE, text=True)
        if ended.returncode != 0:
            raise BenchmarkError(f"the fleet of {column} ended with {ended.returncode}")
        outcomes[column] = Outcome(**json.loads(ended.stdout))
    group = f"fleet ({outcomes['nannyd'].workers} workers on {HOSTS} hosts, one cut off for {CUT:g} s)"

    def row(
        label: str, unit: str, figure: Callable[[Outcome], list[float]], at_most: float | None = None
    ) -> Row:
        found = {name: figure(outcome) for name, outcome in outcomes.items()}
        return Row(group, label, unit, found, at_most=at_most)

    return [
        row("commands → all registered", "s", lambda it: [it.registered]),
        row("kill -9 → registered again, at work", "ms", lambda it: it.again),
        row("the host is back → its workers, too", "s", lambda it: [it.back] if it.back is not None else []),
        row("workers that did not come back", "count", lambda it: [it.missing], at_most=0),
        row("tasks done", "1/s", lambda it: [it.tasks / it.seconds]),
        row("results lost or wrong", "count", lambda it: [it.wrong], at_most=0),
    ]


def main() -> None:
    """Go into namespaces of our own, run, and print the outcome."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--nanny", action="store_true", help="under `dask worker`, for comparison")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--cut", type=float, default=CUT, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        enter = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter += [] if os.geteuid() == 0 else ["--map-root-user"]
        os.execvp(enter[0], [*enter, sys.executable, "-m", "benchmarks.fleet", INSIDE, *sys.argv[1:]])
    try:
        print(json.dumps(dataclasses.asdict(run(options))))
    except BenchmarkError as error:
        sys.exit(
            "\n".join([f"fleet: {error}", *getattr(error, "__notes__", [])[-2:]])
        )  # one worker's, the scheduler's


if __name__ == "__main__":
    main()
