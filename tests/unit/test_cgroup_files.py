"""The kernel's texts, and whom a delegation is found for, on trees made of ordinary files."""

import os
from pathlib import Path

import pytest

from nannyd.core.exits import WaitStatus
from nannyd.core.memory import Reading
from nannyd.core.procfs import Mount
from nannyd.supervisor.cgroup import Leaf, is_in_leaf
from nannyd.supervisor.delegation import Delegation, locate
from nannyd.supervisor.poll import parse_status, parse_vmstat, size

UNIT = "/system.slice/system-nannyd.slice/nannyd@w.service"

EVENTS = "low 0\nhigh 3\nmax 0\noom {oom}\noom_kill {kill}\noom_group_kill 0\n"

STAT = """\
anon 104857600
file 73400320
kernel 2097152
kernel_stack 65536
shmem 10485760
inactive_anon 115343360
active_anon 0
inactive_file 41943040
active_file 20971520
slab_reclaimable 1048576
slab_unreclaimable 524288
"""


@pytest.mark.parametrize(
    ("path", "mounts", "directory"),
    [
        ("/", [("/", "/sys/fs/cgroup")], "/sys/fs/cgroup"),
        ("/a/b", [("/", "/sys/fs/cgroup")], "/sys/fs/cgroup/a/b"),
        ("/docker/1/x", [("/docker/1", "/sys/fs/cgroup")], "/sys/fs/cgroup/x"),
        ("/docker/1", [("/docker/1", "/sys/fs/cgroup")], "/sys/fs/cgroup"),
        ("/docker/12", [("/docker/1", "/sys/fs/cgroup")], None),
        ("/docker/12", [("/docker/1", "/here"), ("/docker/12", "/there")], "/there"),
        ("/../outside", [("/", "/sys/fs/cgroup")], None),
        ("/a", [], None),
    ],
)
def test_where_a_cgroup_is_mounted(path: str, mounts: list[tuple[str, str]], directory: str | None) -> None:
    mounted = [Mount(root, point, "cgroup2", frozenset()) for root, point in mounts]
    assert locate(path, mounted) == (None if directory is None else Path(directory))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/n.slice/n@w.service/worker-7", True),
        ("/n.slice/n@w.service/worker-7/of its own", True),
        ("/n.slice/n@x.service/worker-1", True),
        ("/n.slice/n@w.service/supervisor", False),
        ("/n.slice/n@w.service/run-1", False),
        ("/n.slice/worker-1.service", False),
        ("/n.slice/n@w.service", False),
        ("/", False),
    ],
)
def test_who_is_in_a_workers_leaf(path: str, inside: bool) -> None:  # noqa: FBT001
    assert is_in_leaf(path, "/n.slice/n@w.service") is inside
    # A worker that runs a nannyd of its own.
    outer = "/n@outer.service/worker-3"
    assert is_in_leaf(outer + path, f"{outer}/n.slice/n@w.service") is inside


def test_fields_of_a_process() -> None:
    fields = parse_status("Name:\ta: b\nState:\tZ (zombie)\nRssAnon:\t    1024 kB\n")
    assert fields["Name"] == "a: b"
    assert size(fields, "RssAnon") == 1 << 20
    assert size(fields, "RssShmem") == 0


def test_oom_kills_of_the_host() -> None:
    assert parse_vmstat("pgfault 5\noom_kill 7\n") == 7
    assert parse_vmstat("pgfault 5\n") is None


class FakeTree:
    """A cgroup file system, /proc/self and the extended attributes, of files."""

    def __init__(self, base: Path, own: str) -> None:
        self.mount, self.proc, self.own = base / "cgroup", base / "proc", own
        self.marks: set[tuple[Path, str]] = set()
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(f"0::{own}\n")
        (self.proc / "mountinfo").write_text(f"31 23 0:28 / {self.mount} rw - cgroup2 cgroup2 rw\n")
        directory = self.mount
        self.add(directory)
        for part in own.split("/")[1:]:
            directory /= part
            self.add(directory)

    def add(self, directory: Path, controllers: str = "cpu memory pids") -> None:
        directory.mkdir()
        (directory / "cgroup.procs").touch()
        (directory / "cgroup.subtree_control").touch()
        (directory / "cgroup.controllers").write_text(f"{controllers}\n")

    def directory(self, path: str) -> Path:
        return self.mount / path.lstrip("/")

    def mark(self, path: str, name: str = "user.delegate") -> None:
        self.marks.add((self.directory(path), name))

    def write(self, path: Path, text: str, directory: int | None = None) -> None:
        assert directory is None
        path.write_text(text.replace("+", ""))  # one reads what is enabled

    def getxattr(self, path: Path, name: str) -> bytes:
        if (path, name) in self.marks:
            return b"1"
        raise OSError(61, "no data")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeTree:
    tree = FakeTree(tmp_path, request.param)
    monkeypatch.setattr(os, "getxattr", tree.getxattr)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("nannyd.supervisor.delegation.write", tree.write)
    return tree


