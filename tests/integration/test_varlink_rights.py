"""Who may do what by the control socket: real users, groups and processes, judged by the kernel's word."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, eventually, send_signal, stat_of
from varlink_peer import INTERFACE, STANDARD, Line, as_user, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from varlink_peer import Service

GROUP, STRANGER, MEMBER, OWN = 64991, 64001, 64002, 64003
NONE, LOOK, OPERATE, ALL = range(4)
MANY = list(range(70_000, 70_300))
"""More groups than Python's getsockopt takes; and 256 are as many as it does."""


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., Service]) -> Service:
    """Return a service that has a group."""
    return serve(group=GROUP, members=[MEMBER], limits={"stranger_timeout": 0.5})


def right_at(service: Service) -> int:
    """Return what one may do, as the service lets one find out."""
    with service.line() as line:
        refused = {"error": f"{INTERFACE}.Refused"}
        answers = {
            needs: line.ask(method).get("error")
            for needs, method in {LOOK: "Who", OPERATE: "Operate", ALL: "All"}.items()
        }
        assert set(answers.values()) <= {None, refused["error"]}
        return max([NONE, *(needs for needs, error in answers.items() if error is None)])


USERS: dict[str, tuple[int, int, list[int], int]] = {
    "root": (0, 0, [], ALL),
    "root with many groups": (0, 0, MANY, ALL),
    "a stranger": (STRANGER, STRANGER, [], NONE),
    "a stranger with groups": (STRANGER, STRANGER, [1, 2, GROUP + 1], NONE),
    "root's group": (STRANGER, 0, [0], NONE),
    "the group": (STRANGER, GROUP, [], OPERATE),
    "the group beside others": (STRANGER, STRANGER, [4, GROUP, 24], OPERATE),
    "the group as one of 256": (STRANGER, STRANGER, [*MANY[:255], GROUP], OPERATE),
    "300 groups, a member": (MEMBER, MEMBER, MANY, OPERATE),
    "300 groups, no member": (STRANGER, STRANGER, MANY, NONE),
    "300 groups, and the group first": (STRANGER, GROUP, MANY, OPERATE),
    "a member of late": (MEMBER, MEMBER, [], NONE),
}
"""The group database is asked only where the kernel's word is too long."""


@pytest.mark.parametrize("user", USERS)
def test_users_may_do_what_their_groups_say(guarded: Service, user: str) -> None:
    uid, gid, groups, right = USERS[user]
    assert as_user(lambda: right_at(guarded), uid, gid, groups) == right


def test_a_refusal_says_what_is_needed_and_names_no_parameter(guarded: Service) -> None:
    def ask() -> list[Any]:
        with guarded.line() as line:
            return [
                line.ask("Operate"),
                line.ask("Ping", nonsense=1),
                line.ask("Count", n=1),
                line.ask("Nothing")["error"],
                line.ask(f"{STANDARD}.GetInfo")["parameters"]["interfaces"],
                "interface org"
                in line.ask(f"{STANDARD}.GetInterfaceDescription", interface=INTERFACE)["parameters"][
                    "description"
                ],
            ]

    refused = {"error": f"{INTERFACE}.Refused", "parameters": {"needs": LOOK}}
    assert as_user(ask, STRANGER, STRANGER, []) == [
        {"error": f"{INTERFACE}.Refused", "parameters": {"needs": OPERATE}},
        refused,
        refused,
        f"{STANDARD}.MethodNotFound",
        [STANDARD, INTERFACE],
        True,
    ]


def test_the_peer_is_whom_the_kernel_names(guarded: Service) -> None:
    with guarded.line() as line:
        assert line.get("Who") == {"pid": os.getpid(), "uid": 0, "gid": os.getgid(), "right": ALL}


