"""What stands in the journal: nannyd's own records, and the worker's lines beside them."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import notices

from .instances import RUDE, rude, run_command, shell, switches, wait_until

if TYPE_CHECKING:
    from .instances import NannydFactory

CLASSES = RUDE.parent


def said(entry: dict[str, Any], *fields: str) -> list[str]:
    return [entry[field] for field in fields]


def test_every_record_of_nannyd_has_its_documented_fields(nannyd: NannydFactory) -> None:
    ids = {one.event: one.message_id for one in vars(notices).values() if isinstance(one, notices.Notice)}
    instance = nannyd("[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n[restart]\ndelay = '50ms'\n")
    worker = instance.worker
    run_command("kill", "-KILL", str(worker))
    instance.wait_for_event("worker-ready", 2)
    instance.reload()
    instance.stop()
    records: dict[str, dict[str, Any]] = {}
    for entry in instance.events():
        records.setdefault(entry["NANNYD_EVENT"], entry)
    assert list(records) == [
        "starting",
        "worker-started",
        "worker-ready",
        "worker-failed",
        "restarting",
        "called",
        "reloaded",
        "stop-requested",
        "stopping-worker",
        "worker-ended",
        "finished",
    ]
    for event, entry in records.items():
        assert entry["MESSAGE_ID"] == ids[event]
        assert said(entry, "NANNYD_INSTANCE", "_SYSTEMD_UNIT") == ["w", instance.name]
        assert entry["_COMM"] == "nannyd"
        assert "" not in entry.values()  # what is unknown has no field
    failed = records["worker-failed"]
    assert said(failed, "WORKER_PID", "RESULT", "WHO", "EXIT_SIGNAL", "NANNYD_GENERATION", "PRIORITY") == [
        str(worker),
        "signal",
        "outside",
        "9",
        "1",
        "4",
    ]
    assert "EXIT_STATUS" not in failed
    assert said(records["worker-ended"], "RESULT", "WHO", "DETAIL") == ["success", "nannyd", "SIGTERM"]
    assert said(records["finished"], "EXIT_STATUS") == ["0"]


def test_lines_of_the_worker_are_its_own(nannyd: NannydFactory) -> None:
    script = """
        echo out
        echo err >&2
        echo '<3>serious' >&2
        sh -c 'echo child; sleep 0.3'
        [ $JOURNAL_STREAM = $(stat --dereference --format=%d:%i /proc/$$/fd/2) ] && echo connected
        exec sleep 99
    """
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\n")
    instance.journal.wait_for("connected", instance.name)
    lines = {
        entry["MESSAGE"]: entry for entry in instance.journal.entries(instance.name, SYSLOG_IDENTIFIER="w")
    }
    assert list(lines) == ["out", "err", "serious", "child", "connected"]
    assert [lines[text]["PRIORITY"] for text in lines] == ["6", "6", "3", "6", "6"]
    leaf = "/" + str(instance.leaf.relative_to("/sys/fs/cgroup"))
    for text, entry in lines.items():
        assert said(entry, "_TRANSPORT", "_SYSTEMD_CGROUP") == ["stdout", leaf]
        assert (entry["_PID"] == str(instance.worker)) == (text != "child")


def test_worker_is_there_until_journald_has_received_its_last_words(nannyd: NannydFactory) -> None:
    worker = shell("echo last words; exit 3")
    restart = 'delay = "0s"\njitter = 0\nstart-limit-burst = 10'
    instance = nannyd(f"[worker]\ncommand = {worker}\n[restart]\n{restart}\n", start=False)
    run_command("systemctl", "start", "--no-block", instance.name)
    instance.wait_for("failed")
    assert instance.journal.messages(instance.name, SYSLOG_IDENTIFIER="w") == ["last words"] * 10


def test_worker_ends_though_journald_does_not_listen(nannyd: NannydFactory) -> None:
    instance = nannyd(
        f"[worker]\ncommand = {shell('trap exit TERM; while :; do echo on; sleep 0.01; done')}\n"
    )
    run_command("systemctl", "kill", "--signal=STOP", "systemd-journald")
    try:
        run_command("systemctl", "stop", instance.name)
    finally:
        run_command("systemctl", "kill", "--signal=CONT", "systemd-journald")
    (ended,) = instance.events("worker-ended")
    assert said(ended, "RESULT", "WHO") == ["success", "nannyd"]


def test_nannyd_is_there_until_journald_has_received_its_last_words(nannyd: NannydFactory) -> None:
    """It asks /proc whose a record is: of a process that is gone it knows no unit."""
    instance = nannyd("[worker]\ncommand = ['/no/such']\n[restart]\nmode = 'no'\n", "Restart=no", start=False)
    run_command("systemctl", "kill", "--signal=STOP", "systemd-journald")
    try:
        run_command("systemctl", "start", "--no-block", instance.name)
        time.sleep(1.2)  # for what takes half a second
        assert instance.main_pid != 0
    finally:
        run_command("systemctl", "kill", "--signal=CONT", "systemd-journald")
    instance.wait_for("failed")
    assert [record["NANNYD_EVENT"] for record in instance.events()][-1] == "finished"


def test_worker_that_floods_the_journal_disturbs_nobody(nannyd: NannydFactory) -> None:
    count = 50_000
    instance = nannyd(f"[worker]\ncommand = {rude('--flood-log', count)}\n", start=False)
    run_command("systemctl", "start", instance.name)
    supervisor = instance.main_pid

    def arrived() -> int:
        command = f"journalctl --after-cursor='{instance.journal.cursor}' --identifier=w --output=cat | wc -l"
        return int(run_command("sh", "-c", command).stdout)

    before, began = switches(supervisor), time.monotonic()
    instance.reload()  # and is answered meanwhile
    wait_until(lambda: arrived() == count, f"{count} lines")
    print(f"{count} lines in {time.monotonic() - began:.1f} s, {switches(supervisor) - before} wake-ups")
    assert switches(supervisor) - before < 60  # a reload takes about ten
    assert instance.status.startswith(f"worker {instance.worker} running")


def test_what_journald_drops_of_a_flood_is_counted_and_costs_the_supervisor_nothing(
    nannyd: NannydFactory,
) -> None:
    """What was dropped is told with the first line that is not: the worker speaks until it is heard.

    It is one process that says it all: of one that is gone journald knows no unit, and drops nothing.
    """
    count = 200_000
    script = f"""
