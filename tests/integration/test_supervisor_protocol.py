"""What a worker says to nannyd, by sd_notify(3), and what comes of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from harness import (
    NOTIFY,
    Host,
    children_of,
    descriptors_of,
    environ_of,
    eventually,
    lives,
    send_signal,
    status_of,
    zombies_of,
)

if TYPE_CHECKING:
    from harness import Nannyd

TALKER = """
import os, signal, socket, sys, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
def say(*lines, fds=()):
    socket.send_fds(sock, ["\\n".join(lines).encode()], fds) if fds else sock.send("\\n".join(lines).encode())
def on_sigterm(*lines, then=None):
    def handle(number, frame):
        say(*lines) if lines else None
        then() if then else None
    signal.signal(signal.SIGTERM, handle)
def stay():
    while True: time.sleep(0.1)  # pause(2) would sleep through a signal that comes just before it
"""


def talker(nannyd: Host, program: str, *options: str, config: str = NOTIFY, systemd: bool = False) -> Nannyd:
    """Run a Python program that has `say(...)`, `on_sigterm(...)` and `stay()`."""
    command = [sys.executable, "-I", "-S", "-c", TALKER + program]
    return nannyd(*options, "--", *command, config=config, systemd=systemd)


# --- systemd's own client ------------------------------------------------------------------------------

RESTARTS = 1000
WARM_UP = 50
MIB = 1 << 20


def _figures(pid: int, worker: int) -> tuple[int, int, int, int]:
    """Return descriptors, threads, zombies and anonymous memory of *pid* with no child but *worker*."""
    eventually(lambda: children_of(pid) == [worker], "the last scratch directory is removed")
    eventually(lambda: not zombies_of(pid), "nannyd has reaped the rest")
    status = status_of(pid)
    anon = int(status["RssAnon"].split()[0]) * 1024
    return len(descriptors_of(pid)), int(status["Threads"]), len(zombies_of(pid)), anon


def test_systemd_notify_is_heard_1000_times_of_1000_and_nothing_grows(nannyd: Host) -> None:
    script = 'systemd-notify --ready "--status=life"; exec sleep 60'
    run = nannyd("--", "sh", "-c", script, config=NOTIFY, systemd=True)
    before, pid = None, 0
    for count in range(1, RESTARTS + 1):
        pid = run.ready()  # every life of them gets ready, or this waits in vain
        if count == WARM_UP:
            before = _figures(run.pid, pid)
        if count < RESTARTS:
            send_signal(pid, signal.SIGKILL)
    assert before is not None
    after = _figures(run.pid, pid)
    assert after[:3] == before[:3]
    assert after[3] - before[3] < MIB
    assert run.stop() == 0
    assert run.events().count("worker-ready") == run.events().count("worker-started") == RESTARTS
    assert run.systemd.all("READY") == ["1"]


@pytest.mark.parametrize("option", ["", "--no-block"])
def test_systemd_notify_of_a_worker_that_ends_at_once_is_heard(nannyd: Host, option: str) -> None:
    run = nannyd("--", "sh", "-c", f"systemd-notify {option} --ready", config=NOTIFY)
    for _ in range(20):
        run.started()
        assert run.wait_for("worker-ended")["result"] == "success"
    assert run.stop() == 0
    assert run.events().count("worker-ready") >= 20


def test_a_grandchild_may_speak_for_the_worker(nannyd: Host) -> None:
    run = nannyd("--", "sh", "-c", "(sh -c 'sh -c \"systemd-notify --ready\"'); sleep 60", config=NOTIFY)
    run.ready()
    assert run.stop() == 0


def test_a_process_with_a_session_of_its_own_may_speak_for_the_worker(nannyd: Host) -> None:
    run = nannyd("--", "sh", "-c", "setsid sh -c 'systemd-notify --ready' & sleep 60", config=NOTIFY)
    run.ready()
    assert run.stop() == 0


# --- What it may say -----------------------------------------------------------------------------------


def test_a_worker_that_is_not_ready_in_time_is_ended(nannyd: Host) -> None:
    run = nannyd.rude("--worker.start-timeout=400ms", vices="--never-ready", config=NOTIFY)
    started = run.started()
    stopping = run.wait_for("stopping-worker")
    assert stopping["reason"] == "not ready within start-timeout 0.4s"
    failed = run.wait_for("worker-failed", worker_pid=started)
    assert (failed["result"], failed["who"]) == ("timeout", "nannyd")
    assert run.started() != started
    assert run.stop() == 0


def test_extend_timeout_gives_more_time_to_start(nannyd: Host) -> None:
    program = "say('EXTEND_TIMEOUT_USEC=20000000'); time.sleep(3.2); say('READY=1'); stay()"
    run = talker(nannyd, program, "--worker.start-timeout=3s")
    run.ready()
    assert "stopping-worker" not in run.events()
    assert run.stop() == 0


def test_extend_timeout_gives_more_time_to_stop_and_systemd_is_asked_for_it(nannyd: Host) -> None:
    program = """