def test_nannyds_own_user_may_do_all(serve: Callable[..., Service]) -> None:
    service = serve(uid=OWN, group=GROUP)
    assert as_user(lambda: right_at(service), OWN, OWN, []) == ALL
    assert as_user(lambda: right_at(service), 0, 0, []) == ALL
    assert as_user(lambda: right_at(service), STRANGER, GROUP, []) == OPERATE
    assert as_user(lambda: right_at(service), STRANGER, STRANGER, []) == NONE


def test_descriptors_are_taken_only_of_who_may_do_all(guarded: Service) -> None:
    def are_kept(number: int) -> bool:
        """Say whether descriptors that come with half a call are held: of a pipe without a writer we hear."""
        reader, writer = os.pipe()
        with guarded.line() as line, os.fdopen(reader, "rb") as stream:
            socket.send_fds(line.socket, [b'{"method":'], [writer] * number)
            os.close(writer)
            return not select.select([stream], [], [], 0.5)[0]

    assert as_user(partial(are_kept, 3), 0, 0, [])
    for group in (STRANGER, GROUP):
        for number in (1, 3, 253):
            assert not as_user(partial(are_kept, number), STRANGER, group, [])


# --- From within the worker ---


@pytest.mark.parametrize("user", ["root", "the group", "300 groups, a member"])
def test_a_process_of_the_worker_may_only_look(guarded: Service, user: str) -> None:
    uid, gid, groups, _ = USERS[user]
    ready, go = os.pipe(), os.pipe()

    def look() -> int:
        os.write(ready[1], str(os.getpid()).encode())
        os.read(go[0], 1)
        return right_at(guarded)

    with guarded.line() as line:

        def announce() -> None:
            line.get("ThisIsWorker", pid=int(os.read(ready[0], 20)))
            os.write(go[1], b"x")

        assert as_user(look, uid, gid, groups, beside=announce) == LOOK
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_a_peer_that_is_gone_may_only_look(guarded: Service) -> None:
    ours, theirs = socket.socketpair()
    service_pid = guarded.process.pid

    def connect_and_leave() -> None:
        with guarded.line() as line:
            socket.send_fds(theirs, [b"x"], [line.socket.fileno()])

    guarded.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: stat_of(service_pid)[0] == "T", "the service stands still")
        as_user(connect_and_leave, 0, 0, [])
    finally:
        guarded.process.send_signal(signal.SIGCONT)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    with ours, theirs, Line.of(descriptors[0]) as line:
        assert line.get("Who")["right"] == LOOK
        assert line.ask("All")["error"] == f"{INTERFACE}.Refused"


# --- Who has no rights takes no room of others ---


@pytest.fixture
def crowd(guarded: Service) -> Iterator[Callable[[int], None]]:
    """Have a process of somebody else connect 100 times, say half a word, and stay."""
    children: list[int] = []

    def gather(uid: int) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                lines = [guarded.line() for _ in range(100)]
                os.write(writer, b"x")
                while True:
                    select.select([line.socket for line in lines], [], [])
                    signal.pause()
            finally:
                os._exit(1)
        children.append(child)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)

    yield gather
    for child in children:
        send_signal(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_strangers_do_not_lock_anybody_out(guarded: Service, crowd: Callable[[int], None]) -> None:
    crowd(STRANGER)
    with guarded.line() as line:
        eventually(lambda: line.statistics()["connections"] <= 9, "only so many strangers")
        assert as_user(lambda: right_at(guarded), STRANGER, GROUP, []) == OPERATE
        eventually(lambda: line.statistics()["connections"] == 1, "strangers who say nothing are let go")
        assert line.statistics()["timers"] == 1


def test_strangers_have_little_time(guarded: Service) -> None:
    def wait() -> float:
        since = time.monotonic()
        with guarded.line() as line:
            line.send(written(f"{STANDARD}.GetInfo"))
            line.receive()
            assert line.is_closed()
        return time.monotonic() - since

    assert 0.5 <= as_user(wait, STRANGER, STRANGER, []) < PATIENCE
