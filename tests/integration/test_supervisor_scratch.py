"""The worker's scratch directory, and what a nannyd that was killed leaves to the next one."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest
from harness import (
    RUDE,
    Host,
    Nannyd,
    await_end,
    environ_of,
    eventually,
    lives,
    read_lines,
    send_signal,
)

from nannyd.supervisor.scratch import filesystem_of


def scratch_of(pid: int) -> Path:
    """Return the scratch directory of a worker."""
    return Path(environ_of(pid)["NANNYD_LOCAL_DIRECTORY"])


def crashed(nannyd: Host, *command: str, ready: str = "exec") -> tuple[Path, int]:
    """Run a worker, kill its nannyd, and return the worker's directory and pid."""
    run = nannyd(f"--worker.ready={ready}", "--", *command)
    pid = run.ready()
    directory = scratch_of(pid)
    run.crash()
    assert directory.is_dir()
    return directory, pid


# --- While it lives ------------------------------------------------------------------------------------


def test_each_worker_has_a_private_directory_that_is_removed_after_it(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--", "sleep", "60")
    seen = []
    for _ in range(2):
        pid = run.ready()
        directory = scratch_of(pid)
        seen.append(directory)
        status = directory.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert status.st_uid == os.getuid()
        assert list(directory.iterdir()) == []
        (directory / "deep" / "er").mkdir(parents=True)
        (directory / "deep" / "er" / "file").write_text("x")
        (directory / "deep").chmod(0o500)
        send_signal(pid, signal.SIGKILL)
        run.wait_for("worker-failed")
    eventually(lambda: not any(path.exists() for path in seen), "both are removed")
    assert seen[0] != seen[1]
    assert run.stop() == 0


def test_a_class_is_given_its_directory(nannyd: Host) -> None:
    run = nannyd("--worker.class=classes:Good", systemd=True)
    directory = scratch_of(run.ready())
    assert directory.is_relative_to(nannyd.home.state)
    assert run.stop() == 0


def test_the_directory_is_gone_when_nannyd_has_ended(nannyd: Host) -> None:
    run = nannyd(
        "--", "sh", "-c", 'cd "$NANNYD_LOCAL_DIRECTORY"; for i in $(seq 500); do : > f$i; done; sleep 60'
    )
    pid = run.ready()
    directory = scratch_of(pid)
    eventually(lambda: (directory / "f500").exists(), "it has many files")
    assert run.stop() == 0
    assert not directory.exists()


def test_a_link_in_it_is_not_followed(nannyd: Host) -> None:
    precious = nannyd.home.base / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    run = nannyd("--", "sleep", "60")
    directory = scratch_of(run.ready())
    (directory / "link").symlink_to(precious)
    assert run.stop() == 0
    assert not directory.exists()
    assert (precious / "file").read_text() == "x"


def test_a_worker_that_puts_a_link_in_its_place_harms_nobody(nannyd: Host) -> None:
    precious = nannyd.home.base / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    run = nannyd("--", "sleep", "60")
    directory = scratch_of(run.ready())
    directory.rmdir()
    directory.symlink_to(precious)
    assert run.stop() == 0
    assert not directory.is_symlink()
    assert (precious / "file").read_text() == "x"


def test_a_directory_that_is_gone_already_is_no_failure(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    scratch_of(run.ready()).rmdir()
    assert run.stop() == 0
    assert "scratch-failed" not in run.events()


# --- Where it lies -------------------------------------------------------------------------------------


def test_state_directory_comes_before_tmpdir(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    assert scratch_of(run.ready()).parent == nannyd.home.state / "scratch"
    assert run.stop() == 0


@pytest.mark.skipif(
    filesystem_of(tempfile.gettempdir()) == "tmpfs", reason="temporary files lie in memory here"
)
def test_without_state_directory_tmpdir_is_taken(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", environ={"STATE_DIRECTORY": None})
    assert scratch_of(run.ready()).parent == nannyd.home.tmp / "nannyd" / "t"
    assert run.stop() == 0


@pytest.mark.skipif(filesystem_of("/dev/shm") != "tmpfs", reason="/dev/shm is no tmpfs here")
def test_a_tmpfs_is_not_taken_by_default(nannyd: Host) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
        run = nannyd("--", "sleep", "60", environ={"STATE_DIRECTORY": None, "TMPDIR": in_memory})
        directory = scratch_of(run.ready())
        assert filesystem_of(str(directory)) not in ("tmpfs", "ramfs")
        assert run.stop() == 0
        assert not directory.exists()


@pytest.mark.skipif(filesystem_of("/dev/shm") != "tmpfs", reason="/dev/shm is no tmpfs here")
def test_a_tmpfs_that_was_configured_is_taken(nannyd: Host) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
        run = nannyd(f"--worker.local-directory={in_memory}", "--", "sleep", "60")
        assert scratch_of(run.ready()).is_relative_to(in_memory)
        assert run.stop() == 0
        assert not list(Path(in_memory).rglob("worker-*"))


def test_a_place_that_cannot_be_used_is_named(nannyd: Host) -> None:
    run = nannyd("--worker.local-directory=/no/such/place", "--restart.mode=no", "--", "sleep", "60")
    assert "/no/such/place" in run.wait_for("start-failed")["detail"]
    assert run.wait() == 71


# --- After a crash of nannyd ---------------------------------------------------------------------------


def test_what_a_killed_nannyd_left_is_removed_at_the_next_start(nannyd: Host) -> None:
    directory, old = crashed(nannyd, "sleep", "60")
    (directory / "file").write_text("x")
    (directory / "link").symlink_to(nannyd.home.config)
    run = nannyd("--", "sleep", "60")
    run.ready()
    eventually(lambda: not directory.exists(), "it is removed")
    eventually(lambda: not directory.with_suffix(".owner").exists(), "it is forgotten")
    assert nannyd.home.config.exists()
    assert not lives(old)
    assert run.stop() == 0


def test_a_worker_that_outlived_its_nannyd_is_ended_before_the_next_one_starts(nannyd: Host) -> None:
    pids = nannyd.home.base / "pids"
    vices = f"--ignore-sigterm --fork-and-leave 2 --double-fork --setsid --print-pids {pids}"
    _, old = crashed(nannyd, *RUDE, *vices.split(), ready="notify")
    eventually(lambda: len(read_lines(pids)) == 3, "all are forked")
    assert lives(old)
    run = nannyd("--", "sleep", "60")
    ended = run.wait_for("leftover-ended")
    for pid in read_lines(pids):
        assert pid in ended["message"]
        await_end(int(pid))
    run.ready()
    events = run.events()
    assert events.index("leftover-ended") < events.index("worker-started")
    assert run.stop() == 0


def test_what_could_not_be_removed_is_told_and_removed_at_the_next_start(nannyd: Host) -> None:
    programs, broken = nannyd.home.base / "bin", nannyd.home.base / "broken"
    programs.mkdir()
    (programs / "rm").write_text(f'#!/bin/sh\n[ -e {broken} ] && exit 1\nexec /bin/rm "$@"\n')
    (programs / "rm").chmod(0o755)
    broken.touch()
    nannyd.expect_records.add("scratch-failed")
    environ: dict[str, str | None] = {"PATH": f"{programs}:{os.environ['PATH']}"}
    first = nannyd("--", "sleep", "60", environ=environ)
    directory = scratch_of(first.ready())
    assert first.stop() == 0
    failed = first.wait_for("scratch-failed")
    assert (failed["path"], failed["detail"]) == (str(directory), "rm ended with status 1")
    assert directory.is_dir()
    broken.unlink()
    second = nannyd("--", "sleep", "60", environ=environ)
    second.ready()
    assert second.stop() == 0
    assert not directory.exists()


def test_the_next_start_leaves_no_sockets_of_a_killed_nannyd(nannyd: Host) -> None:
    crashed(nannyd, "sleep", "60")
    stale = nannyd.home.sockets_left()
    assert len(stale) == 2  # control and notify
    run = nannyd("--", "sleep", "60")
    run.ready()
    assert run.stop() == 0
    assert nannyd.home.sockets_left() == []


def test_the_directory_of_another_living_instance_is_not_swept(nannyd: Host) -> None:
    other = nannyd.home.base / "run-other"
    other.mkdir()
    first = nannyd("--", "sleep", "60", name="first", environ={"RUNTIME_DIRECTORY": str(other)})
    pid = first.ready()
    directory = scratch_of(pid)
    second = nannyd("--", "sleep", "60", name="second")
    second.ready()
    assert second.stop() == 0
    assert directory.is_dir()
    assert lives(pid)
    assert first.stop() == 0


def test_what_does_not_look_like_ours_is_not_swept(nannyd: Host) -> None:
    place = nannyd.home.scratch
    place.mkdir()
    (place / "worker").mkdir()
    (place / "backup.owner").touch()
    run = nannyd("--", "sleep", "60")
    run.ready()
    assert run.stop() == 0
    assert sorted(path.name for path in place.iterdir()) == ["backup.owner", "worker"]


def test_a_runtime_directory_that_vanishes_is_named_and_ends_at_the_start_limit(nannyd: Host) -> None:
    run: Nannyd = nannyd("--restart.delay=0", "--restart.start-limit-burst=3", "--", "sleep", "60")
    pid = run.ready()
    for path in sorted(nannyd.home.run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    nannyd.home.run.rmdir()
    send_signal(pid, signal.SIGKILL)
    assert run.wait() == 69
    assert run.events().count("start-failed") == 2
    assert str(nannyd.home.run) in run.all("start-failed")[0]["detail"]


def test_sigkill_of_nannyd_during_a_stop_leaves_nothing_that_stays(nannyd: Host) -> None:
    run = nannyd.rude("--worker.ready=notify", "--worker.stop-timeout=1h", vices="--ignore-sigterm")
    pid = run.ready()
    run.signal(signal.SIGTERM)
    run.wait_for("stopping-worker")
    run.crash()
    assert lives(pid)
    following = nannyd("--worker.stop-timeout=1h", "--", "sleep", "60")
    following.ready()
    assert not lives(pid)
    assert following.stop() == 0
