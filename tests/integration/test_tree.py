"""Real process trees: whatever the worker forks is found, counted and killed."""

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ESCAPES, PATIENCE, end_of, eventually, printed

from nannyd.core.exits import WaitStatus
from nannyd.core.memory import Reading
from nannyd.supervisor import tree as trees
from nannyd.supervisor.poll import Sampler, breakdown
from nannyd.supervisor.spawn import Child, Program, spawn
from nannyd.supervisor.tree import Tree, become_subreaper, children, reap_orphans

RUDE = str(Path(__file__).parents[1] / "workers" / "rude.py")
MIB = 1 << 20


@pytest.fixture
def tree() -> Iterator[Tree]:
    before = set(children(os.getpid()))
    tree = Tree(lambda: before)
    yield tree
    deadline = time.monotonic() + PATIENCE
    while not tree.is_empty() and time.monotonic() < deadline:
        tree.kill()
        reap_orphans(before)
    reap_orphans(before)
    tree.close()
    become_subreaper(now=False)
    assert set(children(os.getpid())) == before


def start(*argv: str) -> Child:
    environ = {"PATH": "/usr/bin:/bin"}
    return spawn(Program(argv, environ, None, None, None, 0, stdout=1, stderr=2), None)


def rude(pids: Path, *vices: str) -> Child:
    return start(sys.executable, "-I", "-S", RUDE, "--print-pids", str(pids), *vices)


@pytest.mark.parametrize(("vices", "count"), ESCAPES)
def test_nobody_escapes(tree: Tree, tmp_path: Path, vices: list[str], count: int) -> None:
    child = rude(tmp_path / "pids", *vices)
    everyone = printed(tmp_path / "pids", count)
    assert everyone[0] == child.pid
    eventually(lambda: sorted(tree.pids()) == everyone, "everyone is known")
    assert all(tree.contains(pid) for pid in everyone)
    assert not tree.is_empty()
    tree.kill()
    assert end_of(child) == WaitStatus(signal=9)
    eventually(lambda: reap_orphans({child.pid}) or tree.is_empty(), "the tree is empty")
    eventually(tree.is_empty, "the tree is empty")
    assert tree.evidence(WaitStatus(signal=9)).counted is False


def test_orphans_of_an_exited_worker_keep_the_tree_alive_and_their_end_is_told(
    tree: Tree, tmp_path: Path
) -> None:
    child = rude(tmp_path / "pids", "--fork-and-leave", "2", "--setsid", "--exit-status", "0")
    orphans = [pid for pid in printed(tmp_path / "pids", 3) if pid != child.pid]
    assert end_of(child) == WaitStatus(code=0)
    assert sorted(tree.pids()) == orphans
    told: list[bool] = []
    tree.watch_empty(lambda: told.append(tree.is_empty()))
    assert told == []
    tree.kill()

    def reaped() -> bool:
        if reap_orphans(()):
            tree.child_reaped()
        return told[-1:] == [True]

    eventually(reaped, "it is reaped")


def test_a_signal_reaches_every_process(tree: Tree, tmp_path: Path) -> None:
    child = rude(tmp_path / "pids", "--fork-tree", "4")
    printed(tmp_path / "pids", 5)
    tree.signal(15)
    assert end_of(child) == WaitStatus(signal=15)
    eventually(lambda: reap_orphans(()) or tree.is_empty(), "the tree is empty")
    eventually(tree.is_empty, "the tree is empty")


def test_a_fork_bomb_is_killed(tree: Tree) -> None:
    """Three at a time, each of which forks its successor and dies."""
    code = "import os, time\nwhile time.monotonic() < END:\n  if os.fork(): os._exit(0)".replace(
        "END", str(time.monotonic() + 2 * PATIENCE)
    )
    bombs = [start(sys.executable, "-I", "-S", "-c", code) for _ in range(3)]
    known = {bomb.pid for bomb in bombs}
    eventually(lambda: bool(set(tree.pids()) - known), "somebody new is found")

    def killed() -> bool:
        tree.kill()
        reap_orphans(known)
        return tree.is_empty()

    eventually(killed, "it is killed")
    for bomb in bombs:
        end_of(bomb)


