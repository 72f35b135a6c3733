"""Dask: nannyd and `distributed.Nanny` side by side, each with a worker in a cluster of its own."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Self

from . import procs
from .lab import SOURCES, Lab
from .peers import WORKER_LIMIT, Nanny, Nannyd, Scheduler
from .procs import BenchmarkError, Births
from .table import Row

GROUP = "dask"
SETTLE = 4.0
IDLE = 20.0
STARTS = 4
KILLS = 9
RESTARTS = 5
HUNG_TIMEOUT = 60.0
GONE_TIMEOUT = 10.0
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}  # the scheduler makes 5 s of it, its least

Supervisor = Nannyd | Nanny
Make = Callable[[str], Supervisor]


def everything(lab: Lab) -> list[Row]:
    """Make the rows."""
    lab.say("dask: start")
    rows = _starts(lab)
    with ExitStack() as stack:
        clusters = {name: stack.enter_context(Cluster(lab, make)) for name, make in _makers(lab).items()}
        lab.say(f"dask: {IDLE:g} s of nothing")
        rows = [*_at_rest(lab, clusters), *rows]
        for name, measure in (("kill", _kills), ("restart", _restarts), ("hung", _hung), ("left", _left)):
            lab.say(f"dask: {name}")
            rows += measure(clusters)
    return rows


def _makers(lab: Lab, **settings: str) -> dict[str, Make]:
    def nannyd(address: str) -> Nannyd:
        ours = {"dask.scheduler": address, "dask.nthreads": "1", "dask.dashboard": "false"}
        ours |= {"agent.idle-timeout": "1s", "memory.limit": WORKER_LIMIT, **settings}
        return Nannyd(lab.place("nannyd"), [], ours)

    return {"nannyd": nannyd, "Nanny": lambda address: Nanny(lab.place("nanny"), address)}


class Cluster:
    """A scheduler with one worker, its nanny, and a client."""

    def __init__(self, lab: Lab, make: Make) -> None:
        """Let *make* say who supervises the worker."""
        self._stack = ExitStack()
        self._lab, self._make = lab, make

    def __enter__(self) -> Self:
        lab = self._lab
        with ExitStack() as stack:
            self._registered = stack.enter_context(Births(lab.place("registered")))
            scheduler = stack.enter_context(Scheduler(lab.place("scheduler"), self._registered, TTL))
            address = scheduler.address()
            self.supervisor = stack.enter_context(self._make(address))
            self._client = stack.enter_context(_client(address))
            self.registered()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def registered(self, timeout: float = procs.TIMEOUT) -> int:
        """Return when the next worker has registered, in nanoseconds."""
        return self._registered.next(timeout).at

    def ask(self, what: str) -> Any:
        """Let the client do something (see dask_peer.py), and return what it answers."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(f"{what}\n")
        self._client.stdin.flush()
        answer = self._client.stdout.readline()
        if not answer:
            raise BenchmarkError(f"the client has ended at {what}")
        return json.loads(answer)

    def rest(self) -> None:
        """Wait until only what is always there is there."""
        procs.until(lambda: len(self.supervisor.own()) <= self.supervisor.at_rest, "the agent to end")


def _client(address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(SOURCES / "dask_peer.py"), "client", address]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _starts(lab: Lab) -> list[Row]:
    found: dict[str, list[float]] = {"nannyd": [], "Nanny": []}
    with Births(lab.place("registered")) as registered:
        for _ in range(STARTS):
            for name, make in _makers(lab).items():
                with Scheduler(lab.place("scheduler"), registered) as scheduler:
                    address = scheduler.address()
                    began = time.monotonic_ns()
                    with make(address):
                        found[name].append((registered.next().at - began) / 1e6)
    return [Row(GROUP, "command → worker registered", "ms", found)]


