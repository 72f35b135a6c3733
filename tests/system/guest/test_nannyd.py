"""An instance of the template unit, from its start to its stop: processes, leaves, ends."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import rude, run_command, shell, wait_until

if TYPE_CHECKING:
    from .instances import Nannyd, NannydFactory

SLEEP = 'command = ["/usr/bin/sleep", "infinity"]'


def text(path: Path) -> str:
    return path.read_text().strip()


def kill(pid: int) -> None:
    run_command("kill", "-KILL", str(pid))


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


def more_than(count: int, found: list[int]) -> list[int]:
    return found if len(found) > count else []


def alive(numbers: list[int]) -> list[int]:
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


def test_unit_is_active_only_when_the_worker_is_ready(nannyd: NannydFactory) -> None:
    script = "until [ -e $STATE_DIRECTORY/go ]; do sleep 0.1; done; systemd-notify --ready; sleep 99"
    instance = nannyd(
        f"""
        [worker]
        command = {shell(script)}
        ready = "notify"
        """,
        start=False,
    )
    run_command("systemctl", "start", "--no-block", instance.name)
    started = instance.wait_for_event("worker-started")
    wait_until(lambda: instance.status.startswith(f"worker {started['WORKER_PID']} starting"), "its start")
    assert instance.show("ActiveState") == "activating"
    (instance.state / "go").touch()
    instance.wait_for("active/running")
    assert instance.worker == int(started["WORKER_PID"])


def test_status_is_a_sentence_with_the_worker_and_its_memory(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\n[memory]\nlimit = '64M'\n")
    output = run_command("systemctl", "status", "--no-pager", instance.name).stdout
    sentence = r'Status: "worker (\d+) running, [\d.]+ (KiB|of) (of )?64\.0 MiB \(\d %\)"'
    assert (found := re.search(sentence, output)), output
    assert text(Path(f"/proc/{found[1]}/comm")) == "sleep"


def test_each_life_has_a_fresh_leaf_and_the_last_is_removed(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\n[restart]\ndelay = 0\n")
    for generation in (1, 2, 3):
        assert instance.leaf.name == f"worker-{generation}"
        assert text(instance.leaf / "cgroup.procs") == str(instance.worker)
        kill(instance.worker)
        record = instance.wait_for_event("worker-failed", generation)
        assert (record["RESULT"], record["WHO"]) == ("signal", "outside")
        instance.wait_for_event("worker-ready", generation + 1)
    assert text(instance.cgroup / "supervisor/cgroup.procs") == str(instance.main_pid)
    assert text(instance.cgroup / "cgroup.procs") == ""
    assert "3 restarts" in instance.status


def test_stop_leaves_nobody_behind(nannyd: NannydFactory) -> None:
    """Neither who ignores SIGTERM nor who forked twice and made a session of its own."""
    vices = "--ignore-sigterm", "--fork-and-leave=3", "--double-fork", "--setsid"
    instance = nannyd(
        f"""
        [worker]
        command = {rude("--print-pids", "/var/lib/nannyd/w/pids", *vices)}
        ready = "notify"
        stop-timeout = "1s"
        """
    )
    processes = wait_until(lambda: more_than(3, pids(instance.state / "pids")), "the pids of all")
    assert alive(processes) == processes
    cgroup = instance.cgroup
    began = time.monotonic()
    instance.stop()
    assert time.monotonic() - began >= 0.8
    assert alive(processes) == []
    assert not cgroup.exists()
    assert instance.events("worker-failed")[0]["RESULT"] == "timeout"
    assert instance.show("Result") == "success"


def test_what_a_worker_left_behind_is_gone_before_the_next_one_starts(nannyd: NannydFactory) -> None:
    """The next worker itself looks for the processes of the one before."""
    script = """
        touch $STATE_DIRECTORY/pids
        for pid in $(cat $STATE_DIRECTORY/pids); do [ ! -e /proc/$pid ] || echo found $pid; done
        echo looked
        for i in 1 2 3; do setsid sleep 300 & echo $! >>$STATE_DIRECTORY/pids; done
        trap "" TERM
        systemd-notify --ready
        wait
    """
    instance = nannyd(
        f"""
        [worker]
        command = {shell(script)}
        ready = "notify"
        stop-timeout = "1s"
        [restart]
        delay = 0
        """
    )
    first = pids(instance.state / "pids")
    kill(instance.worker)
    instance.wait_for_event("worker-ready", 2)
    assert alive(first) == []
    messages = instance.journal.messages(instance.name, SYSLOG_IDENTIFIER="w")
    assert messages == ["looked", "looked"]
    kill(instance.main_pid)  # the supervisor itself: now systemd has to clean up
    instance.wait_for_event("worker-ready", 3)
    assert len(alive(pids(instance.state / "pids"))) == 3
    assert instance.journal.messages(instance.name, SYSLOG_IDENTIFIER="w") == ["looked"] * 3
    scratch = instance.state / "scratch"
    wait_until(lambda: len(list(scratch.iterdir())) == 2, "the old scratch directory to be swept")


def oom_score_adj(pid: int) -> int:
    return int(text(Path(f"/proc/{pid}/oom_score_adj")))


def most_processes_beside_the_supervisor(instance: Nannyd) -> int:
    return int(text(instance.cgroup / "supervisor/pids.peak")) - 1


def test_worker_is_born_in_its_leaf_and_killed_before_the_supervisor(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\n")
    assert most_processes_beside_the_supervisor(instance) == 0
    assert (oom_score_adj(instance.main_pid), oom_score_adj(instance.worker)) == (-500, 0)


def test_worker_enters_its_leaf_by_the_helper_where_clone3_is_forbidden(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\numask = '0027'\n", "RestrictNamespaces=yes")
    assert (oom_score_adj(instance.main_pid), oom_score_adj(instance.worker)) == (-500, 0)
    assert text(instance.leaf / "cgroup.procs") == str(instance.worker)
    assert most_processes_beside_the_supervisor(instance) == 1
    status = text(Path(f"/proc/{instance.worker}/status"))
    assert "\nUmask:\t0027\n" in status
    assert "\nSigIgn:\t0000000000000000\n" in status


def test_worker_is_as_nice_and_as_likely_to_be_killed_as_configured(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\nnice = 5\noom-score-adj = 300\n")
    assert oom_score_adj(instance.worker) == 300
    stat = text(Path(f"/proc/{instance.worker}/stat")).rpartition(")")[2].split()
    assert int(stat[16]) == 5
    assert oom_score_adj(instance.main_pid) == -500


@pytest.mark.parametrize("settings", ["", "RestrictNamespaces=yes"])
def test_why_a_worker_cannot_be_executed_is_named(nannyd: NannydFactory, settings: str) -> None:
    instance = nannyd(
        "[worker]\ncommand = ['/var/lib/nannyd/w/script']\n[restart]\nmode = 'no'\n",
        f"Restart=no\n{settings}",
        start=False,
    )
    script = instance.state / "script"
    instance.state.mkdir(parents=True)
    script.write_text("#!/usr/bin/no-such-shell\n")
    script.chmod(0o755)
    assert instance.start(check=False).returncode != 0
    record = instance.wait_for_event("start-failed")
    assert (
        "'/usr/bin/no-such-shell', the interpreter of script '/var/lib/nannyd/w/script'" in record["MESSAGE"]
    )
    assert "No such file or directory" in record["MESSAGE"]
    assert instance.show("ExecMainStatus") == "71"


def test_second_nannyd_of_a_name_is_refused_with_the_pid_of_the_first(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\n{SLEEP}\n")
    second = run_command("env", "--ignore-environment", "/usr/bin/nannyd", "run", "w", check=False)
    assert second.returncode == 73
    assert second.stderr == f"w is already running (pid {instance.main_pid})\n"
    assert instance.status.startswith("worker ")
