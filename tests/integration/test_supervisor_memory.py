"""What a worker may use, where no cgroup is delegated: memory that is polled."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from harness import Host, Nannyd, catches, eventually, lives, read_lines, send_signal, status_of

if TYPE_CHECKING:
    from pathlib import Path

POLL = """
[worker]
stop-timeout = "5s"
[memory]
mode = "poll"
limit = "100M"
[restart]
delay = 0
jitter = 0
"""
MIB = 1 << 20


def test_a_worker_that_leaks_is_warned_of_and_terminated_before_the_limit(nannyd: Host) -> None:
    handled = nannyd.home.base / "handled"
    run = nannyd.rude(
        vices=f"--at-usr1 --eat 11.25M --rate 400M --sigterm-handler {handled}", config=POLL, systemd=True
    )
    pid = run.ready()
    eat(run, pid, 7)  # of a few more, the interpreter's
    warning = run.wait_for("memory-warning", worker_pid=pid)
    assert warning["level"] == "WARNING"
    assert 80 * MIB <= warning["memory_working_set"] < 95 * MIB
    assert (warning["memory_limit"], warning["memory_threshold"]) == (100 * MIB, 80 * MIB)
    send_signal(pid, signal.SIGUSR1)
    verdict = run.wait_for("memory-terminate", worker_pid=pid)
    assert 95 * MIB <= verdict["memory_working_set"] < 100 * MIB
    assert verdict["memory_threshold"] == 95 * MIB
    for word in (
        "of 100.0 MiB",
        "threshold 95.0 MiB",
        "anon ",
        "shmem ",
        "swap ",
        f"largest: python3 {pid} ",
    ):
        assert word.replace("python3", _comm(pid, verdict["largest"])) in verdict["message"]
    # It was asked, it did exit with 0, and the result is `memory` all the same.
    failed = run.wait_for("worker-failed", worker_pid=pid)
    assert (failed["result"], failed["who"], failed["exit_status"]) == ("memory", "nannyd", 0)
    assert "memory.terminate" in failed["detail"]
    assert read_lines(handled)[0].startswith("SIGTERM")
    run.systemd.wait_for("STATUS", f"worker {pid} stopping (memory.terminate: ")
    run.ready()
    assert run.stop() == 0


def eat(run: Nannyd, pid: int, meals: int) -> None:
    """Let a worker that eats at SIGUSR1 do so, so often.  It comes to rest at a known size."""
    eventually(lambda: catches(pid, signal.SIGUSR1), "it knows when to eat")
    for _ in range(meals):
        eaten = run.stdout.read_text().count("ate ")
        send_signal(pid, signal.SIGUSR1)
        eventually(lambda eaten=eaten: run.stdout.read_text().count("ate ") > eaten, "it has eaten")  # type: ignore[misc]


def _comm(pid: int, largest: str) -> str:
    """Return the name of *pid* in a list of the largest: the interpreter's, which differs by system."""
    return next(part.split()[0] for part in largest.split(", ") if f" {pid} " in part)


def test_one_warning_is_given_for_each_crossing(nannyd: Host) -> None:
    run = nannyd.rude(vices="--eat 75M --rate 400M", config=POLL)
    pid = run.ready()
    run.wait_for("memory-warning")
    time.sleep(0.5)  # five looks
    assert run.events().count("memory-warning") == 1
    assert lives(pid)
    assert run.stop() == 0


def test_a_worker_that_ignores_the_termination_is_killed_and_the_result_stays_memory(nannyd: Host) -> None:
    config = POLL.replace("5s", "1s")
    run = nannyd.rude(vices="--eat 88M --rate 400M --ignore-sigterm", config=config)
    run.ready()
    run.wait_for("memory-terminate")
    run.wait_for("killing-worker")
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("memory", "nannyd", signal.SIGKILL)
    run.ready()
    assert run.stop() == 0


def test_a_worker_that_meets_the_wall_while_stopping_is_killed_and_the_result_stays_memory(
    nannyd: Host,
) -> None:
    # Terminated at half of the limit, it goes on to eat until the wall.
    config = POLL.replace("5s", "1h")
    options = ["--memory.warn=0.3", "--memory.terminate=0.5"]
    run = nannyd.rude(*options, vices="--leak 100M --ignore-sigterm", config=config)
    run.ready()
    run.wait_for("memory-terminate")
    run.wait_for("killing-worker")
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"]) == ("memory", "nannyd")
    assert run.stop() == 0


@pytest.mark.parametrize("off", ["0", "false", "none"])
def test_without_terminate_the_worker_is_killed_at_the_wall(nannyd: Host, off: str) -> None:
    run = nannyd.rude(f"--memory.terminate={off}", vices="--eat 110M", config=POLL)
    run.ready()
    run.wait_for("killing-worker")
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("memory", "nannyd", signal.SIGKILL)
    assert "memory.max" in failed["detail"]
    assert "stopping-worker" not in run.events()
    assert run.stop() == 0


def test_a_warning_may_be_off(nannyd: Host) -> None:
    run = nannyd.rude("--memory.warn=0", vices="--eat 88M --rate 400M", config=POLL)
    run.ready()
    run.wait_for("memory-terminate")
    assert "memory-warning" not in run.events()
    assert run.stop() == 0


@pytest.mark.parametrize("vices", ["--eat 110M --oom-child", "--fork-tree 3 --eat-each 37M"])
def test_what_descendants_use_is_the_workers(nannyd: Host, vices: str) -> None:
    run = nannyd.rude(vices=vices, config=POLL)
    pid = run.ready()
    verdict = run.wait_for("memory-terminate", worker_pid=pid)
    assert verdict["memory_working_set"] >= 95 * MIB
    assert run.wait_for("worker-failed")["result"] == "memory"
    assert run.stop() == 0


