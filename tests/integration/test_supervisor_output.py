"""The worker's output and nannyd's own records: where they go, and that nobody waits for a reader."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, Host, await_end, children_of, eventually, lives, read_lines, send_signal

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE_ID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose reading end is nobody's but the test's."""
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def workers_of(pid: int) -> list[int]:
    """Return the children of a nannyd that are no helpers: who is killed here is the worker, not rm(1)."""
    return [child for child in children_of(pid) if _comm(child) not in ("rm", "nannyd")]


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "rm"  # gone meanwhile


def only_worker(pid: int) -> int:
    """Wait for the worker of a nannyd."""
    eventually(lambda: len(workers_of(pid)) == 1, "the worker is there")
    return workers_of(pid)[0]


def read_all(descriptor: int) -> str:
    """Return what can be read now and until half a second passes without any news."""
    chunks = []
    while select.select([descriptor], [], [], 0.5)[0]:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError:  # a terminal that nobody has open any more
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 1, 2}])
def test_streams_that_the_caller_closed_are_dev_null(nannyd: Host, closed: set[int]) -> None:
    told = nannyd.home.base / "told"
    look = f'streams=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo "$streams" >{told}'
    command = [sys.executable, "-m", "nannyd", "run", "t", "--restart.mode=no", "--", "sh", "-c", look]
    closing = "".join(f" {descriptor}>&-" for descriptor in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@"{closing}', "sh", *command],
        env=nannyd.home.environ(),
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0
    streams = read_lines(told)
    assert {number for number in range(3) if streams[number] == "/dev/null"} == {0} | closed


# --- Readers who do not read ---------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_worker_that_floods_what_nobody_reads_does_not_block_the_supervisor(
    nannyd: Host, pipe: tuple[int, int], log_format: str
) -> None:
    reading, writing = pipe
    run = nannyd.rude(vices="--flood-log forever", stdout=writing, stderr=writing, log_format=log_format)
    eventually(lambda: select.select([], [writing], [], 0)[1] == [], "the pipe is full")
    assert run.stop() == 0  # who waits for a reader would never end
    os.close(writing)
    assert "rude: xxx" in read_all(reading)