def leave():
    time.sleep(2); os._exit(0)
on_sigterm('EXTEND_TIMEOUT_USEC=90000000', then=leave)
say('READY=1'); stay()
"""
    run = talker(nannyd, program, "--worker.stop-timeout=2s", systemd=True)
    run.ready()
    run.systemd.wait_for("READY")
    said = len(run.systemd.messages)
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["result"] == "success"
    run.systemd.wait_for("STOPPING", "1", after=said)
    asked = [int(value) for value in run.systemd.all("EXTEND_TIMEOUT_USEC")]
    assert max(asked) >= 90_000_000


def test_a_worker_that_goes_on_extending_its_stop_has_its_time(nannyd: Host) -> None:
    program = """
def leave():
    for _ in range(5):
        say('EXTEND_TIMEOUT_USEC=2000000'); time.sleep(0.6)
    os._exit(0)
on_sigterm(then=leave)
say('READY=1'); stay()
"""
    run = talker(nannyd, program, "--worker.stop-timeout=2s", systemd=True)
    run.ready()
    run.systemd.wait_for("READY")
    said, began = len(run.systemd.messages), time.monotonic()
    assert run.stop() == 0
    assert time.monotonic() - began >= 3  # past the stop timeout, and past the first extension
    assert run.wait_for("worker-ended")["result"] == "success"
    assert "killing-worker" not in run.events()
    asked = [m.fields for m in run.systemd.messages[said:] if "EXTEND_TIMEOUT_USEC" in m.fields]
    assert len(asked) >= 5  # systemd must not end the unit meanwhile


def test_a_worker_that_ceases_to_extend_its_stop_is_killed(nannyd: Host) -> None:
    program = """
def leave():
    say('EXTEND_TIMEOUT_USEC=1800000'); time.sleep(0.5)
    say('EXTEND_TIMEOUT_USEC=1800000'); time.sleep(60)
on_sigterm(then=leave)
say('READY=1'); stay()
"""
    run = talker(nannyd, program, "--worker.stop-timeout=2s")
    pid = run.ready()
    began = time.monotonic()
    assert run.stop() == 0
    assert time.monotonic() - began >= 2.3
    run.wait_for("killing-worker", worker_pid=pid)
    failed = run.wait_for("worker-failed", worker_pid=pid)
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("timeout", "nannyd", signal.SIGKILL)


def test_systemd_is_asked_for_the_workers_stop_timeout(nannyd: Host) -> None:
    run = nannyd("--worker.stop-timeout=200s", "--", "sleep", "60", systemd=True)
    run.ready()
    run.systemd.wait_for("READY")
    said = len(run.systemd.messages)
    assert run.stop() == 0
    run.systemd.wait_for("STOPPING", "1", after=said)
    asked = run.systemd.wait_for("EXTEND_TIMEOUT_USEC", after=said).fields["EXTEND_TIMEOUT_USEC"]
    assert int(asked) >= 160_000_000


def test_systemd_is_asked_for_time_also_when_the_worker_is_stopping_already(nannyd: Host) -> None:
    program = "on_sigterm(then=lambda: None); say('READY=1'); say('STOPPING=1'); stay()"
    run = talker(nannyd, program, "--worker.stop-timeout=3s", systemd=True)
    run.ready()
    run.wait_for("stopping-worker")
    run.systemd.wait_for("STATUS", "stopping")
    said = len(run.systemd.messages)
    assert run.stop() == 0
    stopping = run.systemd.wait_for("STOPPING", "1", after=said)
    told = [m for m in run.systemd.messages if "EXTEND_TIMEOUT_USEC" in m.fields and m.at <= stopping.at + 1]
    assert int(told[-1].fields["EXTEND_TIMEOUT_USEC"]) >= 3_000_000


def test_a_worker_that_misses_its_watchdog_is_aborted(nannyd: Host) -> None:
    run = nannyd.rude("--worker.watchdog=300ms", vices="--hang-watchdog", config=NOTIFY)
    pid = run.ready()
    stopping = run.wait_for("stopping-worker")
    assert stopping["reason"] == "no WATCHDOG=1 within 0.3s"
    failed = run.wait_for("worker-failed", worker_pid=pid)
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("watchdog", "nannyd", signal.SIGABRT)
    run.ready()
    assert run.stop() == 0


def test_a_worker_that_feeds_its_watchdog_lives(nannyd: Host) -> None:
    run = nannyd.rude("--worker.watchdog=400ms", vices="--die-after-ready 1.5", config=NOTIFY)
    run.ready()
    assert run.wait_for("worker-ended")["result"] == "success"
    assert run.stop() == 0


def test_a_class_whose_loop_hangs_misses_its_watchdog(nannyd: Host) -> None:
    run = nannyd("--worker.watchdog=500ms", "--worker.class=classes:Hangs")
    run.ready()
    assert run.wait_for("worker-failed")["result"] == "watchdog"
    assert run.stop() == 0


def test_watchdog_trigger_is_a_miss(nannyd: Host) -> None:
    run = talker(nannyd, "say('READY=1'); say('WATCHDOG=trigger'); stay()")
    assert run.wait_for("stopping-worker")["reason"] == "the worker triggered its watchdog"
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["exit_signal"]) == ("watchdog", signal.SIGABRT)
    assert run.stop() == 0


def test_a_worker_may_announce_its_end(nannyd: Host) -> None:
    run = talker(nannyd, "say('READY=1'); say('STOPPING=1'); time.sleep(0.2)", systemd=True)
    pid = run.ready()
    assert run.wait_for("stopping-worker")["reason"] == "the worker said STOPPING=1"
    ended = run.wait_for("worker-ended", worker_pid=pid)
    assert (ended["result"], ended["who"]) == ("success", "worker")
    run.ready()
    assert run.stop() == 0


def test_a_worker_that_announces_its_end_and_stays_is_killed(nannyd: Host) -> None:
    run = talker(nannyd, "say('READY=1\\nSTOPPING=1'); stay()", "--worker.stop-timeout=500ms")
    pid = run.ready()
    failed = run.wait_for("worker-failed", worker_pid=pid)
    assert (failed["result"], failed["who"]) == ("timeout", "nannyd")
    assert run.stop() == 0


def test_errno_and_status_reach_systemd(nannyd: Host) -> None:
    program = """
