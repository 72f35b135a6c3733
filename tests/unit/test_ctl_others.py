"""Instances of other users, programs that ask for them, and what an instance leaves when it ends."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import ctl_samples as samples
import pytest

from nannyd.core.paths import Scope, end_file
from nannyd.ctl import ends, instances
from nannyd.ctl.ends import End
from nannyd.ctl.instances import Instance
from nannyd.ctl.owners import Owner, is_of, sockets_in
from nannyd.ctl.programs import Program, collect
from nannyd.ctl.units import Unit

if TYPE_CHECKING:
    from pathlib import Path

ALICE = Owner(4711, "alice", 4711, "/home/alice")
HERS = Instance("w", Scope.USER, ALICE)


# Names


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("alice/w", True),
        ("alice/*", True),
        ("*/w", True),
        ("4711/w", True),
        ("**", True),
        ("w", False),
        ("*", False),
        ("bob/w", False),
        ("alice/x", False),
        ("/w", False),
    ],
)
def test_another_users_are_meant_with_her_name_only(name: str, means: bool) -> None:  # noqa: FBT001
    assert HERS.name == "alice/w"
    assert instances.matches(HERS, name) is means


def test_nobody_owns_what_is_the_systems() -> None:
    assert not instances.matches(Instance("w", Scope.SYSTEM), "alice/w")
    assert instances.matches(Instance("w", Scope.USER), f"{os.geteuid()}/w")


def test_the_unit_of_another_users_instance_is_its_name_too() -> None:
    assert instances.plain("alice/nannyd@w.service") == "alice/w"


# Directories


def test_only_what_is_somebodys_own_is_looked_into(tmp_path: Path) -> None:
    uid = os.geteuid()
    tmp_path.chmod(0o755)
    for name in ("w", ".hidden", "no socket", "empty"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "control").touch()
    assert [path.name for path in sockets_in(tmp_path, uid)] == ["w"]
    link = tmp_path.with_name("link")
    link.symlink_to(tmp_path)
    assert not is_of(link, uid)
    assert list(sockets_in(link, uid)) == list(sockets_in(tmp_path, uid + 1)) == []
    tmp_path.chmod(0o777)
    assert list(sockets_in(tmp_path, uid)) == []


# Programs


def test_programs_are_heard_at_once_and_each_for_its_time() -> None:
    before = time.monotonic()
    quick = Program(["sh", "-c", "echo said; echo unheard >&2; exit 3"], patience=60)
    slow = Program(["sh", "-c", "echo begun; exec sleep 60"], patience=0.5)
    absent = Program(["/nonesuch"], patience=60)
    collect([slow, quick, absent])
    assert time.monotonic() - before < 45
    assert (bytes(quick.output), quick.status, quick.late) == (b"said\n", 3, False)
    assert (bytes(slow.output), slow.status, slow.late) == (b"", None, True)
    assert (bytes(absent.output), absent.status, absent.running) == (b"", None, False)


def test_what_was_said_in_time_is_heard_late(tmp_path: Path) -> None:
    os.mkfifo(over := tmp_path / "over")
    program = Program(["sh", "-c", f"echo said; exec >&-; echo > {over}"], patience=0)
    over.read_text()
    collect([program])
    assert bytes(program.output) == b"said\n"


def test_a_program_that_says_too_much_is_given_up() -> None:
    program = Program(["cat", "/dev/zero"], patience=None)
    collect([program])
    assert program.status is None
    assert not program.output


# Ends


def write(state: Path, **changes: object) -> None:
    told = {
        "kind": "drained",
        "reason": "",
        "worker": "exited with status 0",
        "at": samples.micro(60),
        **changes,
    }
    end_file(state).write_text(json.dumps(told))


def test_an_end_is_told_in_words(tmp_path: Path) -> None:
    write(tmp_path)
    end = ends.read(tmp_path)
    assert end == End("drained", "", "exited with status 0", samples.NOW - 60)
    assert end.words == "drained: it exited with status 0"
    write(tmp_path, kind="terminated", reason="moving house")
    assert (end := ends.read(tmp_path)) is not None
    assert end.words == "terminated over its socket: moving house"
    write(tmp_path, kind="stopped")
    assert (end := ends.read(tmp_path)) is not None
    assert end.words == "stopped"


@pytest.mark.parametrize(
    "changes", [{"kind": "exploded"}, {"at": "now"}, {"at": 1 << 70}, {"reason": 3}, {"worker": "x" * 20_000}]
)
def test_what_is_no_end_says_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path, **changes)
    assert ends.read(tmp_path) is None


def test_a_trap_in_the_place_of_the_file_is_none(tmp_path: Path) -> None:
    assert ends.read(tmp_path) is None
    os.mkfifo(end_file(tmp_path))
    assert ends.read(tmp_path) is None
    end_file(tmp_path).unlink()
    write(tmp_path)
    end_file(tmp_path).rename(tmp_path / "elsewhere")
    end_file(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert ends.read(tmp_path) is None


def test_the_end_counts_where_systemd_knows_nothing_worse() -> None:
    ended = End("drained", "", "", samples.NOW - 60)
    instance = samples.down()
    instance.end = ended
    assert (instance.reason, instance.down_since) == ("drained", samples.NOW - 60)
    failed = samples.down(active_state="failed", result="exit-code", exec_status=78)
    failed.end = ended
    assert (failed.reason, failed.down_since) == ("the configuration is wrong", samples.NOW - 300)
    masked = Instance("w", Scope.SYSTEM, unit=Unit("w", Scope.SYSTEM, load_state="masked"), end=ended)
    assert (masked.state, masked.reason) == ("masked", "its unit is masked")


def test_one_that_is_not_to_be_restarted_is_draining() -> None:
    draining = samples.running(goal="down")
    assert (draining.state, draining.active_state) == ("draining", "active")
    assert draining.reason == "it ends when its worker does"
    stopping = samples.running(goal="down", state="stop-sigterm", activeState="deactivating")
    assert stopping.state == "stop-sigterm"