def test_records_that_do_not_fit_are_counted_and_told(nannyd: Host, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    run = nannyd.rude(
        "--restart.delay=0",
        "--restart.start-limit-burst=0",
        vices="--flood-log forever",
        stdout=writing,
        stderr=writing,
        log_format="json",
    )
    eventually(lambda: select.select([], [writing], [], 0)[1] == [], "the pipe is full")
    for _ in range(3):
        pid = only_worker(run.pid)
        send_signal(pid, 9)
        await_end(pid)
    text = ""
    deadline = time.monotonic() + PATIENCE
    while "records-lost" not in text and time.monotonic() < deadline:
        text = text[-1000:] + os.read(reading, 1 << 16).decode()
        if "records-lost" not in text and len(text) > 1 << 15:
            with contextlib.suppress(IndexError, ProcessLookupError):
                send_signal(workers_of(run.pid)[0], 9)
    assert re.search(r"[1-9]\d* records were lost: nobody read them in time", text)
    run.signal(15)
    while run.process.poll() is None:
        if select.select([reading], [], [], 0.1)[0]:
            os.read(reading, 1 << 16)


def test_nannyd_survives_the_end_of_its_reader(nannyd: Host, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    run = nannyd("--restart.delay=0", "--", "sleep", "60", stderr=writing, log_format="text")
    os.close(writing)
    os.close(reading)
    first = only_worker(run.pid)
    send_signal(first, 9)
    eventually(lambda: workers_of(run.pid) not in ([], [first]), "there is a next worker")
    assert run.stop() == 0


def test_a_worker_may_close_its_output(nannyd: Host) -> None:
    run = nannyd.rude(vices="--close-output")
    pid = run.ready()
    eventually(lambda: not Path(f"/proc/{pid}/fd/1").exists(), "its output is closed")
    assert lives(pid)
    assert run.stop() == 0


def test_a_record_larger_than_the_pipe_arrives_whole(nannyd: Host, pipe: tuple[int, int]) -> None:
    # 16,000 characters of four bytes each, in two fields of the record.
    reading, writing = pipe
    script = (
        "import json, os, socket, time\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "text = json.dumps('🙂' * 16_000 + '\\nthe last line', ensure_ascii=False)\n"
        "sock.sendto(f'X_NANNYD_ERROR={text}'.encode(), os.environ['NOTIFY_SOCKET'])\n"
    )
    worker = [sys.executable, "-I", "-S", "-c", script]
    run = nannyd("--restart.delay=300ms", "--", *worker, stderr=writing)
    os.close(writing)
    errors = []
    with os.fdopen(reading, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            record = json.loads(line)
            errors += [record["detail"]] if record["nannyd_event"] == "worker-error" else []
            if len(errors) == 3:
                break
    assert run.stop() == 0
    assert all(error.endswith("🙂\nthe last line") for error in errors)


# --- The worker's output -------------------------------------------------------------------------------


def test_the_workers_output_passes_through_unchanged(nannyd: Host) -> None:
    script = r"printf 'plain \377\000 bytes'; printf 'and errors\n' >&2; exec sleep 60"
    run = nannyd("--", "sh", "-c", script)
    run.ready()
    eventually(lambda: "and errors\n" in run.noise, "its errors arrive where nannyd's go")
    assert run.stop() == 0
    assert run.stdout.read_bytes() == b"plain \xff\x00 bytes"


def test_standard_output_has_nothing_of_nannyds(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", log_format="text")
    eventually(lambda: any("is ready" in line for line in run.noise), "the worker is ready")
    assert run.stop() == 0
    assert run.stdout.read_bytes() == b""


# --- nannyd's records ----------------------------------------------------------------------------------


def test_a_json_record_has_the_fields_of_the_journals_entry(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=0", "--", "false")
    pid = run.ready()
    run.wait_for("worker-failed")
    assert run.stop() == 0
    for record in run.records:
        assert {"level", "message", "time", "nannyd_instance", "nannyd_event", "message_id"} <= set(record)
        assert record["nannyd_instance"] == "t"
        assert MESSAGE_ID.fullmatch(record["message_id"])
    failed = run.all("worker-failed")[0]
    assert failed["level"] == "WARNING"
    assert (failed["worker_pid"], failed["result"], failed["who"]) == (pid, "exit-code", "worker")
    assert (failed["exit_status"], failed["exit_signal"], failed["nannyd_generation"]) == (1, None, 1)


def test_each_kind_of_record_has_a_message_id_of_its_own(nannyd: Host) -> None:
    run = nannyd("--restart.delay=0", "--restart.start-limit-burst=2", "--", "false")
    assert run.wait() == 69
    ids = {record["nannyd_event"]: record["message_id"] for record in run.records}
    assert len(set(ids.values())) == len(ids) > 5


def test_text_is_for_people(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", log_format="text")
    eventually(lambda: any("is ready" in line for line in run.noise), "the worker is ready")
    assert run.stop() == 0
    assert not run.records
    for line in run.noise:
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} t: ", line)
        assert "\x1b" not in line


def test_text_is_the_default_where_no_journal_listens(nannyd: Host) -> None:
    run = nannyd("--", "true", log_format=None, environ={"JOURNAL_STREAM": "1:2"})
    eventually(lambda: any("is ready" in line for line in run.noise), "the worker is ready")
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} t: ", run.noise[0])


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_no_color_is_set(
    nannyd: Host, no_color: str | None, *, coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    run = nannyd(
        "--restart.mode=no", "--", "false", stderr=theirs, log_format="text", environ={"NO_COLOR": no_color}
    )
    os.close(theirs)
    assert run.wait() == 1
    text = read_all(ours)
    os.close(ours)
    assert ("\x1b[33m" in text) is coloured
    assert "exited with status 1" in text


def test_records_go_to_a_socket_too(nannyd: Host) -> None:
    ours, theirs = socket.socketpair()
    run = nannyd("--", "sleep", "60", stderr=theirs.fileno())
    theirs.close()
    with ours, ours.makefile() as lines:
        for line in lines:
            if json.loads(line)["nannyd_event"] == "worker-ready":
                break
    assert run.stop() == 0


def test_a_level_silences_what_is_below(nannyd: Host) -> None:
    run = nannyd("--log-level", "warning", "--restart.mode=no", "--", "false")
    assert run.wait() == 1
    assert set(run.events()) <= {"worker-failed", "giving-up"}
    run.wait_for("worker-failed")