in_supervisor = pytest.mark.parametrize("fake", [f"{UNIT}/supervisor"], indirect=True)
in_unit = pytest.mark.parametrize("fake", [UNIT], indirect=True)


@in_supervisor
@pytest.mark.parametrize("name", ["user.delegate", "trusted.delegate"])
def test_a_delegated_unit_is_used_and_its_controllers_enabled(fake: FakeTree, name: str) -> None:
    fake.mark(UNIT, name)
    delegation, reason = Delegation.find(fake.proc)
    assert delegation is not None
    assert (delegation.path, reason, delegation.has_memory) == (UNIT, "", True)
    assert (fake.directory(UNIT) / "cgroup.subtree_control").read_text() == "memory pids"
    assert (fake.directory(fake.own) / "cgroup.procs").read_text() == ""


@in_supervisor
def test_controllers_that_are_not_offered_are_not_asked_for(fake: FakeTree) -> None:
    fake.mark(UNIT)
    (fake.directory(UNIT) / "cgroup.controllers").write_text("cpu pids\n")
    delegation, _ = Delegation.find(fake.proc)
    assert delegation is not None
    assert not delegation.has_memory
    assert (fake.directory(UNIT) / "cgroup.subtree_control").read_text() == "pids"


@in_unit
def test_a_supervisor_in_the_unit_itself_moves_out_of_the_way(fake: FakeTree) -> None:
    fake.mark(UNIT)
    delegation, _ = Delegation.find(fake.proc)
    assert delegation is not None
    assert delegation.path == UNIT
    assert (fake.directory(UNIT) / "supervisor" / "cgroup.procs").read_text() == "0"


@in_unit
def test_root_takes_nothing_over_that_was_not_delegated(fake: FakeTree) -> None:
    delegation, reason = Delegation.find(fake.proc)
    assert delegation is None
    assert "was not delegated" in reason
    assert not (fake.directory(UNIT) / "supervisor").exists()


@in_supervisor
def test_root_does_not_trust_the_name_supervisor(fake: FakeTree) -> None:
    assert Delegation.find(fake.proc)[0] is None


