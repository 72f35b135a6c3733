"""Leaves and spawning for real: as nannyd's user, in a unit delegated as nannyd's is.

Each test starts this file as the main process of such a unit; what it asserts there is what is tested.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nannyd.core.exits import Evidence, WaitStatus
from nannyd.supervisor.delegation import Delegation
from nannyd.supervisor.spawn import (
    Child,
    Program,
    can_be_born_in_cgroup,
    spawn,
    spawn_by_helper,
    spawn_directly,
)

if TYPE_CHECKING:
    from nannyd.supervisor.cgroup import Leaf

RUDE = str(Path(__file__).parents[2] / "workers" / "rude.py")
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


def delegation() -> Delegation:
    found, reason = Delegation.find()
    assert found is not None, reason
    return found


def program(*argv: str, nice: int | None = None) -> Program:
    return Program(argv, {"PATH": "/usr/bin:/bin"}, None, None, nice, 0, stdout=1, stderr=2)


def rude(*vices: str) -> Program:
    return program(sys.executable, "-I", "-S", RUDE, *vices)


def text(*path: object) -> str:
    """Return what the file at the joined *path* says."""
    return Path(*map(str, path)).read_text().strip()


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def own_cgroup() -> str:
    return text("/proc/self/cgroup").removeprefix("0::")


def size_of(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except FileNotFoundError:
        return None


def file_of(leaf: Leaf, name: str) -> Path:
    return CGROUPS / leaf.path[1:] / name


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - most conditions ring no bell
            await asyncio.sleep(0.005)


async def end(child: Child, leaf: Leaf) -> tuple[WaitStatus, Evidence]:
    """Return how *child* ended once its leaf is empty, and give both back."""
    empty = asyncio.Event()
    leaf.watch_empty(lambda: empty.set() if leaf.is_empty() else None)
    async with asyncio.timeout(30):
        await empty.wait()
    await until(child.reap)
    status = child.reap()
    assert status is not None
    evidence = leaf.evidence(status)
    child.close()
    leaf.close()
    assert size_of(file_of(leaf, "cgroup.procs")) is None
    return status, evidence


async def life() -> dict[str, Any]:
    place = delegation()
    assert place.has_memory
    assert own_cgroup() == f"{place.path}/supervisor"
    before = descriptors()
    for number in (1, 2):
        leaf = place.leaf(1)  # the number is free again
        assert leaf.path == f"{place.path}/worker-1"
        leaf.set_limits(256 * MIB, 0)
        child = spawn(rude("--fork-tree", "6", "--double-fork", "--ignore-sigterm"), leaf)
        await until(lambda: len(leaf.pids()) == 8)  # noqa: B023
        assert all(leaf.contains(pid) for pid in leaf.pids())
        assert leaf.contains(os.getpid()) is False
        assert leaf.contains(child.pid) is True
        assert not leaf.is_empty()
        assert leaf.reading().working_set > MIB
        if number == 1:
            leaf.signal(15)
            await asyncio.sleep(0.1)
            assert len(leaf.pids()) == 8
            leaf.kill()
        else:
            leaf.signal(9)
        status, evidence = await end(child, leaf)
        assert (evidence.memory_peak or 0) > MIB
        assert (status, replace(evidence, memory_peak=None)) == (
            WaitStatus(signal=9),
            Evidence(WaitStatus(signal=9)),
        )
    assert descriptors() == before
    return {}


async def leftovers() -> dict[str, Any]:
    place = delegation()
    leaf = place.leaf(5)
    child = spawn(rude(), leaf)
    leaf.close()  # it cannot be removed: as if this were another life
    again = delegation()
    (left,) = again.leftovers()
    assert left.path == f"{place.path}/worker-5"
    assert left.pids() == [child.pid]
    left.kill()
    await end(child, left)
    assert again.leftovers() == []
    place.leaf(6).close()
    return {}


async def tripwire() -> dict[str, Any]:
    leaf = delegation().leaf(1)
    leaf.set_limits(160 * MIB, 0)
    leaf.set_high(60 * MIB)
    rung = asyncio.Event()
    leaf.watch_memory(rung.set)
    child = spawn(rude("--eat", "100M"), leaf)
    await rung.wait()
    seen = leaf.reading().working_set
    assert 50 * MIB < seen < 64 * MIB
    assert leaf.events()["high"] > 0
    began = time.monotonic()
    leaf.set_high(None)
    lifted = time.monotonic() - began
    await until(lambda: leaf.reading().working_set > 100 * MIB)
    child.signal(15)
    status, evidence = await end(child, leaf)
    assert status == WaitStatus(signal=15)
    assert not evidence.oom_kill
    return {"seen MiB": seen / MIB, "lifted ms": lifted * 1000}


async def page_cache() -> dict[str, Any]:
    """Three times its limit of page cache: the wire rings, and rings less when nobody looks."""
    leaf = delegation().leaf(1)
    leaf.set_limits(128 * MIB, 0)
    leaf.set_high(96 * MIB)
    calls: list[int] = []

    def touched() -> None:
        calls.append(leaf.reading().working_set)
        leaf.look_away()
        asyncio.get_running_loop().call_later(0.2, leaf.look_again)

    leaf.watch_memory(touched)
    began = time.monotonic()
    file = "/var/tmp/cache"
    child = spawn(rude("--page-cache", "384M", "--file", file), leaf)
    await until(lambda: size_of(file) == 384 * MIB)
    seconds = time.monotonic() - began
    assert calls
    assert max(calls) < 64 * MIB
    assert len(calls) <= seconds / 0.2 + 2
    high = leaf.events()["high"]
    # Lowering below the usage is the reclaimer's work, not this thread's.
    leaf.look_away()
    usage = int(text(file_of(leaf, "memory.current")))
    began = time.thread_time()
    leaf.set_high(24 * MIB)
    lowered = time.thread_time() - began
    assert lowered < 0.1
    await until(lambda: threading.active_count() == 1)
    assert text(file_of(leaf, "memory.high")) == f"{24 * MIB}"
    child.signal(15)
    assert not (await end(child, leaf))[1].oom_kill
    os.unlink(file)  # noqa: PTH108
    figures = {"calls": len(calls), "high": high, "seconds": seconds}
    return {**figures, "usage MiB": usage / MIB, "lowered ms": lowered * 1000}


async def change_of_mind() -> dict[str, Any]:
    """The wire is lowered and lifted at once, again and again: what was said last is in force."""
    leaf = delegation().leaf(1)
    leaf.set_limits(None, 0)
    child = spawn(rude("--eat", "40M"), leaf)
    await until(lambda: leaf.reading().working_set > 40 * MIB)
    for _ in range(50):
        leaf.set_high(30 * MIB)
        leaf.set_high(None)
        await until(lambda: threading.active_count() == 1)
        assert text(file_of(leaf, "memory.high")) == "max"
    leaf.kill()
    await end(child, leaf)
    return {}


async def own_wall() -> dict[str, Any]:
    leaf = delegation().leaf(1)
    leaf.set_limits(40 * MIB, 0)
    child = spawn(rude("--fork-and-leave", "2", "--eat", "100M"), leaf)
    status, evidence = await end(child, leaf)
    assert status == WaitStatus(signal=9)
    assert (evidence.oom_kill, evidence.oom_own, evidence.oom_ancestor) == (True, True, None)
    return {}


async def wall_of_a_part() -> dict[str, Any]:
    """The worker made cgroups in its leaf, with a limit that one of its parts meets."""
    leaf = delegation().leaf(1)
    leaf.set_limits(400 * MIB, 0)
    script = f"""
        cd {CGROUPS}{leaf.path} && mkdir main part part/empty && echo 0 >main/cgroup.procs &&
        echo +memory >cgroup.subtree_control && echo {30 * MIB} >part/memory.max || exit 9
        (echo 0 >part/cgroup.procs; exec {sys.executable} -I -S {RUDE} --eat 100M) &
        wait; sleep 60
    """
    child = spawn(program("sh", "-c", script), leaf)
    await until(lambda: leaf.events()["oom_kill"] > 0)
    await until(lambda: len(leaf.pids()) == 2)
    assert leaf.contains(child.pid)
    leaf.kill()
    _, evidence = await end(child, leaf)
    assert (evidence.oom_kill, evidence.oom_own, evidence.oom_ancestor) == (True, True, None)
    return {}


async def wall_of_the_unit() -> dict[str, Any]:
    place = delegation()
    leaf = place.leaf(1)
    leaf.set_limits(None, 0)
    child = spawn(rude("--eat", "400M"), leaf)
    status, evidence = await end(child, leaf)
    assert status == WaitStatus(signal=9)
    assert (evidence.oom_kill, evidence.oom_own, evidence.oom_ancestor) == (True, False, place.path)
    return {}


async def spawning() -> dict[str, Any]:
    """Born in its leaf where that is possible, else entering it; oom_score_adj is the worker's own."""
    place = delegation()
    for nice in (None, 5):
        leaf = place.leaf(1)
        child = spawn(program("sleep", "60", nice=nice), leaf)
        assert text("/proc", child.pid, "oom_score_adj") == "0"
        assert text("/proc", child.pid, "cgroup") == f"0::{leaf.path}"
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == (nice or 0)
        assert text("/proc/self/oom_score_adj") == "-500"
        # The kernel lets us go on when nothing can fail any more, a moment before it is done.
        await until(lambda: text("/proc", child.pid, "comm") == "sleep")  # noqa: B023
        child.signal(15)
        assert (await end(child, leaf))[0] == WaitStatus(signal=15)
    return {}


