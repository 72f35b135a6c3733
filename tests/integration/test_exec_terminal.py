"""`nannyctl exec` with a terminal, as a person at one has it."""

from __future__ import annotations

import re
import signal
import termios
from typing import TYPE_CHECKING

import pexpect
import pytest
from harness import PATIENCE, children_of, command_line, eventually, processes_marked, send_signal, stat_of
from operator_terminal import NANNYCTL, Terminal, environ, run_instance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Host, Nannyd

SHELL = ("env", "PS1=$ ", "sh", "-i")


@pytest.fixture
def run(nannyd: Host) -> Iterator[Nannyd]:
    run = run_instance(nannyd, "--restart.delay=0", "--", "sleep", "1000", name="a1")
    run.ready()
    yield run
    assert run.all("worker-ended") + run.all("worker-failed") == []


def executing(host: Host, *command: str) -> Terminal:
    return Terminal(host, "exec", "a1", "--", *command)


def type_(terminal: Terminal, line: str) -> None:
    terminal.child.sendline(line)


def test_a_command_has_a_terminal_of_its_own_that_is_like_the_operators(nannyd: Host, run: Nannyd) -> None:
    text = executing(
        nannyd, "sh", "-c", "stty size; echo $TERM; tty; tty <&2; exec 3<>/dev/tty && echo own"
    ).read()
    lines = text.splitlines()
    assert lines[:2] == ["40 100", "xterm-256color"]
    assert re.fullmatch(r"/dev/pts/\d+", lines[2])
    assert lines[3:] == [lines[2], "own"]


def test_all_that_was_written_arrives_before_the_end(nannyd: Host, run: Nannyd) -> None:
    terminal = executing(
        nannyd, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 3"
    )
    lines = terminal.child.read().split("\r\n")
    terminal.child.close()
    assert lines == [*(f"line {number}" for number in range(20000)), ""]
    assert terminal.child.exitstatus == 3


def test_what_is_typed_arrives_as_it_is_typed(nannyd: Host, run: Nannyd) -> None:
    """Of a program that wants every key, as an editor does."""
    script = "stty raw -echo; echo ready; dd bs=1 count=6 2>/dev/null | od -An -tx1; stty sane"
    terminal = executing(nannyd, "sh", "-c", script)
    terminal.expect("ready")
    terminal.child.send("\x03\x1a\x1c\x04\r\x1b")
    terminal.expect("03 1a 1c 04 0d 1b")
    assert terminal.end() == 0


def test_keys_that_are_signals_reach_the_command_and_nobody_else(nannyd: Host, run: Nannyd) -> None:
    terminal = executing(nannyd, *SHELL)
    terminal.expect(r"\$ ")
    type_(terminal, "sleep 2001; echo st=$?")
    eventually(lambda: has(run, "sleep 2001"), "it sleeps")
    terminal.child.send("\x03")
    terminal.expect("st=130|\\$ ")
    type_(terminal, "exit 5")
    assert terminal.end() == 5


def has(run: Nannyd, command: str) -> bool:
    """Say whether a process of the test executes *command*."""
    return command in map(command_line, processes_marked(run.home.mark))


def in_front(run: Nannyd, command: str) -> bool:
    """Say whether the process of the test that executes *command* has the foreground of its terminal."""
    stats = [stat_of(pid) for pid in processes_marked(run.home.mark) if command_line(pid) == command]
    return any(stat and stat[_PGRP] == stat[_TPGID] for stat in stats)


_PGRP, _TPGID = 2, 5
"""Fields of /proc/PID/stat, from the state on."""


def test_a_shell_controls_its_jobs(nannyd: Host, run: Nannyd) -> None:
    terminal = executing(nannyd, *SHELL)
    terminal.expect(r"\$ ")
    type_(terminal, "sleep 2002")
    eventually(lambda: has(run, "sleep 2002"), "it sleeps")
    terminal.child.send("\x1a")
    terminal.expect("Stopped")
    type_(terminal, "jobs; bg")
    terminal.expect("Stopped.*sleep 2002")
    type_(terminal, "jobs")
    terminal.expect("Running.*sleep 2002")
    type_(terminal, "fg")
    terminal.expect("sleep 2002")
    eventually(lambda: in_front(run, "sleep 2002"), "the shell has let go of the terminal")
    terminal.child.send("\x03")
    terminal.expect(r"\$ ")
    type_(terminal, "sleep 2003 & exit 0")
    assert terminal.end() == 0
    assert not has(run, "sleep 2003")