def test_zombies_do_not_count_and_the_known_one_is_not_stolen(tree: Tree, tmp_path: Path) -> None:
    main = start("true")
    eventually(
        lambda: Path(f"/proc/{main.pid}/stat").read_text().split()[2] == "Z", "the main thread is gone"
    )
    other = rude(tmp_path / "pids", "--double-fork", "--exit-status", "0")
    (orphan,) = (pid for pid in printed(tmp_path / "pids", 2) if pid != other.pid)
    end_of(other)
    tree.kill()
    eventually(tree.is_empty, "the tree is empty")
    assert not Path(f"/proc/{orphan}/cmdline").read_bytes()
    assert reap_orphans({main.pid})
    assert not Path(f"/proc/{orphan}").exists()
    assert not reap_orphans({main.pid})
    assert end_of(main) == WaitStatus(code=0)


def test_helpers_and_what_they_start_are_no_members(tmp_path: Path) -> None:
    helper = start("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    eventually(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it has printed its pid"
    )
    below = int((tmp_path / "pid").read_text())
    others = set(children(os.getpid()))
    tree = Tree(lambda: others)
    try:
        assert tree.pids() == []
        assert tree.is_empty()
        assert tree.contains(helper.pid) is False
        assert tree.contains(below) is False
        tree.kill()
        assert helper.reap() is None
    finally:
        everyone = Tree(lambda: others - {helper.pid})
        everyone.kill()
        end_of(helper)
        eventually(lambda: reap_orphans(others) or everyone.is_empty(), "the tree is empty")
        reap_orphans(others)
        become_subreaper(now=False)


def test_strangers_are_no_members_and_of_the_gone_nobody_can_say(tree: Tree) -> None:
    child = start("true")
    end_of(child)
    assert tree.contains(child.pid) is None
    assert tree.contains(1) is False
    assert tree.contains(os.getppid()) is False


def test_without_the_kernels_lists_of_children_psutil_finds_them(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trees, "_LISTED", False)
    child = rude(tmp_path / "pids", "--fork-tree", "3")
    everyone = printed(tmp_path / "pids", 4)
    assert sorted(tree.pids()) == everyone
    assert not tree.is_empty()
    tree.kill()
    end_of(child)
    eventually(lambda: reap_orphans(()) or tree.is_empty(), "the tree is empty")
    eventually(tree.is_empty, "the tree is empty")


def test_memory_of_the_tree_is_summed_and_shared_pages_are_confirmed_once(tree: Tree, tmp_path: Path) -> None:
    child = rude(tmp_path / "pids", "--share", "64M", "--children", "3")
    everyone = printed(tmp_path / "pids", 4)
    eventually(lambda: sorted(tree.pids()) == everyone, "everyone is known")
    sampler = Sampler()

    def used() -> Reading:
        reading = sampler.reading(everyone)
        assert reading is not None
        return reading

    eventually(lambda: used().working_set > 4 * 64 * MIB, "all have eaten")
    reading = used()
    confirmed = sampler.confirmed(everyone, reading)
    assert 64 * MIB <= confirmed.working_set < 128 * MIB
    assert confirmed.anon is not None
    assert confirmed.swap == reading.swap == 0
    largest = breakdown(everyone, 2)
    assert len(largest) == 2
    assert {usage.pid for usage in largest} <= set(everyone)
    assert all(usage.comm.startswith("python") and usage.size > 64 * MIB for usage in largest)
    tree.kill()
    select.select([child.pidfd], [], [])
    assert sampler.reading([child.pid]) is None  # a zombie
    end_of(child)
    assert sampler.reading([child.pid]) is None
    assert breakdown([child.pid], 1) == []
