"""What an administrator does and meets: users apart, signals, limits in several places, bad disks."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .instances import Unit, rude, rude_within, run_command, shell, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import Nannyd, NannydFactory

MIB = 1 << 20
SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n"
SLICE = Unit("system-nannyd.slice")
TRESPASS = Path(__file__).with_name("trespass.py")


def alive(pid: int | str) -> bool:
    return Path(f"/proc/{pid}").exists()


def number(path: Path) -> int:
    return int(path.read_text())


# Users


def trespass(user: str, instance: Nannyd) -> Any:
    """Return what *user* could do to another user's instance."""
    argv = ["python3", "-IS", TRESPASS, instance.instance, instance.main_pid, instance.worker, instance.leaf]
    return json.loads(run_command("runuser", "-u", user, "--", *map(str, argv)).stdout)


def test_users_cannot_reach_each_others_instances(nannyd: NannydFactory) -> None:
    run_command("groupadd", "--force", "staff")
    hers = nannyd(SLEEP, "User=alice\nGroup=staff", name="hers")
    his = nannyd(SLEEP, "User=bob\nGroup=staff", name="his")
    workers = hers.worker, his.worker
    for instance, owner, other in ((hers, "alice", "bob"), (his, "bob", "alice")):
        assert run_command("stat", "--format=%U:%G", f"/proc/{instance.worker}").stdout == f"{owner}:staff\n"
        assert trespass(other, instance) == []
    assert {"reload", "notify", "scratch"} <= set(trespass("alice", hers))
    assert (hers.worker, his.worker) == workers
    assert not hers.events("worker-failed")
    refused = run_command(
        *(
            "runuser",
            "-u",
            "bob",
            "--",
            "env",
            "RUNTIME_DIRECTORY=/run/nannyd/hers",
            "nannyd",
            "reload",
            "hers",
        ),
        check=False,
    )
    assert refused.returncode == 1
    assert "io.nannyd.Nanny.NotPermitted" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


# systemctl kill and show


@pytest.mark.parametrize("whom", ["main", "all"])
def test_signal_to_end_is_the_orderly_end_of_the_unit(nannyd: NannydFactory, whom: str) -> None:
    instance = nannyd(f"[worker]\ncommand = {rude('--setsid', '--double-fork')}\nready = 'notify'\n")
    cgroup = instance.cgroup
    instance.kill("SIGTERM", whom)
    instance.wait_for("inactive")
    assert (instance.show("Result"), instance.show("ExecMainStatus")) == ("success", "0")
    assert instance.show("NRestarts") == "0"
    assert not cgroup.exists()


@pytest.mark.parametrize("signal", ["USR1", "USR2"])
def test_signal_of_the_worker_alone_may_be_sent_to_the_whole_unit(nannyd: NannydFactory, signal: str) -> None:
    """As logrotate has it sent; in a worker of its own the signal has its meaning again."""
    script = f"trap ': > $STATE_DIRECTORY/ok' {signal}; systemd-notify --ready; while :; do sleep 0.1; done"
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\nready = 'notify'\n")
    supervisor, worker = instance.main_pid, instance.worker
    instance.kill(f"SIG{signal}", "all")
    wait_until((instance.state / "ok").exists, "the worker to hear it")
    instance.reload()
    assert (instance.main_pid, instance.worker) == (supervisor, worker)
    assert instance.show("NRestarts") == "0"


def test_instance_that_was_killed_with_all_its_processes_is_back(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "RestartSec=300ms")
    worker = instance.worker
    instance.kill("SIGKILL", "all")
    instance.journal.wait_for("Failed with result 'signal'", instance.name)
    wait_until(lambda: instance.show("NRestarts") == "1", "the start after it")
    instance.wait_for("active")
    assert instance.show("Result") == "success"
    assert instance.worker != worker
    assert not alive(worker)


# Limits in several places


@contextmanager
def limited(unit: Unit, limit: str) -> Iterator[None]:
    run_command("systemctl", "set-property", "--runtime", unit.name, f"MemoryMax={limit}")
    try:
        yield
    finally:
        run_command("systemctl", "set-property", "--runtime", unit.name, "MemoryMax=infinity")
        run_command("systemctl", "revert", unit.name)