def test_the_size_follows_the_operators(nannyd: Host, run: Nannyd) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
    terminal = executing(nannyd, "sh", "-c", script)
    terminal.expect("ready")
    terminal.child.setwinsize(33, 77)
    terminal.expect("33 77")
    terminal.child.send("\x03")
    assert terminal.end() == 130


def test_what_goes_elsewhere_than_to_the_terminal_still_does(
    nannyd: Host, run: Nannyd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("errors") / "errors"
    words = " ".join([*NANNYCTL, "exec", "a1", "--", "sh", "-c", "'tty; echo wrong >&2'", f"2>{file}"])
    child = pexpect.spawn("sh", ["-c", words], env=environ(nannyd), encoding="utf-8", timeout=PATIENCE)
    assert child.read().startswith("/dev/pts/")
    child.close()
    assert (child.exitstatus, file.read_text()) == (0, "wrong\n")


def test_without_a_terminal_on_demand(nannyd: Host, run: Nannyd) -> None:
    terminal = Terminal(nannyd, "exec", "--no-tty", "a1", "--", "sh", "-c", "ps -o tty= $$ | tr -d ' '")
    assert terminal.read() == "?\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_the_operators_terminal_is_as_it_was_however_nannyctl_ends(
    nannyd: Host, run: Nannyd, number: signal.Signals
) -> None:
    # A shell between, as a person has one: the terminal outlives nannyctl.
    words = " ".join([*NANNYCTL, "exec", "a1", "--", "sh", "-c", "'echo ready; sleep 2004'"])
    child = pexpect.spawn(
        "sh",
        ["-c", f"trap : {number.name[3:]}; {words}; echo over $?; cat"],
        env=environ(nannyd),
        encoding="utf-8",
        timeout=PATIENCE,
    )
    before = termios.tcgetattr(child.fileno())
    child.expect("ready")
    eventually(lambda: termios.tcgetattr(child.fileno()) != before, "it is raw")
    assert child.pid is not None
    (client,) = children_of(child.pid)
    send_signal(client, number)
    child.expect(f"over {128 + number}")
    assert termios.tcgetattr(child.fileno()) == before
    eventually(lambda: not has(run, "sleep 2004"), "the command is gone")
    child.close(force=True)


def test_one_that_was_stopped_and_continued_has_its_ways_with_the_terminal_again(
    nannyd: Host, run: Nannyd
) -> None:
    child = pexpect.spawn(
        "bash", ["--norc", "-i"], env=environ(nannyd) | {"PS1": "> "}, encoding="utf-8", timeout=PATIENCE
    )
    child.expect("> ")
    child.sendline(
        " ".join([*NANNYCTL, "exec", "a1", "--", "sh", "-c", "'echo rea''dy; read x; echo got $x'"])
    )
    child.expect("ready")
    raw = termios.tcgetattr(child.fileno())
    assert child.pid is not None
    (client,) = children_of(child.pid)
    send_signal(client, signal.SIGSTOP)
    child.expect("Stopped")
    eventually(lambda: termios.tcgetattr(child.fileno()) != raw, "the shell's ways")
    child.sendline("fg")
    eventually(lambda: termios.tcgetattr(child.fileno()) == raw, "it is raw again")
    child.sendline("this")
    child.expect("got this")
    child.expect("> ")
    child.close(force=True)


def test_the_operators_terminal_is_as_it_was_when_nannyd_is_killed(nannyd: Host, run: Nannyd) -> None:
    words = " ".join([*NANNYCTL, "exec", "a1", "--", "sh", "-c", "'echo ready; sleep 2005'"])
    child = pexpect.spawn(
        "sh", ["-c", f"{words}; echo over $?; cat"], env=environ(nannyd), encoding="utf-8", timeout=PATIENCE
    )
    before = termios.tcgetattr(child.fileno())
    child.expect("ready")
    eventually(lambda: termios.tcgetattr(child.fileno()) != before, "it is raw")
    run.crash()
    child.expect("nannyd is gone, and the command with it\r\nover 125")
    assert termios.tcgetattr(child.fileno()) == before
    eventually(lambda: not has(run, "sleep 2005"), "its terminal hung up")
    child.close(force=True)
    run_instance(nannyd, "--", "sleep", "1000", name="a1").ready()  # and clears up
