"""`Run` beside real workers: what the command is given, how it ends, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import (
    PATIENCE,
    await_end,
    children_of,
    command_line,
    descriptors_of,
    eventually,
    lives,
    processes_marked,
    send_signal,
    zombies_of,
)
from operator_terminal import NANNYCTL, environ, nannyctl, run_instance

from nannyd.supervisor.run import RUNS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Caller, Host, Nannyd

STANDARD = "org.varlink.service"
LOOK = """
import json, os, signal, sys
mask = os.umask(0)
json.dump({
    "environ": dict(os.environ), "directory": os.getcwd(), "umask": mask, "arguments": sys.argv[1:],
    "descriptors": {n: os.readlink(f"/proc/self/fd/{n}") for n in range(256)
                    if os.path.lexists(f"/proc/self/fd/{n}")},
    "leads": os.getsid(0) == os.getpid(), "parent": os.getppid(), "uid": os.getuid(),
    "adj": open("/proc/self/oom_score_adj").read().strip(),
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
}, sys.stdout)
"""


def instance(host: Host, *arguments: str, **others: Any) -> Nannyd:
    """Return an instance with a worker that does nothing."""
    run = run_instance(host, *(arguments or ("--", "sleep", "1000")), name="a1", **others)
    run.ready()
    return run


@contextlib.contextmanager
def nothing() -> Iterator[int]:
    """Return a descriptor of /dev/null."""
    with Path(os.devnull).open("r+b") as file:
        yield file.fileno()


def begin(caller: Caller, *command: str, **parameters: Any) -> int:
    """Have *command* run with nothing to read or write; return its pid."""
    with nothing() as null:
        given = {"command": list(command), **parameters}
        caller.send("Run", given, descriptors=(null, null, null), more=True)
    first = caller.receive()
    assert first.get("continues"), first
    return int(first["parameters"]["processId"])


def end(caller: Caller) -> dict[str, Any]:
    """Return the last reply."""
    reply = caller.receive()
    assert "continues" not in reply
    assert "error" not in reply
    found: dict[str, Any] = reply["parameters"]
    return found


# What it is given


def test_it_gets_environment_directory_and_umask_of_the_instance_and_our_descriptors(
    nannyd: Host, tmp_path: Path
) -> None:
    config = f"""
        [worker]
        working-directory = "{tmp_path}"
        umask = "027"
        [nanny.env]
        FROM_CONFIG = "yes"
    """
    run = instance(nannyd, config=config)
    (tmp_path / "below").mkdir()
    command = ["--", sys.executable, "-c", LOOK, "a b", "-c", "--", ""]
    with (tmp_path / "in").open("w+b") as given, (tmp_path / "out").open("w+b") as taken:
        subprocess.run(
            [*NANNYCTL, "exec", "-e", "MORE=a=b", "-e", "FROM_CONFIG=", "a1", *command],
            env=environ(nannyd),
            stdin=given,
            stdout=taken,
            stderr=taken,
            check=True,
            timeout=PATIENCE,
        )
    found = json.loads((tmp_path / "out").read_text())
    assert found["directory"] == str(tmp_path)
    assert found["umask"] == 0o027
    assert found["arguments"] == ["a b", "-c", "--", ""]
    own = found["environ"]
    assert (own["MORE"], own["FROM_CONFIG"], own["NANNYD_INSTANCE"]) == ("a=b", "", "a1")
    assert own.keys() & {"NOTIFY_SOCKET", "NANNYD_LOCAL_DIRECTORY", "WATCHDOG_USEC"} == set()
    files = {"0": str(tmp_path / "in"), "1": str(tmp_path / "out"), "2": str(tmp_path / "out")}
    assert found["descriptors"] == files
    assert (found["leads"], found["parent"], found["uid"]) == (True, run.pid, os.getuid())
    assert (found["blocked"], found["adj"]) == ([], "1000")
    there = nannyctl(nannyd, "exec", "--directory=below", "a1", "--", "pwd").stdout
    assert there == f"{tmp_path}/below\n"
    assert nannyctl(nannyd, "exec", "-w", "/", "a1", "--", "pwd").stdout == "/\n"


def test_what_goes_through_pipes_arrives_as_it_is(nannyd: Host) -> None:
    instance(nannyd)
    sent = os.urandom(10 << 20)
    done = subprocess.run(
        [*NANNYCTL, "exec", "a1", "--", "sh", "-c", "cat; echo end >&2"],
        env=environ(nannyd),
        input=sent,
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()
    assert done.stderr == b"end\n"


# How it ends


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["a1", "--", "true"], 0, ""),
        (["a1", "--", "sh", "-c", "exit 7"], 7, ""),
        (["a1", "--", "sh", "-c", "exit 255"], 255, ""),
        (["a1", "--", "sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM, ""),
        (["a1", "--", "sh", "-c", "kill -34 $$"], 128 + 34, ""),
        (["--timeout=200ms", "a1", "--", "sleep", "60"], 124, "killed after 200ms"),
        (["a1", "--", "nonesuch"], 127, "a1: cannot find executable 'nonesuch' in PATH="),
        (["a1", "--", "/etc/passwd"], 126, "a1: cannot execute '/etc/passwd': Permission denied"),
        (["-w", "/nonesuch", "a1", "--", "true"], 127, "cannot enter working directory '/nonesuch'"),
        (["--tty", "a1", "--", "true"], 125, "there is no terminal to lend"),
        (["b2", "--", "true"], 125, "there is no instance b2"),
        (["a1", "--", "true", *["x"] * 9000], 125, "is that too long?"),
        (["a1", "--", "true", "\udcff"], 125, "a command is UTF-8"),
        (["a1"], 2, "write nannyctl exec"),
        (["a1", "true"], 2, "takes one name: nannyctl exec NAME -- COMMAND..."),
        (["-e", "A", "a1", "--", "true"], 2, "write nannyctl exec [-e NAME=VALUE]"),
    ],
    ids=lambda value: ascii(" ".join(value[:4])) if isinstance(value, list) else None,
)
def test_the_exit_status_says_how_it_ended(
    nannyd: Host, arguments: list[str], status: int, said: str
) -> None:
    instance(nannyd)
    done = nannyctl(nannyd, "exec", *arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(nannyd: Host, name: str) -> None:
    instance(nannyd)
    script = f"trap 'echo {name}; exit 9' {name}; echo ready; while :; do sleep 0.02; done"
    client = subprocess.Popen(
        [*NANNYCTL, "exec", "a1", "--", "sh", "-c", script],
        env=environ(nannyd),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    client.send_signal(getattr(signal, f"SIG{name}"))
    assert client.communicate(timeout=PATIENCE)[0] == f"{name}\n"
    assert client.returncode == 9


STAYS = """
setsid sleep 2001 &
(setsid sh -c 'trap "" HUP TERM INT; sleep 2002; :' &)
(sleep 2003 &)
env -i setsid sleep 2004 &
echo ready
{}
"""


def sleepers(run: Nannyd) -> list[int]:
    """Return the processes that sleep longer than a worker does."""
    known = processes_marked(run.home.mark)
    unmarked = [child for pid in [run.pid, *known] for child in children_of(pid)]
    return [pid for pid in {*known, *unmarked} if command_line(pid).startswith("sleep 2")]


@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "ended"])
def test_nothing_of_it_outlives_its_caller_or_itself(nannyd: Host, number: int | None) -> None:
    run = instance(nannyd)
    # One that has dropped the mark is found as long as its ancestor lives.
    script = STAYS.format("sleep 2005") if number else STAYS.replace("env -i setsid", "setsid").format("cat")
    client = subprocess.Popen(
        [*NANNYCTL, "exec", "a1", "--", "sh", "-c", script],
        env=environ(nannyd),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    eventually(lambda: len(sleepers(run)) >= 4, "they sleep")
    if number is not None:
        client.send_signal(number)
    client.stdin.close()
    client.wait(PATIENCE)
    client.stdout.close()
    if number is None:
        assert sleepers(run) == [], "the answer comes when nobody is left"
    eventually(lambda: sleepers(run) == [], "all are gone")
    eventually(lambda: zombies_of(run.pid) == [], "all are reaped")
    assert run.all("worker-ended") + run.all("worker-failed") == []


def test_a_stop_of_nannyd_ends_them_and_says_so(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as caller:
        pid = begin(caller, "sh", "-c", "trap '' TERM; setsid sleep 2001 & sleep 2002; :")
        eventually(lambda: len(sleepers(run)) >= 2, "it sleeps")
        assert run.stop() == 0
        ended = {"processId": pid, "exitStatus": None, "signal": "SIGKILL", "timedOut": False}
        assert end(caller) == ended
    assert sleepers(run) == []


def test_what_a_crashed_nannyd_has_left_is_ended_at_the_next_start(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as caller:
        begin(caller, "sh", "-c", "setsid sleep 2001 & sleep 2002; :")
        eventually(lambda: len(sleepers(run)) >= 2, "it sleeps")
        run.crash()
    assert len(sleepers(run)) >= 2
    instance(nannyd)
    assert sleepers(run) == []


def test_the_worker_and_commands_are_nothing_to_each_other(nannyd: Host) -> None:
    run = instance(
        nannyd, "--memory.limit=64M", "--memory.mode=poll", "--restart.delay=0", "--", "sleep", "1000"
    )
    with run.connect() as caller, run.connect() as other:
        eat = "import sys, time; eaten = b'x' * (200 << 20); print('full', flush=True); time.sleep(1000)"
        reader, writer = os.pipe()
        command = [sys.executable, "-c", eat]
        caller.send("Run", {"command": command}, descriptors=(reader, writer, writer), more=True)
        pid = caller.receive()["parameters"]["processId"]
        assert os.read(reader, 10) == b"full\n"
        memory = other.get("Status")["memory"]
        assert memory["workingSet"] < 64 << 20
        other.get("Restart")
        run.ready()
        assert lives(pid)
        send_signal(pid, signal.SIGKILL)
        assert end(caller)["signal"] == "SIGKILL"
        assert other.get("Status")["generation"] == 2
        os.close(reader)
        os.close(writer)
    assert [record["result"] for record in run.all("worker-ended") + run.all("worker-failed")] == ["success"]


def test_three_hundred_commands_leave_nothing_behind(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as caller, nothing() as null:

        def one(command: list[str]) -> None:
            caller.send("Run", {"command": command}, descriptors=(null, null, null))
            caller.receive()

        one(["true"])
        before = descriptors_of(run.pid)
        for number in range(300):
            one([["true"], ["false"], ["nonesuch"], ["sh", "-c", "sleep 2001 &"]][number % 4])
        assert descriptors_of(run.pid) == before
        eventually(lambda: zombies_of(run.pid) == [], "nobody is left to be reaped")
        assert len(children_of(run.pid)) == 1


def test_there_is_an_end_to_how_many(nannyd: Host) -> None:
    run = instance(nannyd)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(run.connect()) for _ in range(RUNS_MAX + 1)]
        pids = [begin(caller, "sleep", "2001") for caller in callers[:-1]]
        with nothing() as null:
            callers[-1].send("Run", {"command": ["true"]}, descriptors=(null, null, null))
        reply = callers[-1].receive()
        assert reply["error"] == "io.nannyd.Nanny.TooManyRuns"
        callers[0].socket.close()
        await_end(pids[0])
        eventually(lambda: zombies_of(run.pid) == [], "its place is free")
        begin(callers[-1], "sleep", "2001")


# Who calls it in another way than it is meant


def test_what_cannot_be_run_is_refused_in_words(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as caller, nothing() as null:
        three = (null, null, null)
        for parameters, descriptors, parameter in (
            ({"command": []}, three, "command"),
            ({"command": ["true"]}, (), "descriptors"),
            ({"command": ["true"]}, (null, null), "descriptors"),
            ({"command": ["true"], "terminal": True}, three, "terminal"),
            ({"command": ["true"], "environ": {"A=B": "x"}}, three, "environ"),
            ({"command": ["true"], "environ": {"A": "\0"}}, three, "environ"),
            ({"command": ["true"], "timeout": -1}, three, "timeout"),
        ):
            caller.send("Run", parameters, descriptors=descriptors)
            reply = caller.receive()
            assert reply["error"] == "io.nannyd.Nanny.InvalidArgument", reply
            assert reply["parameters"]["parameter"] == parameter
        caller.send("Run", {"command": ["true", "\0"]}, descriptors=three)
        assert caller.receive()["error"] == "io.nannyd.Nanny.CannotExecute"
        assert caller.call("RunSignal", processId=run.pid, signal=9)["error"] == "io.nannyd.Nanny.NoSuchRun"
        for number in (0, -1, 65, 1 << 40):
            reply = caller.call("RunSignal", processId=1, signal=number)
            assert reply["parameters"]["parameter"] == "signal"


def test_descriptors_that_nobody_wants_are_closed(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as caller, nothing() as null:
        caller.get("Status")
        before = descriptors_of(run.pid)
        for _ in range(50):
            caller.send("Status", descriptors=(null, null, null))
            assert "error" not in caller.receive()
            caller.send(f"{STANDARD}.GetInfo", descriptors=(null,))
            assert "error" not in caller.receive()
        assert descriptors_of(run.pid) == before


@pytest.mark.parametrize("number", [4, 100, 253])
def test_who_sends_more_than_a_call_takes_is_not_talked_to(nannyd: Host, number: int) -> None:
    run = instance(nannyd)
    with run.connect() as watcher:
        watcher.get("Status")
        before = descriptors_of(run.pid)
        with run.connect() as caller, nothing() as null:
            caller.send("Run", {"command": ["true"]}, descriptors=[null] * number)
            with pytest.raises(ConnectionResetError):
                caller.receive()
        assert "error" not in watcher.call("Status")
        assert descriptors_of(run.pid) == before


def test_descriptors_do_not_pile_up_before_a_call_is_complete(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as watcher:
        watcher.get("Status")
        before = len(descriptors_of(run.pid))
        with run.connect() as caller, nothing() as null:
            with contextlib.suppress(BrokenPipeError):
                for _ in range(200):
                    socket.send_fds(caller.socket, [b" "], [null])
                    # the connection, three, and the one that is too many until it is closed
                    assert len(descriptors_of(run.pid)) <= before + 5
            with pytest.raises(ConnectionResetError):
                caller.receive()
        watcher.get("Status")
        assert len(descriptors_of(run.pid)) == before


def test_where_our_table_is_full_nothing_is_left_of_what_came(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as watcher, run.connect() as caller, nothing() as null:
        watcher.get("Status")
        caller.get("Status")
        before = descriptors_of(run.pid)
        limits = resource.prlimit(run.pid, resource.RLIMIT_NOFILE)
        free = [number for number in range(max(before) + 3) if number not in before]
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (free[1], limits[1]))  # room for one
        caller.send("Run", {"command": ["true"]}, descriptors=(null, null, null))
        with pytest.raises(ConnectionResetError):
            caller.receive()
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, limits)
        assert len(descriptors_of(run.pid)) == len(before) - 1, "the connection's own"
        watcher.send("Run", {"command": ["true"]}, descriptors=(null, null, null))
        assert end(watcher)["exitStatus"] == 0


def test_who_hangs_up_with_half_a_call_takes_his_descriptors_along(nannyd: Host) -> None:
    run = instance(nannyd)
    with run.connect() as watcher:
        watcher.get("Status")
        before = descriptors_of(run.pid)
        with run.connect() as caller:
            reader, writer = os.pipe()
            socket.send_fds(caller.socket, [b'{"method":'], [writer])
            os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            assert stream.read() == b"", "the last writer has closed it"
        watcher.get("Status")
        assert descriptors_of(run.pid) == before


def test_a_terminal_of_another_session_is_not_taken_away_from_it(nannyd: Host) -> None:
    run = instance(nannyd)
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        holder = subprocess.Popen(
            ["setsid", "--ctty", "sleep", "1000"], stdin=slave, env=environ(nannyd), start_new_session=False
        )
        eventually(lambda: Path(f"/proc/{holder.pid}/stat").read_text().split()[6] != "0", "it has it")
        with run.connect() as caller:
            parameters = {"command": ["true"], "terminal": True}
            caller.send("Run", parameters, descriptors=(slave, slave, slave))
            reply = caller.receive()
        assert reply["error"] == "io.nannyd.Nanny.CannotExecute"
        assert "controlling terminal" in reply["parameters"]["reason"]
        assert holder.poll() is None
        holder.kill()
        holder.wait()
    finally:
        os.close(master)
        os.close(slave)