def test_automatic_limit_is_the_least_of_slice_and_unit(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP + "[memory]\nlimit = 'auto'\n", "MemoryMax=400M")
    wall = instance.leaf / "memory.max"
    assert number(wall) == (400 - 32) * MIB
    with limited(SLICE, "300M"):
        instance.reload()
        assert number(wall) == (300 - 32) * MIB
        with limited(instance, "200M"):
            instance.reload()
            assert number(wall) == (200 - 32) * MIB


def test_supervisor_survives_the_limit_of_the_slice(nannyd: NannydFactory) -> None:
    with limited(SLICE, "96M"):
        instance = nannyd(rude_within("512M", "--eat", "200M"))
        supervisor = instance.main_pid
        record = instance.wait_for_event("worker-failed")
        assert (record["RESULT"], record["WHO"]) == ("oom-kill", "kernel-ancestor-limit")
        assert record["DETAIL"] == f"{SLICE.show('ControlGroup')} met its memory.max"
        assert instance.is_spared(supervisor)
        instance.stop()


def test_tree_that_divides_the_load_is_counted_whole(nannyd: NannydFactory) -> None:
    """No process of it has a quarter of what all have."""
    pids = "/var/lib/nannyd/w/pids"
    vices = "--fork-tree", 6, "--eat-each", "24M", "--rate", "24M", "--print-pids", pids
    instance = nannyd(rude_within("112M", *vices))
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WHO"]) == ("memory", "nannyd")
    told = instance.wait_for_event("memory-terminate")
    assert int(told["MEMORY_WORKING_SET"]) > 0.94 * 112 * MIB
    assert len(told["LARGEST"].split(", ")) == 3
    processes = Path(pids).read_text().split()
    assert len(processes) == 7
    wait_until(lambda: not any(map(alive, processes)), "the end of all")


def test_pages_that_processes_have_in_common_count_once(nannyd: NannydFactory) -> None:
    pids = "/var/lib/nannyd/w/pids"
    instance = nannyd(
        f"[worker]\ncommand = {rude('--share', '48M', '--print-pids', pids)}\nready = 'notify'\n"
        "[memory]\nlimit = '112M'\n"
    )
    wait_until(lambda: len(Path(pids).read_text().split()) == 5, "all of the tree")
    assert 48 * MIB < number(instance.leaf / "memory.current") < 96 * MIB
    assert not instance.events("memory-warning")
    assert instance.show("NRestarts") == "0"


# Disks


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    run_command("mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place)
    try:
        yield
    finally:
        run_command("umount", "--lazy", place)


STUBBORN = SLEEP + "[restart]\ndelay = '100ms'\ngrowth = 2\njitter = 0\nstart-limit-burst = 4\n"


@pytest.mark.parametrize("problem", ["Read-only file system", "No space left on device"])
def test_no_place_for_the_scratch_directory_ends_the_unit_with_a_reason(
    nannyd: NannydFactory, problem: str
) -> None:
    full = problem.startswith("No space")
    instance = nannyd(STUBBORN, "" if full else "ReadOnlyPaths=/var/lib/nannyd/w", start=False)
    if full:
        with mounted(instance.state, "nr_inodes=1", "mode=0755"):
            instance.start(check=False)
            instance.wait_for("failed")
    else:
        instance.start(check=False)
        instance.wait_for("failed")
    assert instance.show("ExecMainStatus") == "69"
    assert instance.show("NRestarts") == "0"
    attempts = instance.events("start-failed")
    assert len(attempts) == 4
    for record in attempts:
        assert problem in record["MESSAGE"]
        assert "/var/lib/nannyd/w/scratch" in record["MESSAGE"]
        assert record["PRIORITY"] == "3"
    delays = [float(record["SECONDS"]) for record in instance.events("restarting")]
    assert delays == [0.1, 0.2, 0.4]
    status = run_command("systemctl", "status", "--no-pager", "--lines=0", instance.name, check=False).stdout
    (sentence,) = re.findall(r'Status: "(.*)"', status)
    assert sentence.startswith("failed: ")
    assert problem in sentence
    assert "start-limit-hit" in sentence


def test_worker_starts_once_the_disk_has_room_again(nannyd: NannydFactory) -> None:
    instance = nannyd(STUBBORN.replace("burst = 4", "burst = 0"), start=False)
    with mounted(instance.state, "nr_inodes=1", "mode=0755"):
        run_command("systemctl", "start", "--no-block", instance.name)
        instance.wait_for_event("start-failed", 2)
        assert "No space left on device" in instance.status
        run_command("mount", "-o", "remount,nr_inodes=100", instance.state)
        instance.wait_for("active")
        instance.stop()