async def fifty_spawns() -> dict[str, Any]:
    assert can_be_born_in_cgroup()
    place, before, figures = delegation(), descriptors(), dict[str, Any]()
    for way in (spawn_directly, spawn_by_helper):
        times = []
        for _ in range(50):
            leaf = place.leaf(1)
            began = time.monotonic()
            child = way(program("sleep", "60"), "/bin/sleep", leaf)
            times.append((time.monotonic() - began) * 1000)
            assert text("/proc", child.pid, "oom_score_adj") == "0"
            assert leaf.contains(child.pid)
            leaf.kill()
            await end(child, leaf)
        figures[f"{way.__name__} ms"] = statistics.median(times)
    assert descriptors() == before
    return figures


async def refused() -> dict[str, Any]:
    """Nothing is taken over."""
    before = own_cgroup()
    found, reason = Delegation.find()
    assert found is None
    assert "was not delegated" in reason
    assert own_cgroup() == before
    return {}


PROBES: dict[str, Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = {
    "life": life,
    "leftovers": leftovers,
    "tripwire": tripwire,
    "page-cache": page_cache,
    "change-of-mind": change_of_mind,
    "own-wall": own_wall,
    "wall-of-a-part": wall_of_a_part,
    "wall-of-the-unit": wall_of_the_unit,
    "spawning": spawning,
    "fifty-spawns": fifty_spawns,
    "refused": refused,
}

Probe = Callable[..., dict[str, Any]]

USER = ("User=_nannyd", "OOMScoreAdjust=-500")
DELEGATED = (*USER, "Delegate=memory pids", "OOMPolicy=continue")
IN_SUPERVISOR = (*DELEGATED, "DelegateSubgroup=supervisor")


@pytest.fixture
def probe(unit: Any, journal: Any) -> Probe:
    """Return a function that runs a probe as the main process of a unit with these settings."""

    def run(name: str, *settings: str) -> dict[str, Any]:
        lines = ["[Service]", "Type=oneshot", f"ExecStart=/usr/bin/python3 -B {__file__} {name}", *settings]
        unit("edges.service", "\n".join([*lines, ""]))
        found: dict[str, Any] = json.loads(journal.wait_for("{", "edges.service"))
        print(name, found)
        return found

    return run


@pytest.mark.parametrize(
    "name",
    [
        "life",
        "leftovers",
        "tripwire",
        "page-cache",
        "change-of-mind",
        "own-wall",
        "wall-of-a-part",
        "spawning",
        "fifty-spawns",
    ],
)
def test_in_a_unit_like_nannyds(probe: Probe, name: str) -> None:
    probe(name, *IN_SUPERVISOR)


def test_an_older_systemd_starts_the_supervisor_in_the_unit_itself(probe: Probe) -> None:
    probe("life", *DELEGATED)


def test_where_clone3_is_forbidden_the_helper_enters_the_leaf(probe: Probe) -> None:
    probe("spawning", *IN_SUPERVISOR, "RestrictNamespaces=yes", "NoNewPrivileges=yes")


def test_the_unit_may_be_hardened(probe: Probe) -> None:
    hardening = (
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectKernelTunables=yes",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=@system-service",
        "SystemCallArchitectures=native",
    )
    probe("spawning", *IN_SUPERVISOR, *hardening)


def test_the_wall_of_the_unit_is_named_as_the_ancestors(probe: Probe) -> None:
    probe("wall-of-the-unit", *IN_SUPERVISOR, "MemoryMax=150M", "MemorySwapMax=0")


def test_root_uses_a_delegated_unit_and_no_other(probe: Probe) -> None:
    probe("refused")
    probe("life", "Delegate=memory pids", "DelegateSubgroup=supervisor")


def test_a_user_without_delegation_takes_nothing_over(probe: Probe) -> None:
    probe("refused", *USER)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(PROBES[sys.argv[1]]())), flush=True)