on_sigterm(then=lambda: os._exit(1))
say('READY=1'); say('STATUS=shard 7 lost', 'ERRNO=5'); stay()
"""
    run = talker(nannyd, program, "--restart.mode=no", systemd=True)
    pid = run.ready()
    run.systemd.wait_for("STATUS", "; worker: shard 7 lost")
    send_signal(pid, signal.SIGTERM)
    assert run.wait() == 1
    run.systemd.wait_for("ERRNO", "5")


def test_a_status_that_is_too_long_for_systemd_is_cut(nannyd: Host) -> None:
    run = talker(nannyd, "say('STATUS=' + 'x' * 60_000); say('READY=1'); stay()", systemd=True)
    run.ready()
    run.systemd.wait_for("STATUS", "; worker: xxx")
    assert run.stop() == 0
    assert max(map(len, run.systemd.all("STATUS"))) < 1000


def test_a_newline_cannot_be_smuggled_into_what_systemd_hears(nannyd: Host) -> None:
    run = nannyd("--worker.class=classes:FailsInConstructor", "--restart.mode=no", systemd=True)
    run.wait()
    for message in run.systemd.messages:
        assert len(message.fields) == 1 or "MONOTONIC_USEC" in message.fields


# --- Barriers and descriptors --------------------------------------------------------------------------


def test_a_barrier_is_answered_by_closing_its_descriptor(nannyd: Host) -> None:
    program = """
import select
reading, writing = os.pipe()
say('STATUS=before'); say('BARRIER=1', fds=[writing]); os.close(writing)
if select.select([reading], [], [], 10)[0] and os.read(reading, 1) == b'': say('READY=1')
stay()
"""
    run = talker(nannyd, program)
    run.ready()
    assert run.stop() == 0


def test_descriptors_that_are_sent_are_closed(nannyd: Host) -> None:
    program = """
say('READY=1')
on_sigterm(then=lambda: os._exit(0))
for count in range(100): say('FDSTORE=1', 'FDNAME=x', fds=[0, 1, 2] * 20)
say('X_NANNYD_ERROR=done'); stay()
"""
    run = talker(nannyd, program)
    run.ready()
    before = set(descriptors_of(run.pid).values())
    run.wait_for("worker-error")
    after = descriptors_of(run.pid)
    assert set(after.values()) <= before
    assert len(after) < 40
    assert run.stop() == 0


def test_nonsense_is_ignored(nannyd: Host) -> None:
    run = nannyd.rude(vices="--notify-bogus", config=NOTIFY)
    pid = run.ready()
    assert lives(pid)
    assert run.stop() == 0


@pytest.mark.parametrize(
    "line",
    [
        "EXTEND_TIMEOUT_USEC=²",
        "EXTEND_TIMEOUT_USEC=" + "9" * 400,
        "EXTEND_TIMEOUT_USEC=" + "9" * 5000,
        "EXTEND_TIMEOUT_USEC=18446744073709551615",
        "ERRNO=²",
        "ERRNO=" + "9" * 5000,
        "READY=1\\nREADY=0",
        "STATUS=\\x00\\x1b[31m",
        "X_NANNYD_ERROR=" + "[" * 50_000,
        "X_NANNYD_ERROR=12",
        "X_NANNYD_ADDRESS=\\udc80",
    ],
    ids=lambda line: line[:24].replace("\\", "_"),
)
def test_a_worker_cannot_break_nannyd_by_saying(nannyd: Host, line: str) -> None:
    program = f"""