@pytest.mark.parametrize(
    "options",
    [[], ["--memory.limit=500M", "--memory.warn=0.25"]],
    ids=["above the limit", "above the warning alone"],
)
def test_pages_that_forked_children_share_count_once(nannyd: Host, options: list[str]) -> None:
    pids = nannyd.home.base / "pids"
    vices = f"--share 40M --children 4 --print-pids {pids}"
    run = nannyd.rude(*options, vices=vices, config=POLL, systemd=True)
    pid = run.ready()
    eventually(lambda: len(read_lines(pids)) == 5, "all are forked")
    sum_of_all = sum(int(status_of(int(line))["RssAnon"].split()[0]) for line in read_lines(pids))
    assert 150 * 1024 < sum_of_all < 450 * 1024  # far above, if they were added up
    time.sleep(1)
    assert not {"memory-warning", "memory-terminate"} & set(run.events())
    assert lives(pid)
    assert run.stop() == 0


def _has_lines(path: Path, count: int) -> bool:
    return len(read_lines(path)) == count


def test_a_worker_that_shares_pages_and_grows_is_asked_to_end_before_the_wall(nannyd: Host) -> None:
    """Its sum was above the wall all the time, and refuted; then it grows faster than it is asked about."""
    handled, pids = nannyd.home.base / "handled", nannyd.home.base / "pids"
    vices = f"--share 60M --children 4 --print-pids {pids} --at-usr1 --eat 60M --sigterm-handler {handled}"
    vices += " --rate 400M"  # in small bites
    options = ["--memory.limit=200M", "--memory.warn=0.6", "--memory.terminate=0.75"]
    run = nannyd.rude(*options, vices=vices, config=POLL)
    for life in (1, 2):
        pid = run.ready()
        eventually(partial(_has_lines, pids, 5 * life), "all are forked")
        time.sleep(1.5)  # four refusals: by now it is asked about once a second
        assert len(run.all("memory-warning")) == life - 1
        eat(run, pid, 1)
        assert run.wait_for("memory-warning", worker_pid=pid)["memory_working_set"] >= 120 * MIB
        send_signal(pid, signal.SIGUSR1)
        verdict = run.wait_for("memory-terminate", worker_pid=pid)
        assert 150 * MIB <= verdict["memory_working_set"] < 195 * MIB
        failed = run.wait_for("worker-failed", worker_pid=pid)
        assert (failed["result"], failed["who"], failed["exit_status"]) == ("memory", "nannyd", 0)
        assert len(read_lines(handled)) == life
    run.ready()
    assert run.stop() == 0


def test_a_worker_that_writes_much_page_cache_is_let_alone(nannyd: Host) -> None:
    file = nannyd.home.base / "file"
    run = nannyd.rude(vices=f"--page-cache 300M --file {file}", config=POLL)
    pid = run.ready()
    eventually(lambda: file.exists() and file.stat().st_size == 300 * MIB, "300 MiB are written")
    eventually(lambda: "wrote" in run.stdout.read_text(), "the worker is done")
    time.sleep(0.3)
    assert lives(pid)
    assert not {"memory-warning", "memory-terminate"} & set(run.events())
    assert run.stop() == 0


def _wakeups(pid: int) -> int:
    return int(status_of(pid)["voluntary_ctxt_switches"])


def _wakes_in_a_second(pid: int) -> float:
    before, began = _wakeups(pid), time.monotonic()
    time.sleep(2)
    return (_wakeups(pid) - before) / (time.monotonic() - began)


def test_without_a_limit_nannyd_sleeps(nannyd: Host) -> None:
    run = nannyd("--memory.limit=none", "--", "sleep", "60")
    run.ready()
    eventually(lambda: _wakes_in_a_second(run.pid) == 0, "it has done what is done at the start, and sleeps")
    assert run.stop() == 0


def test_far_from_the_limit_nannyd_looks_seldom(nannyd: Host) -> None:
    run = nannyd("--memory.limit=8G", "--memory.mode=poll", "--", "sleep", "60")
    run.ready()
    eventually(lambda: _wakes_in_a_second(run.pid) <= 2, "it has done what is done at the start")
    assert run.stop() == 0


def test_near_the_limit_nannyd_looks_at_most_ten_times_a_second(nannyd: Host) -> None:
    run = nannyd.rude(vices="--eat 77M --rate 400M", config=POLL)
    run.ready()
    run.wait_for("memory-warning")
    eventually(lambda: _wakes_in_a_second(run.pid) <= 12, "it has done what is done at the start")
    assert run.stop() == 0


def test_a_limit_that_is_a_share_of_the_host_is_told_in_bytes(nannyd: Host) -> None:
    run = nannyd("--memory.limit=0.5", "--", "sleep", "60")
    starting = run.wait_for("starting")
    assert starting["memory_limit"] > 16 * MIB
    assert "0.5 of " in starting["message"]
    assert starting["memory_mode"] == "poll"
    run.ready()
    assert run.stop() == 0


def test_a_handler_that_takes_long_has_its_time(nannyd: Host) -> None:
    handled = nannyd.home.base / "handled"
    vices = f"--eat 88M --rate 200M --sigterm-handler {handled} --sigterm-delay 1"
    run = nannyd.rude(vices=vices, config=POLL)
    pid = run.ready()
    eventually(lambda: catches(pid, signal.SIGTERM), "it has its handler")
    run.wait_for("memory-terminate")
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["exit_status"]) == ("memory", 0)
    assert run.stop() == 0
