"""How nannyd writes its records: never waiting, losing nothing silently, in one form for each reader."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from nannyd.core.plan import LogFormat
from nannyd.supervisor import logs, notices
from nannyd.supervisor.logs import Nonblocking
from nannyd.supervisor.notices import Notice, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY = [value for value in vars(notices).values() if isinstance(value, Notice)]


def lost(count: int) -> str:
    """Word that *count* records were lost."""
    return f"lost {count}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of the smallest size, reading end first."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read(descriptor: int) -> str:
    """Return what is there."""
    try:
        return os.read(descriptor, 1 << 20).decode()
    except BlockingIOError:
        return ""


# --- A stream that never waits -------------------------------------------------------------------------


def test_what_there_is_room_for_is_written_at_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    Nonblocking(writing, lost).write("a line\n")
    assert read(reading) == "a line\n"


def test_the_open_file_of_others_stays_blocking(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    Nonblocking(writing, lost)
    assert os.get_blocking(writing)


def test_a_full_pipe_does_not_block_and_what_is_lost_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stream = Nonblocking(writing, lost)
    os.write(writing, b"x" * 4096)
    for number in range(5):
        stream.write(f"record {number}\n")
    assert read(reading) == "x" * 4096
    stream.write("record 5\n")
    # The first of them was only late, four were lost.
    assert read(reading) == "record 0\nlost 4\nrecord 5\n"
    stream.write("record 6\n")
    assert read(reading) == "record 6\n"


def test_a_record_larger_than_the_pipe_is_never_mixed_with_another(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stream = Nonblocking(writing, lost)
    stream.write("a" * 10_000 + "\n")
    got = ""
    for _ in range(10):
        got += read(reading)
        stream.write("b\n")
    got += read(reading)
    lines = got.splitlines()
    assert lines[0] == "a" * 10_000
    assert set(lines[1:]) <= {"b", "lost 1", "lost 2"}


def test_a_reader_who_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    stream = Nonblocking(writing, lost)
    os.close(reading)
    stream.write("nobody reads this\n")
    os.close(writing)


def test_a_file_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        Nonblocking(file.fileno(), lost).write("a line\n")
    assert (tmp_path / "log").read_text() == "a line\n"


def test_a_socket_is_written_to_and_does_not_block_either() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Nonblocking(theirs.fileno(), lost)
        stream.write("a line\n")
        assert ours.recv(100) == b"a line\n"
        for _ in range(1000):
            stream.write("x" * 10_000 + "\n")
        assert theirs.getblocking()
        stream._socket.close()  # type: ignore[union-attr]


def test_what_cannot_be_encoded_is_escaped(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    Nonblocking(writing, lost).write("caf\udce9 ☕\n")
    assert read(reading) == "caf\\udce9 ☕\n"


# --- Formats -------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where records go to in a test that sets up logging, which is as it was afterwards."""
    path = tmp_path / "said"
    root = logging.getLogger()
    names = ("logThreads", "logMultiprocessing", "logProcesses", "raiseExceptions")
    before = root.handlers, root.level, [getattr(logging, name) for name in names]
    with path.open("w") as file:
        monkeypatch.setattr(logs, "Nonblocking", lambda _, lost: Nonblocking(file.fileno(), lost))
        yield path
    root.handlers, level, switches = before
    root.setLevel(level)
    for name, value in zip(names, switches, strict=True):
        setattr(logging, name, value)


def test_text_begins_with_time_and_instance(said: Path) -> None:
    assert logs.set_up(LogFormat.TEXT, "info", "w1") is LogFormat.TEXT
    say(notices.STOP_REQUESTED, reason="SIGTERM")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} w1: asked to stop by SIGTERM\n", said.read_text())