sock.send("{line}".encode(errors="surrogateescape"))
say('READY=1'); stay()
"""
    run = talker(nannyd, program, "--worker.start-timeout=10s", systemd=True)
    run.ready()
    assert run.stop() == 0


def test_a_worker_that_floods_its_notify_socket_does_not_hold_up_the_supervisor(nannyd: Host) -> None:
    program = """
say('READY=1')
while True:
    try: say('WATCHDOG=1', 'STATUS=' + 'x' * 1000)
    except OSError: pass
"""
    run = talker(nannyd, program)
    run.ready()
    assert run.stop() == 0
    assert "killing-worker" not in run.events()


def test_a_child_that_floods_the_notify_socket_does_not_hold_up_the_end_of_its_parent(nannyd: Host) -> None:
    program = """
for _ in range(3):
    if not os.fork():
        signal.alarm(60)
        while True:
            try: say('WATCHDOG=1')
            except OSError: pass
say('READY=1')
time.sleep(0.3)
os._exit(3)
"""
    run = talker(nannyd, program)
    run.ready()
    assert run.wait_for("worker-failed")["exit_status"] == 3
    assert run.stop() == 0


# --- Strangers -----------------------------------------------------------------------------------------


def test_a_message_from_outside_is_ignored_and_logged(nannyd: Host) -> None:
    run = nannyd.rude(vices="--never-ready", config=NOTIFY)
    pid = run.started()
    address = environ_of(pid)["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\nSTATUS=hello", address)
    foreign = run.wait_for("foreign-message")
    assert (foreign["sender_pid"], foreign["worker_pid"]) == (os.getpid(), pid)
    assert "worker-ready" not in run.events()
    assert run.stop() == 0


def test_a_message_of_a_stranger_that_is_gone_is_ignored_and_logged(nannyd: Host) -> None:
    run = nannyd.rude(vices="--never-ready", config=NOTIFY)
    address = environ_of(run.started())["NOTIFY_SOCKET"]
    for _ in range(10):
        notify = ["systemd-notify", "--no-block", "--ready", "--status=hello"]
        subprocess.run(notify, env={"NOTIFY_SOCKET": address, "PATH": os.environ["PATH"]}, check=True)
        run.wait_for("foreign-message")
    assert "worker-ready" not in run.events()
    assert run.stop() == 0


def test_each_worker_has_a_notify_socket_of_its_own(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--", "sleep", "60")
    addresses = set()
    for _ in range(3):
        pid = run.ready()
        address = environ_of(pid)["NOTIFY_SOCKET"]
        addresses.add(address)
        send_signal(pid, signal.SIGKILL)
        run.wait_for("worker-failed")
    assert len(addresses) == 3
    run.ready()
    assert not any(os.path.exists(address) for address in addresses)  # noqa: PTH110
    assert run.stop() == 0


def test_a_stranger_who_floods_the_notify_socket_costs_no_life(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", log_format="text")  # many lines of it
    eventually(lambda: any("is ready" in line for line in run.noise), "the worker is ready")
    (pid,) = children_of(run.pid)
    address = environ_of(pid)["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for _ in range(5000):
            with contextlib.suppress(BlockingIOError):
                sock.sendto(b"WATCHDOG=1", address)
    assert lives(pid)
    assert run.stop() == 0


# --- systemd's watchdog --------------------------------------------------------------------------------


def test_the_watchdog_of_systemd_is_fed_from_the_loop(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", systemd=True, environ={"WATCHDOG_USEC": "2000000"})
    run.ready()
    fed = [run.systemd.wait_for("WATCHDOG", "1")]
    for _ in range(3):
        fed.append(run.systemd.wait_for("WATCHDOG", after=run.systemd.messages.index(fed[-1]) + 1))
    for one, next_one in itertools.pairwise(fed):
        assert next_one.at - one.at < 2
    # A nannyd whose loop hangs is noticed.
    send_signal(run.pid, signal.SIGSTOP)
    said = run.systemd.read_all()
    time.sleep(1.5)
    assert run.systemd.read_all() == said + 1
    run.signal(signal.SIGCONT)
    assert run.stop() == 0


def test_a_watchdog_meant_for_another_process_is_not_fed(nannyd: Host) -> None:
    run = nannyd(
        "--",
        "sleep",
        "60",
        systemd=True,
        environ={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())},
    )
    run.ready()
    run.systemd.wait_for("READY")
    time.sleep(0.3)
    assert run.stop() == 0
    assert run.systemd.all("WATCHDOG") == []