def _at_rest(lab: Lab, clusters: dict[str, Cluster]) -> list[Row]:
    """Tell what the nanny's side is and does while there is nothing to do."""
    free = _makers(lab, **{"memory.limit": "none"})["nannyd"]
    with Cluster(lab, free) as unlimited:
        time.sleep(SETTLE)
        own = {name: cluster.supervisor.own() for name, cluster in clusters.items()}
        held = {name: procs.memory(pids) for name, pids in own.items()}
        before = {name: procs.activity(pids) for name, pids in own.items()}
        idle = unlimited.supervisor.own()
        before_unlimited = procs.activity(idle)
        time.sleep(IDLE)
        woken = {name: procs.activity(pids).since(before[name])[0] for name, pids in own.items()}
        unpolled = procs.activity(idle).since(before_unlimited)[0]
    return [
        Row(GROUP, "nanny's side: RSS", "MiB", {n: [m.rss] for n, m in held.items()}, ratio=0.4),
        Row(GROUP, "nanny's side: PSS", "MiB", {n: [m.pss] for n, m in held.items()}, ratio=0.4),
        Row(GROUP, "nanny's side: processes", "count", {n: [len(p)] for n, p in own.items()}, at_most=1),
        Row(
            GROUP,
            "wake-ups, without a limit",
            "1/s",
            {"nannyd": [unpolled], "Nanny": [woken["Nanny"]]},
            at_most=0.2,
        ),
        Row(GROUP, "wake-ups, limit polled", "1/s", {n: [w] for n, w in woken.items()}, at_most=10),
    ]


def _kills(clusters: dict[str, Cluster]) -> list[Row]:
    found: dict[str, list[float]] = {name: [] for name in clusters}
    for _ in range(KILLS):
        for name, cluster in clusters.items():
            # A clock of the supervisor's own must not be met in step.
            time.sleep(cluster.supervisor.uptime * random.uniform(1, 1.5))
            killed = procs.kill(cluster.supervisor.worker())
            found[name].append((cluster.registered() - killed) / 1e6)
    return [Row(GROUP, "kill -9 → registered again", "ms", found, ratio=0.85)]


def _restarts(clusters: dict[str, Cluster]) -> list[Row]:
    rows = []
    for label, at_rest in (("the agent at rest", True), ("twice in a row", False)):
        found: dict[str, list[float]] = {name: [] for name in clusters}
        for _ in range(RESTARTS):
            for name, cluster in clusters.items():
                if at_rest:
                    cluster.rest()
                else:
                    _restart(cluster)
                found[name].append(_restart(cluster))
        rows.append(Row(GROUP, f"Client.restart(), {label}", "ms", found, ratio=1))
    return rows


def _restart(cluster: Cluster) -> float:
    seconds = float(cluster.ask("restart"))
    cluster.registered()
    return seconds * 1000


def _hung(clusters: dict[str, Cluster]) -> list[Row]:
    """A task hangs the worker's event loop: the scheduler misses its heartbeat and wants another worker."""
    took, leaked = {}, {}
    for name, cluster in clusters.items():
        cluster.rest()
        hung = cluster.supervisor.worker()
        began = time.monotonic_ns()
        cluster.ask("hang")
        took[name] = [(cluster.registered(HUNG_TIMEOUT) - began) / 1e9]
        leaked[name] = [float(_survives(hung))]
    return [
        Row(GROUP, "hung event loop → another worker registered", "s", took),
        Row(GROUP, "hung workers left", "count", leaked, at_most=0),
    ]


def _left(clusters: dict[str, Cluster]) -> list[Row]:
    """A task starts a process, and its worker ends, by SIGKILL and by Client.restart()."""

    def kill(cluster: Cluster) -> None:
        procs.kill(cluster.supervisor.worker())
        cluster.registered()

    rows = []
    for label, end in (("kill -9", kill), ("Client.restart()", _restart)):
        found = {}
        for name, cluster in clusters.items():
            started = int(cluster.ask("start"))
            end(cluster)
            found[name] = [float(_survives(started))]
        rows.append(Row(GROUP, f"processes of a task left after {label}", "count", found, at_most=0))
    return rows


def _survives(pid: int) -> bool:
    """Say whether *pid* is still there after a while; end it then."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            procs.until(lambda: procs.is_gone(pid), "its end", GONE_TIMEOUT)
        except BenchmarkError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
        finally:
            os.close(pidfd)
    return False
