"""Where scratch directories lie, whose they are, and which of them nobody uses any more."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from nannyd.supervisor import scratch
from nannyd.supervisor.scratch import Scratch, abandoned, disown, filesystem_of, place, removal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:22 / /tmp rw,nosuid,nodev shared:2 - tmpfs tmpfs rw
24 22 0:23 / /run rw,nosuid shared:3 - tmpfs tmpfs rw,size=10%
25 22 0:24 / /srv/with\\040space rw - xfs /dev/vdb rw
26 24 0:25 / /run/user/1000 rw - tmpfs tmpfs rw
27 22 254:3 / /var/tmp rw - btrfs /dev/vdc rw
28 23 254:4 / /tmp/disk rw - ext4 /dev/vdd rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/nowhere", "ext4"),
        ("/tmp", "tmpfs"),
        ("/tmp/x", "tmpfs"),
        ("/tmpx", "ext4"),
        ("/tmp/disk/x", "ext4"),
        ("/srv/with space/x", "xfs"),
        ("/run/user/1000", "tmpfs"),
        ("/", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert filesystem_of(path, MOUNTS) == kind


def test_where_nothing_is_known_of_mounts_nothing_is_said() -> None:
    assert filesystem_of("/x", "") == ""


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Say which file system a path lies on; all others are ext4."""
    kinds: dict[str, str] = {}
    monkeypatch.setattr(scratch, "filesystem_of", lambda path: kinds.get(path, "ext4"))
    scratch._in_memory.cache_clear()
    return kinds.__setitem__


def test_state_directory_comes_first_and_its_first_entry_counts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    environ = {"STATE_DIRECTORY": f"{state}:/other", "TMPDIR": str(tmp_path)}
    assert place(None, environ, "w") == state / "scratch"


def test_a_colon_may_stand_in_the_name_of_the_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "a:b"
    state.mkdir()
    assert scratch.place(None, {"STATE_DIRECTORY": f"{state}:/other"}, "a:b") == state / "scratch"


def test_what_is_configured_comes_before_that(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": str(tmp_path / "state")}
    assert place(str(tmp_path), environ, "w") == tmp_path / "nannyd" / "w"


@pytest.mark.usefixtures("on_disk")
def test_tmpdir_comes_next(tmp_path: Path) -> None:
    assert place(None, {"TMPDIR": str(tmp_path)}, "w") == tmp_path / "nannyd" / "w"


def test_a_tmpfs_is_passed_over(
    tmp_path: Path, on_disk: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(str(tmp_path), "tmpfs")
    on_disk("/var/tmp", "ramfs")
    on_disk("/tmp", "tmpfs")
    with pytest.raises(OSError, match=r"no place .* not in memory; set worker\.local-directory"):
        place(None, {"TMPDIR": str(tmp_path)}, "w")
    monkeypatch.setattr(scratch, "_in_memory", lambda path, device: path != str(tmp_path))
    assert place(None, {"TMPDIR": str(tmp_path)}, "w").is_relative_to(tmp_path)


def test_a_tmpfs_that_is_configured_is_taken(tmp_path: Path, on_disk: Callable[[str, str], None]) -> None:
    on_disk(str(tmp_path), "tmpfs")
    assert place(str(tmp_path), {}, "w").is_relative_to(tmp_path)


def test_where_everybody_may_write_each_user_has_a_shelf(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert place(str(tmp_path), {}, "w") == tmp_path / f"nannyd-{os.getuid()}" / "w"


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_that_somebody_put_there_is_refused(tmp_path: Path, *, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.mkdir()
    (tmp_path / "nannyd").symlink_to(target)
    with pytest.raises(OSError, match="nannyd"):
        place(str(tmp_path), {}, "w")
    assert dangling or list(target.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nannyd").mkdir()
    os.chown(tmp_path / "nannyd", 65534, 65534)
    with pytest.raises(PermissionError, match=r"somebody else's; remove it or set worker\.local-directory"):
        place(str(tmp_path), {}, "w")


def test_a_directory_is_private_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    made = [Scratch(tmp_path, generation) for generation in (1, 1, 2)]
    assert len({one.path for one in made}) == 3
    for one in made:
        assert stat.S_IMODE(one.path.stat().st_mode) == 0o700
        one.forget(removed=True)
    assert not list(tmp_path.glob("*.owner"))


def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"abc"[:count])
    (tmp_path / "worker-1-616263").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileExistsError):
        Scratch(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["worker-1-616263"]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_who_holds_the_lock_lives(tmp_path: Path) -> None:
    living, dead = Scratch(tmp_path, 1), Scratch(tmp_path, 2)
    os.close(dead._lock)  # as the kernel does when a process has ended
    assert abandoned(tmp_path) == [dead.path]
    living.forget(removed=True)


def test_a_directory_without_an_owner_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "worker-1-abcdef").mkdir()
    (tmp_path / "notes.owner").touch()
    assert abandoned(tmp_path) == []


def test_looking_takes_no_lock_away(tmp_path: Path) -> None:
    owner = tmp_path / "worker-1-abcdef.owner"
    owner.touch()
    assert abandoned(tmp_path) == [owner.with_suffix("")]
    with owner.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_could_not_be_removed_is_left_to_the_next_nannyd(tmp_path: Path) -> None:
    one = Scratch(tmp_path, 1)
    one.forget(removed=False)
    assert abandoned(tmp_path) == [one.path]
    disown(one.path, removed=False)
    assert abandoned(tmp_path) == [one.path]
    one.path.rmdir()
    disown(one.path, removed=True)
    assert list(tmp_path.iterdir()) == []


def test_removal_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    one = Scratch(tmp_path, 1)
    (one.path / "link").symlink_to(precious)
    subprocess.run(removal(one.path), check=True)
    one.forget(removed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (precious / "file").exists()


def test_a_name_that_looks_like_an_option_is_none(tmp_path: Path) -> None:
    command = removal(tmp_path / "-rf")
    assert command.index("--") < command.index(str(tmp_path / "-rf"))