def test_json_has_the_fields_of_the_notice(said: Path) -> None:
    logs.set_up(LogFormat.JSON, "info", "w1")
    say(notices.WORKER_READY, worker_pid=7, after="5ms")
    record = json.loads(said.read_text())
    del record["time"]
    assert record == {
        "level": "INFO",
        "message": "worker 7 is ready after 5ms",
        "nannyd_instance": "w1",
        "nannyd_event": "worker-ready",
        "message_id": notices.WORKER_READY.message_id,
        "worker_pid": 7,
        "after": "5ms",
    }


def test_what_is_unknown_stays_unknown(said: Path) -> None:
    logs.set_up(LogFormat.JSON, "info", "w1")
    say(notices.WORKER_READY, worker_pid=None, after="5ms")
    record = json.loads(said.read_text())
    assert record["worker_pid"] is None
    assert "None" not in record["message"]


def test_a_record_of_somebody_elses_is_told_too(said: Path) -> None:
    logs.set_up(LogFormat.JSON, "info", "w1")
    logging.getLogger("asyncio").warning("odd: %s", 1)
    record = json.loads(said.read_text())
    assert (record["message"], record["nannyd_instance"]) == ("odd: 1", "w1")


def test_many_lines_are_one_json_line(said: Path) -> None:
    logs.set_up(LogFormat.JSON, "info", "w1")
    say(notices.WORKER_ERROR, worker_pid=1, detail="one\ntwo ☕")
    assert said.read_text().count("\n") == 1
    assert "☕" in said.read_text()


def test_what_is_below_the_level_is_not_said(said: Path) -> None:
    logs.set_up(LogFormat.TEXT, "warning", "w1")
    say(notices.STOP_REQUESTED, reason="SIGTERM")
    assert said.read_text() == ""


def test_losses_are_json_among_json() -> None:
    record = json.loads(logs._lost_as_json(3))
    assert record["nannyd_event"] == "records-lost"
    assert record["message"].startswith("(3 records were lost")


@pytest.mark.parametrize(
    ("stream", "is_journal"), [("{device}:{inode}", True), ("{device}:1", False), ("", False), ("x", False)]
)
def test_the_journal_is_recognised_by_its_stream(
    stream: str, monkeypatch: pytest.MonkeyPatch, *, is_journal: bool
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", stream.format(device=status.st_dev, inode=status.st_ino))
    assert logs.stderr_is_journal() is is_journal
    assert logs.resolve(LogFormat.AUTO) is (LogFormat.JOURNAL if is_journal else LogFormat.TEXT)
    assert logs.resolve(LogFormat.JSON) is LogFormat.JSON


def test_the_journal_gets_fields_in_upper_case(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("systemd._journal")
    sent: list[str] = []
    handler = logs.JournalHandler("w1")
    monkeypatch.setattr(handler, "_send", lambda *fields: sent.extend(fields))
    record = logging.LogRecord(
        "nannyd", logging.WARNING, "file.py", 5, "%s", ("two\nlines",), None, "function"
    )
    record.fields = notices.Fields(nannyd_event="x", worker_pid=7, result=None)
    handler.emit(record)
    assert {"MESSAGE=two\nlines", "PRIORITY=4", "SYSLOG_IDENTIFIER=nannyd", "NANNYD_INSTANCE=w1"} <= set(sent)
    assert {"NANNYD_EVENT=x", "WORKER_PID=7"} <= set(sent)
    assert not [field for field in sent if field.startswith("RESULT=")]  # unknown: not told
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", field.partition("=")[0]) for field in sent)


# --- Notices -------------------------------------------------------------------------------------------


def test_ids_and_events_are_unique() -> None:
    assert len({notice.message_id for notice in EVERY}) == len(EVERY)
    assert len({notice.event for notice in EVERY}) == len(EVERY)


@pytest.mark.parametrize("notice", EVERY, ids=lambda notice: notice.event)
def test_a_notice_is_well_formed(notice: Notice) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", notice.message_id)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", notice.event)
    names = re.findall(r"{(\w+)", notice.text)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)  # fields of the journal
