"""`nannyctl logs` and `status`: the journal, with the rights of whoever asks."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import PATIENCE, run_command, shell, wait_until
from .test_nannyctl import done, nannyctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import Nannyd, NannydFactory

TALKER = f"""
[worker]
command = {shell('echo "the worker begins"; echo "<3>something serious"; exec sleep infinity')}
[restart]
delay = 0
"""
NEEDS = (
    "to read its journal (the worker's lines, earlier lives) takes root or membership"
    " in the group systemd-journal"
)


@pytest.fixture
def talker(nannyd: NannydFactory) -> Nannyd:
    """Return an instance whose worker has said something in each of two lives, all of it in the journal."""
    instance = nannyd(TALKER)
    done("restart", "w")
    wait_until(lambda: instance.journal.messages(instance.name).count("the worker begins") == 2, "two lives")
    return instance


def member_of(group: str) -> Iterator[str]:
    run_command("usermod", "--append", f"--groups={group}", "bob")
    yield "bob"
    run_command("gpasswd", "--delete", "bob", group)


@pytest.fixture
def reader() -> Iterator[str]:
    """A member of systemd-journal."""
    yield from member_of("systemd-journal")


@pytest.fixture
def operator() -> Iterator[str]:
    """A member of the group nannyd, who may not read the journal."""
    yield from member_of("nannyd")


def lines(instance: Nannyd, *words: str, user: str | None = None) -> list[dict[str, str]]:
    # To the microsecond: the test before may have ended in this second.
    since = int(instance.journal.entries()[0]["__REALTIME_TIMESTAMP"]) / 1e6
    text = done("logs", "w", "--json", f"--since=@{since:.6f}", *words, user=user)
    return [json.loads(line) for line in text.splitlines()]


# What is shown


def test_root_sees_nannyd_the_worker_and_systemd_of_all_lives(talker: Nannyd) -> None:
    found = lines(talker)
    said = [(line["SYSLOG_IDENTIFIER"], line["MESSAGE"]) for line in found]
    assert said.count(("w", "the worker begins")) == 2
    assert said.count(("w", "something serious")) == 2
    assert {line["NANNYD_GENERATION"] for line in found if "NANNYD_GENERATION" in line} >= {"1", "2"}
    assert ("systemd", "Started nannyd@w.service - nannyd worker w.") in said
    text = done("logs", "w", "-n", "4")
    assert len(text.splitlines()) == 4
    assert re.search(
        rf"^\w+ \d+ \d\d:\d\d:\d\d guest w\[{talker.worker}\]: the worker begins$", text, re.MULTILINE
    )


def test_what_is_asked_for_is_journalctls_to_choose(talker: Nannyd) -> None:
    serious = lines(talker, "-p", "err")
    assert [line["MESSAGE"] for line in serious] == ["something serious"] * 2
    assert lines(talker, "--boot")
    assert lines(talker, "-b", "--until=now")
    assert done("logs", "w", "--json", "--until=2001-01-01") == ""
    other = nannyctl("logs", "w", "--since=someday")
    assert other.returncode == 1
    assert "someday" in other.stderr


@pytest.mark.parametrize("words", ["-b -1", "-b 0", "-b-1", "--boot=-1", "--boot all", "-b"])
def test_the_boot_is_written_as_for_journalctl(talker: Nannyd, words: str) -> None:
    theirs = run_command("journalctl", "--unit", talker.name, *words.split(), check=False)
    ours = nannyctl("logs", "w", *words.split())
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ("the worker begins" in ours.stdout) == ("the worker begins" in theirs.stdout)


def test_what_was_stopped_has_its_lines_still(talker: Nannyd) -> None:
    talker.stop()
    said = [line["MESSAGE"] for line in lines(talker)]
    assert said.count("the worker begins") == 2
    assert "Stopped nannyd@w.service - nannyd worker w." in said


def test_what_hangs_has_its_lines_too(talker: Nannyd) -> None:
    talker.kill("SIGSTOP")
    try:
        assert "the worker begins" in done("logs", "w")
        assert "the worker begins" in nannyctl("status", "w", "--timeout=200ms").stdout
    finally:
        talker.kill("SIGCONT")


def test_several_instances_are_shown_in_the_order_of_time(nannyd: NannydFactory) -> None:
    instances = [nannyd(TALKER, name=name) for name in ("wa", "wb")]
    for instance in instances:
        instance.journal.wait_for("something serious", instance.name)
    text = done("logs", "w*", "--json")
    found = [json.loads(line) for line in text.splitlines()]
    assert {line["SYSLOG_IDENTIFIER"] for line in found} >= {"wa", "wb", "nannyd"}
    stamps = [int(line["__REALTIME_TIMESTAMP"]) for line in found]
    assert stamps == sorted(stamps)


def test_following_shows_new_lines(talker: Nannyd) -> None:
    with subprocess.Popen(["nannyctl", "logs", "-f", "w"], stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        out = follower.stdout.fileno()
        try:
            read_until(out, r"the worker begins\n.*serious\n")
            note = '{"topic": "note", "message": "now"}'
            run_command("varlinkctl", "call", "/run/nannyd/w/control", "io.nannyd.Nanny.LogEvent", note)
            read_until(out, r" nannyd\[\d+\]: note: now\n")
            done("kill", "w", "--timeout=0")
            read_until(out, r" w\[\d+\]: the worker begins\n")
        finally:
            follower.terminate()


def read_until(descriptor: int, pattern: str) -> None:
    """Read on until what was read matches *pattern*."""
    text, deadline = "", time.monotonic() + PATIENCE
    while not re.search(pattern, text, re.DOTALL):
        left = deadline - time.monotonic()
        assert select.select([descriptor], [], [], max(0, left))[0], f"no {pattern} in {text}"
        more = os.read(descriptor, 1 << 16)
        assert more, f"the end, and no {pattern} in {text}"
        text += more.decode(errors="replace")


def test_whoever_reads_may_stop_reading(talker: Nannyd) -> None:
    result = run_command("sh", "-c", "nannyctl logs w --json | head --lines=1")
    assert json.loads(result.stdout)
    assert result.stderr == ""


# Rights


def test_members_of_systemd_journal_read_the_same(talker: Nannyd, reader: str) -> None:
    assert lines(talker, user=reader) == lines(talker)
    assert "the worker begins" in nannyctl("status", "w", user=reader).stdout


def test_operators_see_what_nannyd_still_has_and_are_told_what_is_missing(
    talker: Nannyd, operator: str
) -> None:
    result = nannyctl("logs", "w", user=operator)
    assert result.returncode == 0
    assert result.stderr == f"w: {NEEDS}; these are nannyd's own last records\n"
    assert "the worker begins" not in result.stdout
    assert f"w: worker {talker.worker} is ready after " in result.stdout
    status = done("status", "w", user=operator)
    assert f" worker {talker.worker} is ready after " in status
    assert "the worker begins" not in status


def test_others_are_told_both_rights(talker: Nannyd) -> None:
    result = nannyctl("logs", "w", user="bob")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"w: {NEEDS}; and nannyd says nothing: not permitted; needs ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def kept_journal() -> Iterator[None]:
    """Let the journal be kept on the disk, as it usually is: then every user has one of her own."""
    drop_in = Path("/run/systemd/journald.conf.d/zz-kept.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Journal]\nStorage=persistent\n")
    run_command("systemctl", "restart", "systemd-journald")
    run_command("journalctl", "--flush")
    yield
    drop_in.unlink()
    run_command("systemctl", "restart", "systemd-journald")
    shutil.rmtree("/var/log/journal")


def test_users_read_what_is_theirs(her_home: Path, kept_journal: None) -> None:
    (her_home / "own.toml").write_text(TALKER)
    assert done("start", "own", user="alice") == ""
    wait_until(lambda: "something serious" in done("logs", "own", user="alice"), "her worker's lines")
    found = [json.loads(line) for line in done("logs", "own", "--json", user="alice").splitlines()]
    assert {"own", "nannyd", "systemd"} <= {line["SYSLOG_IDENTIFIER"] for line in found}
    assert "something serious" in done("status", "own", user="alice")
    done("stop", "own", user="alice")


def test_users_whose_journal_is_the_systems_see_what_nannyd_has(her_home: Path) -> None:
    (her_home / "own.toml").write_text(TALKER)
    assert done("start", "own", user="alice") == ""
    result = nannyctl("logs", "own", user="alice")
    assert (result.returncode, result.stderr) == (0, f"own: {NEEDS}; these are nannyd's own last records\n")
    assert " is ready after " in result.stdout
    done("stop", "own", user="alice")


# Status


def test_status_ends_with_the_last_lines_of_all(talker: Nannyd) -> None:
    worker = talker.worker
    text = done("status", "w")
    last = text.partition("\n\n")[2].splitlines()
    assert len(last) == 10
    assert any(re.fullmatch(rf"\w+ \d+ [\d:]+ w\[{worker}\]: the worker begins", line) for line in last)
    assert any(
        re.fullmatch(rf"\w+ \d+ [\d:]+ nannyd\[\d+\]: worker {worker} started .*", line) for line in last
    )
    assert len(done("status", "w", "-n", "2").partition("\n\n")[2].splitlines()) == 2
    assert done("status", "w", "-n0").partition("\n\n")[2] == ""
    (found,) = json.loads(done("status", "w", "--json"))
    assert {"at", "priority", "source", "message"} == set(found["lines"][-1])
    assert found["events"][-1]["event"] == "worker-ready"
    talker.stop()
    assert "Stopped nannyd@w.service" in nannyctl("status", "w").stdout


def test_why_ends_with_what_the_worker_said_last(nannyd: NannydFactory) -> None:
    script = "echo starting up; sleep 0.3; echo 'Traceback: it is the disk' >&2; exit 7"
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\n[restart]\ndelay = '1h'\nmax-delay = '1h'\n")
    instance.wait_for_event("restarting")
    instance.journal.wait_for("it is the disk", instance.name)
    text = done("why", "w")
    last = text.rpartition("\n\n")[2].splitlines()
    assert [re.sub(r".* w\[\d+\]: ", "", line) for line in last] == [
        "starting up",
        "Traceback: it is the disk",
    ]
    (told,) = json.loads(done("why", "w", "--json", "-n1"))
    assert [line["message"] for line in told["lines"]] == ["Traceback: it is the disk"]
    instance.stop()
    text = done("why", "w")
    assert "Traceback: it is the disk" in text
    assert "Stopped nannyd@w.service" in text


def test_journal_that_does_not_answer_does_not_hold_up_status(talker: Nannyd, tmp_path: Path) -> None:
    slow = tmp_path / "journalctl"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["nannyctl", "status", "w"], env=environ, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0
    assert f" worker {talker.worker} is ready after " in result.stdout  # what nannyd itself has


# Top


def test_top_shows_the_processor_time_of_the_workers_cgroup(nannyd: NannydFactory) -> None:
    """The share is that of a child of the worker's: the worker itself does nothing but wait."""
    nannyd(f"[worker]\ncommand = {shell('(while :; do :; done) & wait')}\n")
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(screen, (24, 120))
    environ = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        ["nannyctl", "top"], stdin=terminal, stdout=terminal, env=environ, start_new_session=True
    ) as top:
        read_until(screen, r"\bw .*running.*[1-9]\d%")
        os.write(screen, b"q")
        assert top.wait(PATIENCE) == 0
    os.close(screen)
    os.close(terminal)
