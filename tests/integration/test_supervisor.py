"""One worker's life under `nannyd run`: how it starts, how it ends, and what follows."""

from __future__ import annotations

import datetime
import itertools
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import (
    NOTIFY,
    PATIENCE,
    RUDE,
    Host,
    Nannyd,
    Record,
    await_end,
    catches,
    eventually,
    lives,
    parent_of,
    processes_marked,
    read_lines,
    send_signal,
    status_of,
    zombies_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONCE = "--restart.mode=no"


def when(record: Record) -> float:
    """Return the time of a record in seconds."""
    return datetime.datetime.fromisoformat(record["time"]).timestamp()


# --- From start to stop --------------------------------------------------------------------------------


def test_a_command_starts_is_ready_and_stops(nannyd: Host) -> None:
    run = nannyd("--memory.limit=400M", "--", "sleep", "60", systemd=True)
    pid = run.ready()
    assert run.systemd.wait_for("READY", "1").pid == run.pid
    assert parent_of(pid) == run.pid
    assert run.stop() == 0
    await_end(pid)
    ended = run.wait_for("worker-ended")
    assert (ended["result"], ended["who"], ended["exit_signal"]) == ("success", "nannyd", signal.SIGTERM)
    assert run.wait_for("finished")["exit_status"] == 0
    starting, *life, finished = run.events()
    assert (starting, finished) == ("starting", "finished")
    assert life == ["worker-started", "worker-ready", "stop-requested", "stopping-worker", "worker-ended"]
    assert run.systemd.all("READY") == ["1"]


def test_it_works_the_same_without_systemd(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    assert run.stop() == 0


def test_the_status_sentence_follows_the_worker(nannyd: Host) -> None:
    run = nannyd("--memory.limit=400M", "--", "sleep", "60", systemd=True)
    pid = run.ready()
    said = run.systemd.wait_for("STATUS", f"worker {pid} running").fields["STATUS"]
    assert "of 400.0 MiB (0 %)" in said
    assert "memory only polled: " in said
    assert run.stop() == 0
    run.systemd.wait_for("STATUS", f"worker {pid} stopping (SIGTERM)")


def test_a_class_starts_is_ready_and_is_closed(nannyd: Host) -> None:
    story = nannyd.home.base / "story"
    config = f"""
    [worker]
    class = "classes:Good"
    args = ["queue-a"]
    stop-timeout = "100s"
    [worker.kwargs]
    story = "{story}"
    """
    run = nannyd(config=config, systemd=True)
    pid = run.ready()
    assert read_lines(story) == ["start queue-a"]
    run.systemd.wait_for("STATUS", "; worker: working")
    assert run.stop() == 0
    said = re.fullmatch(r"close timeout=([\d.]+) reason=SIGTERM", read_lines(story)[1])
    assert said is not None
    assert 70 < float(said[1]) <= 80  # 80 % of the stop timeout, less what it takes to give up
    ended = run.wait_for("worker-ended", worker_pid=pid)
    assert (ended["result"], ended["who"], ended["exit_status"]) == ("success", "nannyd", 0)


def test_a_class_that_finishes_ends_nannyd_where_the_policy_says_so(nannyd: Host) -> None:
    run = nannyd("--restart.mode=on-failure", "--worker.class=classes:OnlyFinished")
    assert run.wait() == 0
    assert run.wait_for("worker-ended")["who"] == "worker"


def test_systemd_hears_ready_only_when_the_worker_is_ready(nannyd: Host) -> None:
    let = nannyd.home.base / "let"
    os.mkfifo(let)
    script = f"cat {let}; systemd-notify --ready; exec sleep 60"
    run = nannyd("--", "sh", "-c", script, config=NOTIFY, systemd=True)
    run.started()
    run.systemd.wait_for("STATUS", "starting")
    assert "READY" not in {key for message in run.systemd.messages for key in message.fields}
    let.write_text("")
    run.ready()
    run.systemd.wait_for("READY", "1")
    # Until then systemd was asked for more time than the worker took.
    asked = run.systemd.messages[0].fields["EXTEND_TIMEOUT_USEC"]
    assert int(asked) >= 20_000_000


def test_preloads_are_set_up_and_torn_down_around_the_worker(nannyd: Host) -> None:
    story = nannyd.home.base / "story"
    preload = nannyd.home.base / "pre.py"
    preload.write_text(
        "import pathlib\n"
        f"story = pathlib.Path({str(story)!r})\n"
        "def tell(line):\n"
        "    with story.open('a') as file: file.write(line + '\\n')\n"
        "async def nannyd_setup(worker, argv): tell(f'setup {type(worker).__name__} {argv}')\n"
        "def nannyd_teardown(worker): tell('teardown')\n"
    )
    config = f"""
    [worker]
    class = "classes:Good"
    preload = ["{preload}"]
    preload-argv = ["--fast"]
    [worker.kwargs]
    story = "{story}"
    """
    run = nannyd(config=config)
    run.ready()
    assert run.stop() == 0
    first, second, third, last = read_lines(story)
    assert (first, second, last) == ("setup Good ['--fast']", "start", "teardown")
    assert third.startswith("close ")


def test_a_failing_preload_is_a_failed_start_with_its_traceback(nannyd: Host) -> None:
    preload = nannyd.home.base / "pre.py"
    preload.write_text("def nannyd_setup(worker):\n    raise OSError('no such shard')\n")
    run = nannyd(ONCE, "--worker.class=classes:Good", f'--worker.preload=["{preload}"]')
    detail = run.wait_for("worker-error")["detail"]
    assert detail.startswith("Traceback")
    assert "pre.py" in detail
    assert detail.endswith("OSError: no such shard")
    assert run.wait() == 71
    assert run.wait_for("worker-failed")["detail"] == "OSError: no such shard"


def test_the_failure_of_a_class_in_its_start_is_shown(nannyd: Host) -> None:
    run = nannyd(ONCE, "--worker.class=classes:FailsInConstructor", systemd=True)
    error = run.wait_for("worker-error")
    assert error["level"] == "ERROR"
    assert "ValueError: no such queue: 'jöbs'" in error["message"]
    assert run.wait() == 71
    run.systemd.wait_for("STATUS", "exited with status 1")


# --- Exit statuses -------------------------------------------------------------------------------------


def _class_fails(nannyd: Host) -> Nannyd:
    return nannyd(ONCE, "--worker.class=classes:FailsInStart")


def _runs_twice(nannyd: Host) -> Nannyd:
    nannyd("--", "sleep", "60").ready()
    return nannyd("--", "sleep", "60")


ENDS: dict[str, tuple[int, Callable[[Host], Nannyd]]] = {
    "the worker succeeds and the policy is content": (
        0,
        lambda nannyd: nannyd("--restart.mode=on-failure", "--", "true"),
    ),
    "the worker fails after it was ready and the policy says no": (
        1,
        lambda nannyd: nannyd(ONCE, "--", "false"),
    ),
    "the command line is broken": (2, lambda nannyd: nannyd("--no-such-option", "--", "true")),
    "the start limit is hit": (
        69,
        lambda nannyd: nannyd("--restart.delay=0", "--restart.start-limit-burst=3", "--", "false"),
    ),
    "the program is not there": (71, lambda nannyd: nannyd(ONCE, "--", "/no/such/program")),
    "the class cannot start": (71, _class_fails),
    "the worker never gets ready": (
        71,
        lambda nannyd: nannyd.rude(
            ONCE, "--worker.ready=notify", "--worker.start-timeout=300ms", vices="--never-ready"
        ),
    ),
    "memory.mode is cgroup where there is none": (
        71,
        lambda nannyd: nannyd("--memory.mode=cgroup", "--", "true"),
    ),
    "another one supervises the instance": (73, _runs_twice),
    "the configuration is wrong": (78, lambda nannyd: nannyd("--memory.limit=lots", "--", "true")),
}


@pytest.mark.parametrize("why", ENDS)
def test_the_exit_status_is_the_documented_one_when(nannyd: Host, why: str) -> None:
    status, start = ENDS[why]
    assert start(nannyd).wait() == status


def test_the_exit_status_is_70_for_a_bug(nannyd: Host) -> None:
    # What the launcher made sure of is not so any more: the closest to a bug that can be had.
    run = nannyd("--", "sleep", "60")
    nannyd.expect_records.add("internal-error")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RUNTIME_DIRECTORY, "--log-format", "json", "--", "sleep", "60"],
        env={**run.environ, "RUNTIME_DIRECTORY": str(nannyd.home.base / "other")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 70
    assert '"nannyd_event": "internal-error"' in done.stderr
    assert "please report it" in done.stderr


_WITHOUT_RUNTIME_DIRECTORY = """
import os, shutil, sys
from nannyd.config import main
execve = os.execve
def late(*arguments):
    shutil.rmtree(os.environ["RUNTIME_DIRECTORY"])
    open(os.environ["RUNTIME_DIRECTORY"], "w").close()
    execve(*arguments)
os.execve = late
sys.exit(main.main(["run", "t", *sys.argv[1:]]))
"""


def test_a_second_run_is_refused_with_the_pid_of_the_first(nannyd: Host) -> None:
    first = nannyd("--", "sleep", "60")
    first.ready()
    second = nannyd("--", "sleep", "60")
    assert second.wait() == 73
    assert f"pid {first.pid}" in "".join(second.noise)
    assert lives(first.pid)


def test_a_program_that_is_not_there_is_named_and_its_errno_told(nannyd: Host) -> None:
    run = nannyd(ONCE, "--", "/no/such/program", systemd=True)
    failed = run.wait_for("start-failed")
    assert "'/no/such/program': No such file or directory" in failed["detail"]
    assert run.wait() == 71
    run.systemd.wait_for("ERRNO", "2")
    run.systemd.wait_for("STATUS", "/no/such/program")


def test_a_working_directory_that_is_not_there_is_named(nannyd: Host) -> None:
    run = nannyd(ONCE, "--worker.working-directory=/no/such/place", "--", "true")
    assert "working directory '/no/such/place'" in run.wait_for("start-failed")["detail"]
    assert run.wait() == 71


# --- Stopping ------------------------------------------------------------------------------------------


def test_a_second_sigint_kills_at_once(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ignore-sigterm", config=NOTIFY.replace("5s", "1h"))
    pid = run.ready()
    run.signal(signal.SIGINT)
    run.wait_for("stopping-worker")
    assert lives(pid)
    run.insist(signal.SIGINT)
    assert run.wait() == 0
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"]) == ("signal", "nannyd")


def test_sigterm_after_sigint_does_not_kill(nannyd: Host) -> None:
    file = nannyd.home.base / "handled"
    run = nannyd.rude(vices=f"--sigterm-handler {file} --sigterm-delay 0.5", config=NOTIFY)
    run.ready()
    run.signal(signal.SIGINT)
    run.wait_for("stopping-worker")
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.wait_for("worker-ended")["result"] == "success"


def test_sigterm_during_the_start_is_answered(nannyd: Host) -> None:
    run = nannyd.rude(vices="--never-ready", config=NOTIFY, systemd=True)
    run.started()
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["result"] == "success"
    assert "READY" not in {key for message in run.systemd.messages for key in message.fields}


def test_sigterm_during_the_back_off_is_answered_at_once(nannyd: Host) -> None:
    run = nannyd("--restart.delay=60s", "--restart.jitter=0", "--", "false")
    assert run.wait_for("restarting")["seconds"] == pytest.approx(60, abs=0.1)
    assert run.stop(30) == 0


def test_sigterm_before_the_supervisor_is_up_ends_it(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.wait_for("starting")
    run.signal(signal.SIGTERM)
    assert run.wait() in (0, -signal.SIGTERM)
    assert processes_marked(nannyd.home.mark) == []


def test_a_stop_escalates_to_a_kill_at_80_percent_of_the_timeout(nannyd: Host) -> None:
    run = nannyd.rude(vices="--ignore-sigterm --fork-and-leave 2", config=NOTIFY.replace("5s", "1500ms"))
    run.ready()
    run.signal(signal.SIGTERM)
    asked, killed = run.wait_for("stopping-worker"), run.wait_for("killing-worker")
    assert asked["grace"] == "1.2s"
    assert when(killed) - when(asked) > 0.6
    assert run.wait() == 0
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("timeout", "nannyd", signal.SIGKILL)


def test_a_stopped_worker_is_continued_to_end(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    pid = run.ready()
    send_signal(pid, signal.SIGSTOP)
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["exit_signal"] == signal.SIGTERM


def test_the_stop_signal_is_the_configured_one(nannyd: Host) -> None:
    run = nannyd("--worker.stop-signal=SIGUSR1", "--", "sleep", "60")
    run.ready()
    assert run.stop() == 0
    ended = run.wait_for("worker-ended")
    assert (ended["result"], ended["exit_signal"]) == ("success", signal.SIGUSR1)


def test_a_shell_that_passes_the_signal_on_as_143_has_stopped_well(nannyd: Host) -> None:
    run = nannyd("--", "sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.1; done")
    pid = run.ready()
    eventually(lambda: catches(pid, signal.SIGTERM), "the shell has its trap")
    assert run.stop() == 0
    assert run.wait_for("worker-ended")["exit_status"] == 143


CHILD_WITH_HANDLER = """
import os, signal, sys, time
def handle(number, frame):
    with open(sys.argv[1], "a") as file: file.write(f"{role}\\n")
    os._exit(0)
role = "parent" if os.fork() else "child"
signal.signal(signal.SIGTERM, handle)
if role == "child":
    with open(sys.argv[1] + ".up", "w"): pass
while True: time.sleep(0.1)  # pause(2) would sleep through a signal that comes just before it
"""


@pytest.mark.parametrize(("mode", "heard"), [("mixed", {"parent"}), ("control-group", {"parent", "child"})])
def test_kill_mode_decides_who_gets_the_stop_signal(nannyd: Host, mode: str, heard: set[str]) -> None:
    file = nannyd.home.base / "heard"
    command = [sys.executable, "-I", "-S", "-c", CHILD_WITH_HANDLER, str(file)]
    run = nannyd(f"--worker.kill-mode={mode}", "--", *command)
    pid = run.ready()
    eventually(file.with_name("heard.up").exists, "the child has its handler")
    eventually(lambda: catches(pid, signal.SIGTERM), "both have their handler")
    assert run.stop() == 0
    assert set(read_lines(file)) == heard


def test_in_control_group_mode_children_have_the_same_time_as_the_worker(nannyd: Host) -> None:
    file = nannyd.home.base / "late"
    child = f'trap "sleep 0.5; echo child >> {file}; exit" TERM; echo > {file}; while :; do sleep 0.05; done'
    script = f"sh -c '{child}' & exec sleep 60"
    run = nannyd("--worker.kill-mode=control-group", "--worker.stop-timeout=5s", "--", "sh", "-c", script)
    run.ready()
    eventually(file.exists, "the child has its trap")
    assert run.stop() == 0
    assert read_lines(file) == ["", "child"]
    assert "killing-worker" not in run.events()


# --- Whom a worker leaves behind -----------------------------------------------------------------------

WITNESS = """
import os, sys, time
pids, seen, rude = sys.argv[1], sys.argv[2], sys.argv[3:]
alive = []
for pid in open(pids).read().split() if os.path.exists(pids) else []:
    try:
        state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        continue
    if state not in "ZX":
        alive.append(pid)
with open(seen, "a") as file:
    file.write(f"alive: {' '.join(alive)}\\n")
os.execv(rude[0], rude)
"""


@pytest.mark.parametrize(
    "vices",
    [
        "--fork-and-leave 3",
        "--fork-and-leave 3 --setsid",
        "--fork-and-leave 3 --double-fork",
        "--fork-and-leave 3 --double-fork --setsid --ignore-sigterm",
        "--fork-tree 12",
    ],
)
def test_descendants_are_gone_before_the_next_worker_starts(nannyd: Host, vices: str) -> None:
    pids, seen = nannyd.home.base / "pids", nannyd.home.base / "seen"
    vices = f"{vices} --print-pids {pids} --die-after 0.15 --exit-status 1"
    witness = [sys.executable, "-I", "-S", "-c", WITNESS, str(pids), str(seen), *RUDE, *vices.split()]
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=0", "--", *witness)
    for _ in range(4):
        run.started()
    eventually(lambda: len(read_lines(seen)) >= 4, "four workers looked around")
    assert run.stop() == 0
    assert set(read_lines(seen)) == {"alive: "}
    assert len(read_lines(pids)) > 9  # there was somebody to be gone


def test_descendants_are_gone_when_nannyd_has_stopped(nannyd: Host) -> None:
    pids = nannyd.home.base / "pids"
    vices = f"--fork-and-leave 4 --double-fork --setsid --ignore-sigterm --print-pids {pids}"
    run = nannyd.rude("--worker.stop-timeout=500ms", vices=vices)
    run.ready()
    eventually(lambda: len(read_lines(pids)) == 5, "all have been forked")
    assert run.stop() == 0
    assert not any(lives(int(pid)) for pid in read_lines(pids))


def test_zombies_do_not_accumulate(nannyd: Host) -> None:
    script = (
        "import os, sys, signal\n"
        "for _ in range(200):\n"
        "    if not (middle := os.fork()):\n"
        "        if not os.fork():\n"
        "            os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.waitpid(middle, 0)\n"
        f"open({str(nannyd.home.base / 'done')!r}, 'w').close()\n"
        "while True: signal.pause()\n"
    )
    run = nannyd("--", sys.executable, "-I", "-S", "-c", script)
    run.ready()
    eventually((nannyd.home.base / "done").exists, "200 children were forked")
    eventually(lambda: zombies_of(run.pid) == [], "nannyd reaped them")
    assert run.stop() == 0


def test_a_worker_that_is_killed_from_outside_is_told_and_replaced(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--", "sleep", "60")
    first = run.ready()
    send_signal(first, signal.SIGKILL)
    failed = run.wait_for("worker-failed")
    assert (failed["result"], failed["who"], failed["exit_signal"]) == ("signal", "outside", signal.SIGKILL)
    second = run.ready()
    assert second != first
    assert run.stop() == 0


def test_a_fault_of_its_own_is_the_workers(nannyd: Host) -> None:
    run = nannyd.rude(ONCE, vices="--signal-self SIGSEGV")
    failed = run.wait_for("worker-failed")
    assert failed["result"] in ("signal", "core-dump")
    assert failed["who"] == "worker"
    assert run.wait() == 1


# --- Restarts ------------------------------------------------------------------------------------------


def test_the_delay_grows_up_to_its_maximum(nannyd: Host) -> None:
    config = """
    [restart]
    delay = "100ms"
    growth = 2
    max-delay = "300ms"
    jitter = 0
    """
    file = nannyd.home.base / "starts"
    run = nannyd("--", "sh", "-c", f"cut -d ' ' -f 1 /proc/uptime >> {file}; exit 1", config=config)
    waits = [run.wait_for("restarting") for _ in range(4)]
    assert [wait["delay"] for wait in waits] == ["100ms", "200ms", "300ms", "300ms"]
    assert [wait["restarts"] for wait in waits] == [1, 2, 3, 4]
    # From what one worker notes to what the next one notes it takes the delay and more, in hundredths.
    starts = [float(line) for line in read_lines(file)]
    for (one, next_), least in zip(itertools.pairwise(starts), (0.1, 0.2, 0.3), strict=False):
        assert least - 0.011 <= next_ - one < least + 30
    assert run.stop() == 0


def test_a_stable_run_resets_the_growth(nannyd: Host) -> None:
    file = nannyd.home.base / "long"
    config = (
        '[restart]\ndelay = "50ms"\ngrowth = 4\nmax-delay = "800ms"\njitter = 0\nreset-after = "1500ms"\n'
    )
    run = nannyd("--", "sh", "-c", f"[ -e {file} ] && exec sleep 1.6; exit 1", config=config)
    assert [run.wait_for("restarting")["delay"] for _ in range(2)] == ["50ms", "200ms"]
    file.touch()
    while run.wait_for("worker-started") and (delay := run.wait_for("restarting")["delay"]) == "800ms":
        pass
    assert delay == "50ms"
    assert run.stop() == 0


def test_the_start_limit_gives_up_and_says_so(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=3", "--", "false", systemd=True)
    assert run.wait() == 69
    assert run.events().count("worker-started") == 3
    hit = run.wait_for("start-limit-hit")
    assert "3 starts within 5min" in hit["message"]
    run.systemd.wait_for("STATUS", "start-limit-hit")


def test_a_start_limit_of_0_is_none(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=0", "--", "false")
    for _ in range(30):
        run.started()
    assert run.stop() == 0


def test_a_failed_first_start_follows_the_same_policy(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=3", "--", "/no/such/program")
    assert run.wait() == 69
    assert run.events().count("start-failed") == 3


def test_on_abnormal_does_not_restart_after_a_failure_but_after_a_signal(nannyd: Host) -> None:
    was = nannyd.home.base / "was"
    script = f"[ -e {was} ] && exit 3; : > {was}; exec sleep 60"
    run = nannyd("--restart.mode=on-abnormal", "--restart.delay=0", "--", "sh", "-c", script)
    pid = run.ready()
    eventually(was.exists, "the next one will fail")
    send_signal(pid, signal.SIGKILL)
    run.ready()
    assert run.wait_for("giving-up")["result"] == "exit-code"
    assert run.wait() == 1


def test_a_python_worker_sees_the_end_of_its_nannyd_and_ends_too(nannyd: Host) -> None:
    run = nannyd("--worker.class=classes:Good", "--worker.stop-timeout=5s")
    pid = run.ready()
    run.crash()
    await_end(pid)
    for path in nannyd.home.scratch_left():  # nobody came after it to sweep
        path.unlink() if path.is_file() else path.rmdir()
    (nannyd.home.run / "control").unlink()
    for path in nannyd.home.sockets_left():
        path.unlink()


# --- What a worker finds when it is executed -----------------------------------------------------------


def test_a_worker_has_a_session_of_its_own_and_what_was_configured(nannyd: Host, tmp_path: Path) -> None:
    config = f"""
    [worker]
    working-directory = "{tmp_path}"
    umask = "0027"
    nice = 5
    oom-score-adj = 250
    """
    run = nannyd("--", "sleep", "60", config=config)
    pid = run.ready()
    status = status_of(pid)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path)  # noqa: PTH115
    assert status["Umask"] == "0027"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    assert (tmp_path / f"/proc/{pid}/oom_score_adj").read_text() == "250\n"
    # The dynamic loader may still hold a library open: what is inherited stays open, that does not.
    eventually(lambda: sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"], "no inherited descriptor")  # noqa: PTH208
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"  # noqa: PTH115
    assert run.stop() == 0


def test_nannyd_is_called_nannyd(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    run.ready()
    assert status_of(run.pid)["Name"] == "nannyd"
    assert run.stop() == 0


def test_a_dying_nannyd_does_not_wait_for_a_worker_that_is_hard_to_stop_twice(nannyd: Host) -> None:
    run = nannyd.rude("--worker.ready=notify", "--worker.stop-timeout=1s", vices="--ignore-sigterm")
    run.ready()
    assert run.stop() == 0
    assert run.events().count("stopping-worker") == run.events().count("killing-worker") == 1