import itertools, os, pathlib
go = pathlib.Path(os.environ["STATE_DIRECTORY"], "go")
go.read_text()
print("a line\\n" * {count}, end="", flush=True)
for number in itertools.count(1):
    go.read_text()
    print("over", number, flush=True)
"""
    instance = nannyd(
        f"[worker]\ncommand = {json.dumps(['/usr/bin/python3', '-IS', '-c', script])}\n",
        "LogRateLimitIntervalSec=2s\nLogRateLimitBurst=100",
        start=False,
    )
    instance.state.mkdir(parents=True)
    go = instance.state / "go"
    run_command("mkfifo", "--mode=0666", go)
    instance.start()

    def worker_is_heard() -> bool:
        go.write_text("\n")  # waits for its reader
        return any(line.startswith("over") for line in instance.journal.messages(SYSLOG_IDENTIFIER="w"))

    supervisor = instance.main_pid
    before, began = switches(supervisor), time.monotonic()
    go.write_text("\n")
    wait_until(worker_is_heard, "a line that is not dropped")
    seconds, woken = time.monotonic() - began, switches(supervisor) - before
    lines = instance.journal.messages(SYSLOG_IDENTIFIER="w")
    notices = "\n".join(instance.journal.messages(SYSLOG_IDENTIFIER="systemd-journald"))
    dropped = sum(map(int, re.findall(rf"Suppressed (\d+) messages from {instance.name}", notices)))
    print(f"{len(lines)} lines arrived, {dropped} were dropped; {seconds:.1f} s, {woken} wake-ups")
    assert 0 < lines.count("a line") < count
    assert len(lines) + dropped == count + int(lines[-1].removeprefix("over "))
    assert woken <= 10 + seconds / 15  # what belongs to the start, the watchdog's
    assert instance.status.startswith(f"worker {instance.worker} running")


def test_traceback_of_a_python_worker_is_shown_whole(nannyd: NannydFactory) -> None:
    instance = nannyd(
        f"""
        [worker]
        class = "classes:FailsInConstructor"
        [nanny.pre-spawn-environ]
        PYTHONPATH = "{CLASSES}"
        [restart]
        mode = "no"
        """,
        "Restart=no",
        start=False,
    )
    assert instance.start(check=False).returncode != 0
    record = instance.wait_for_event("worker-error")
    lines = record["MESSAGE"].splitlines()
    assert lines[0] == f"worker {record['WORKER_PID']} reports an error:"
    assert "Traceback (most recent call last):" in lines
    assert lines[-1] == "ValueError: no such queue: 'jöbs'"
    assert any(f'File "{CLASSES}/classes.py"' in line for line in lines)
    failed = instance.wait_for_event("worker-failed")
    assert said(failed, "RESULT", "WHO", "DETAIL") == ["exit-code", "worker", lines[-1]]
    assert instance.show("ExecMainStatus") == "71"


def test_python_worker_lives_and_is_told_why_it_ends(nannyd: NannydFactory) -> None:
    instance = nannyd(
        f"""
        [worker]
        class = "classes:Good"
        args = ["one", "two"]
        stop-timeout = "10s"
        [worker.kwargs]
        story = "/var/lib/nannyd/w/story"
        [nanny.pre-spawn-environ]
        PYTHONPATH = "{CLASSES}"
        """
    )
    wait_until(lambda: "; worker: working" in instance.status, "the worker's own status")
    instance.stop()
    story = (instance.state / "story").read_text().splitlines()
    assert story[0] == "start one two"
    assert story[1].endswith(" reason=SIGTERM")
    assert instance.wait_for_event("worker-ended")["RESULT"] == "success"