@in_supervisor
def test_a_user_who_may_write_beside_it_was_given_the_unit(
    fake: FakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    delegation, _ = Delegation.find(fake.proc)
    assert delegation is not None
    assert delegation.path == UNIT


@in_unit
def test_what_stands_against_it_is_said_and_undone(fake: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.mark(UNIT)
    procs = fake.directory(UNIT) / "cgroup.procs"

    def refuse(path: Path, text: str) -> None:
        if text.startswith("+"):
            raise OSError(16, "busy")
        fake.write(path, text)
        if path == procs:
            (fake.directory(UNIT) / "supervisor" / "cgroup.procs").unlink()  # which rmdir(2) does not mind

    monkeypatch.setattr("nannyd.supervisor.delegation.write", refuse)
    delegation, reason = Delegation.find(fake.proc)
    assert delegation is None
    assert reason == f"{UNIT} cannot be used: other processes live in it"
    assert procs.read_text() == "0"
    assert not (fake.directory(UNIT) / "supervisor").exists()


@in_supervisor
def test_without_version_2_the_reason_is_given(fake: FakeTree) -> None:
    (fake.proc / "cgroup").write_text("4:memory:/\n")
    assert Delegation.find(fake.proc) == (None, "no cgroup v2 file system is mounted here")


@in_supervisor
def test_leaves_are_numbered_and_never_used_twice(fake: FakeTree) -> None:
    fake.mark(UNIT)
    unit = fake.directory(UNIT)
    (unit / "worker-3").mkdir()
    delegation, _ = Delegation.find(fake.proc)
    assert delegation is not None
    (old,) = delegation.leftovers()
    assert old.path == f"{UNIT}/worker-3"
    first, second = delegation.leaf(3), delegation.leaf(3)
    assert (first.path, second.path) == (f"{UNIT}/worker-4", f"{UNIT}/worker-5")
    for leaf in (old, first, second):
        leaf.close()
    assert not list(unit.glob("worker-*"))


@in_supervisor
def test_a_leaf_that_somebody_still_lives_in_is_removed_later(fake: FakeTree) -> None:
    fake.mark(UNIT)
    delegation, _ = Delegation.find(fake.proc)
    assert delegation is not None
    leaf = delegation.leaf(1)
    occupied = fake.directory(leaf.path) / "somebody"
    occupied.touch()  # rmdir fails, as with a populated cgroup
    leaf.close()
    assert occupied.exists()
    occupied.unlink()
    delegation.leaf(2).close()
    assert not list(fake.directory(UNIT).glob("worker-*"))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return a unit with a leaf of files, worker-1."""
    leaf = tmp_path / "unit" / "worker-1"
    leaf.mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "unit", leaf):
        (directory / "memory.events.local").write_text(EVENTS.format(oom=2, kill=2))
    (leaf / "memory.current").write_text("188743680\n")
    (leaf / "memory.swap.current").write_text("4096\n")
    (leaf / "memory.stat").write_text(STAT)
    (leaf / "memory.events").write_text(EVENTS.format(oom=0, kill=0))
    (leaf / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (leaf / "cgroup.procs").write_text("11\n12\n0\n")
    for name in ("memory.max", "memory.high", "memory.oom.group", "memory.swap.max"):
        (leaf / name).touch()
    return tmp_path / "unit"


def leaf_of(unit: Path) -> Leaf:
    return Leaf(unit / "worker-1", "/slice/unit/worker-1", [unit, unit.parent], lambda _: None)


def test_a_reading_of_the_leaf_leaves_out_what_the_kernel_could_drop(unit: Path) -> None:
    leaf = leaf_of(unit)
    assert leaf.reading() == Reading(
        working_set=188743680 - 41943040 - 20971520 - 1048576,
        anon=104857600,
        shmem=10485760,
        kernel=2097152,
        swap=4096,
        file=62914560,
    )
    (unit / "worker-1" / "memory.swap.current").unlink()
    assert leaf.reading().swap is None
    leaf.close()


def test_processes_of_the_leaf_and_below(unit: Path) -> None:
    below = unit / "worker-1" / "sub" / "subsub"
    below.mkdir(parents=True)
    (below / "cgroup.procs").write_text("13\n")
    leaf = leaf_of(unit)
    assert leaf.pids() == [11, 12, 13]
    assert not leaf.is_empty()
    (unit / "worker-1" / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert leaf.is_empty()
    assert leaf.contains(os.getpid()) is False
    assert leaf.contains(1 << 30) is None
    leaf.close()


def test_limits_as_the_kernel_wants_them(unit: Path) -> None:
    leaf = leaf_of(unit)
    leaf.set_limits(1 << 30, 0)
    leaf.set_high(None)
    files = {name: (unit / "worker-1" / f"memory.{name}").read_text() for name in ("max", "swap.max", "high")}
    assert files == {"max": "1073741824", "swap.max": "0", "high": "max"}
    assert (unit / "worker-1" / "memory.oom.group").read_text() == "1"
    leaf.close()


KILLED = WaitStatus(signal=9)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        (None, "", (False, False, None)),
        ("worker-1/memory.events", EVENTS.format(oom=1, kill=3), (True, True, None)),
        ("worker-1/memory.events", EVENTS.format(oom=0, kill=1), (True, False, None)),
        ("memory.events.local", EVENTS.format(oom=3, kill=2), (False, False, "/slice/unit")),
        ("../memory.events.local", EVENTS.format(oom=3, kill=2), (False, False, "/slice")),
        ("memory.events.local", EVENTS.format(oom=2, kill=9), (False, False, None)),
    ],
)
def test_evidence_is_what_changed_during_this_life(
    unit: Path, name: str | None, text: str, found: tuple[bool, bool, str | None]
) -> None:
    leaf = leaf_of(unit)
    if name is not None:
        (unit / name).write_text(text)
    evidence = leaf.evidence(KILLED)
    assert (evidence.oom_kill, evidence.oom_own, evidence.oom_ancestor) == found
    assert evidence.counted
    assert not evidence.oomd
    leaf.close()


def test_a_leaf_without_the_memory_controller_counts_nothing(unit: Path) -> None:
    (unit / "worker-1" / "memory.events").unlink()
    leaf = leaf_of(unit)
    assert not leaf.evidence(KILLED).counted
    leaf.close()


def test_the_mark_of_systemd_oomd_is_seen(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = leaf_of(unit)
    monkeypatch.setattr(os, "getxattr", lambda _, name: {"user.oomd_kill": b"2"}[name])
    assert leaf.evidence(KILLED).oomd
    leaf.close()
