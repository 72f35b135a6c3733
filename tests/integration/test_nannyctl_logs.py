"""`nannyctl logs` of instances in the foreground: what nannyd itself still has."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from harness import RUDE
from operator_terminal import Terminal, nannyctl, run_instance

if TYPE_CHECKING:
    from harness import Host, Nannyd

WHY = "(no journal is kept here|it was not started as nannyd@a1.service, and its worker's lines go elsewhere)"


def one(host: Host, name: str = "a1") -> Nannyd:
    run = run_instance(host, "--restart.delay=0", "--", "sleep", "1000", name=name)
    run.ready()
    return run


def test_logs_show_the_records_oldest_first_and_say_what_is_missing(nannyd: Host) -> None:
    run = one(nannyd)
    done = nannyctl(nannyd, "logs", "a1")
    assert done.returncode == 0
    assert re.fullmatch(f"a1: {WHY}; these are nannyd's own last records\n", done.stderr)
    told = [line.split(": ", 1)[1] for line in done.stdout.splitlines()]
    assert told == [record["message"] for record in run.records]
    assert re.match(r"[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d a1: supervising a1; ", done.stdout)
    last = nannyctl(nannyd, "logs", "-n1", "a1", "--since=yesterday", "--boot")
    assert last.stdout.splitlines() == done.stdout.splitlines()[-1:]
    assert last.stderr.endswith("last records, whatever --boot and --since says\n")


def test_logs_of_several_are_sorted_by_time_and_by_urgency(nannyd: Host) -> None:
    runs = one(nannyd, "b2"), one(nannyd, "a1")
    for run in runs:
        run.reload()
    assert nannyctl(nannyd, "kill", "a1", "--timeout=0").returncode == 0
    records = [json.loads(line) for line in nannyctl(nannyd, "logs", "*", "--json").stdout.splitlines()]
    assert {record["name"] for record in records} == {"a1", "b2"}
    assert records == sorted(records, key=lambda record: record["at"])
    warnings = nannyctl(nannyd, "logs", "--all", "--json", "-p", "warning").stdout.splitlines()
    assert [json.loads(line)["event"] for line in warnings] == ["worker-killed"] or all(
        json.loads(line)["priority"] <= 4 for line in warnings
    )


def test_follow_shows_what_comes_until_the_instance_is_gone(nannyd: Host) -> None:
    run = one(nannyd)
    terminal = Terminal(nannyd, "logs", "-f", "a1", width=200)
    terminal.expect(r"worker \d+ is ready after")
    with run.connect() as caller:
        caller.get("LogEvent", topic="t", message="hello")
    terminal.expect(r"[^\n]* a1: t: hello\r\n")
    assert run.stop() == 0
    terminal.expect("-- a1 is gone --")
    assert terminal.end() == 0


def test_logs_of_what_is_not_there_or_does_not_run(nannyd: Host) -> None:
    for arguments, status, words in (
        (["logs"], 2, "nannyctl logs needs the name of an instance"),
        (["logs", "nonesuch"], 1, "there is no instance nonesuch"),
        (["logs", "a1", "-p", "loud"], 2, "'loud' is not a level; write one of emerg, alert,"),
        (["list", "-f"], 2, "nannyctl list does not take --follow."),
    ):
        done = nannyctl(nannyd, *arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert words in done.stderr


def test_logs_of_one_that_was_killed(nannyd: Host) -> None:
    run = run_instance(nannyd, "--", *RUDE, name="a1")
    run.ready()
    run.crash()
    done = nannyctl(nannyd, "logs", "a1")
    if "no journal is kept here" in done.stderr:
        assert done.returncode == 1
        assert "and nannyd says nothing: nobody listens at its socket" in done.stderr
    assert "Traceback" not in done.stderr
    one(nannyd)
