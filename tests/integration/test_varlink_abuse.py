"""Clients of the control socket that are rude, broken, or many; and one beside them that is served."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import random
import select
import socket
import termios
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, connected, eventually
from varlink_peer import STANDARD, Line, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from varlink_peer import Service

MESSAGE_MAX = 1 << 20
MIB = 1 << 20
HELD_MAX = 0.5
"""Seconds of CPU time in one turn of the loop: what only a loop that is really held takes.  5 ms is meant,
and what `make bench` measures."""


class Watcher(Line):
    """The client that is served, whatever others do; it looks what they cost."""

    def __init__(self, service: Service) -> None:
        """Connect, and begin anew with what the service measures of itself."""
        super().__init__(service.path)
        self.before = self.statistics()
        self.slowest = 0.0

    def is_served(self) -> None:
        """Ask something, and note how long the answer took."""
        before = time.monotonic()
        assert self.get("Ping", text="served") == {"text": "served"}
        self.slowest = max(self.slowest, time.monotonic() - before)

    def judge(self, *, grows: float = 16) -> None:
        """Say what it was, which was not too much: of *grows* in MiB, too."""
        after = self.statistics()
        grown = (after["resident"] - self.before["resident"]) / MIB
        print(
            f"held {after['held'] * 1e3:.2f} ms, slowest {self.slowest * 1e3:.1f} ms, grown {grown:.1f} MiB"
        )
        assert after["held"] < HELD_MAX
        assert grown < grows
        assert after["failed"] == self.before["failed"]


@pytest.fixture
def watcher(service: Service) -> Iterator[Watcher]:
    with Watcher(service) as watcher:
        yield watcher


def fill(line: Line, raw: bytes, within: float = 0.3) -> int:
    """Send *raw* again and again until nothing is taken *within* so long; return how many bytes were."""
    line.socket.setblocking(False)
    sent = 0
    while select.select([], [line.socket], [], within)[1]:
        try:
            sent += line.socket.send(raw)
        except (BrokenPipeError, ConnectionResetError):
            break
    line.socket.settimeout(PATIENCE)
    return sent


# --- Messages ---


@pytest.mark.parametrize("raw", [b"\0", b"GET / HTTP/1.1\r\n\0", b"[" * 5000 + b"\0", b"\xff\0"])
def test_garbage_closes_the_connection_after_what_came_before(
    watcher: Watcher, service: Service, raw: bytes
) -> None:
    with service.line() as line:
        line.send(written("Ping", {"text": "before"}) + raw + written("Note", {"text": "after garbage"}))
        assert line.receive() == {"parameters": {"text": "before"}}
        assert line.is_closed()
    assert "after garbage" not in watcher.statistics()["noted"]


def test_a_message_may_have_a_mebibyte_and_no_byte_more(watcher: Watcher, service: Service) -> None:
    room = MESSAGE_MAX - len(written("Ping", {"text": ""})) + 1
    with service.line() as line:
        assert len(line.get("Ping", text="x" * room)["text"]) == room
        line.send(written("Ping", {"text": "x" * (room + 1)}))
        assert line.is_closed()
    watcher.judge()


def test_what_is_longer_is_not_waited_for(watcher: Watcher, service: Service) -> None:
    with service.line() as line:
        assert MESSAGE_MAX <= fill(line, b"x" * 65536, PATIENCE) < MESSAGE_MAX + 8 * 65536 + send_buffer(line)
        assert line.is_closed()
    watcher.judge()


def send_buffer(line: Line) -> int:
    """Return what the kernel keeps of what was sent."""
    return line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of *seeds*, somewhat changed."""
    raw = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0:
                raw[at:at] = rng.choice(WORDS)
            case 1:
                del raw[at : at + rng.randrange(1, 9)]
            case 2:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case _:
                other = rng.choice(seeds)
                raw[at:] = other[rng.randrange(len(other)) :]
    return bytes(raw).strip(b"\0")


def invented(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of *seeds* with other values."""
    call = json.loads(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3))):
        where = call if rng.random() < 0.2 or not call["parameters"] else call["parameters"]
        if isinstance(where, dict):
            name = rng.choice(
                [*where, rng.choice(["more", "oneway", "x", "", "\ud800", "é", "self", "call"])]
            )
            where[name] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(call, ensure_ascii=rng.random() < 0.5).encode(errors="replace")


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**19, 10**20, 0.0, -0.5, 1e308),
    *("", "x", "é", "\ud800", "\0", "x" * 10_000, "org.example.test.Ping", STANDARD),
    *([], [[]], {}, {"x": {"y": [1, 2.5, None]}}, ["x"] * 1000),
]
WORDS = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"null", b"true", b"NaN", b"-", b"1e999", b"9" * 30),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b'"more":true,', b'"oneway":true,'),
    *(b'"parameters":', b'{"', b'"method":', b"0.5", b"[[[[[[[[", b" " * 100, b'"x":{"y":[1]},'),
]


def is_answered(line: Line) -> bool:
    """Read until the reply to `Who`; say whether it came."""
    try:
        while "uid" not in line.receive().get("parameters", {}):
            pass
    except EOFError:
        return False
    return True


@pytest.mark.timeout(300)  # 15 s on a quiet machine
def test_a_hundred_thousand_mutants_meet_no_bug(watcher: Watcher, service: Service) -> None:
    rng = random.Random(20)
    seeds = [
        written("Ping", {"text": "é\U0001f600"})[:-1],
        written("Types", {"i": 1, "f": 2.5, "b": True, "s": "x", "mi": None, "mf": 0})[:-1],
        written("Count", {"n": 3}, more=True)[:-1],
        written("Ping", {"text": "x"}, oneway=True)[:-1],
        written(f"{STANDARD}.GetInfo")[:-1],
        written(f"{STANDARD}.GetInterfaceDescription", {"interface": STANDARD})[:-1],
        '{"method":"org.example.test.Ping","parameters":{"text":"é"}}'.encode(),
    ]
    closed = answered = 0
    with service.lines(20) as lines:
        for number in range(100_000 // len(lines)):
            make = mutated if number % 2 else invented
            for line in lines:
                line.send(make(rng, seeds) + b"\0" + written("Who"))
            for at, line in enumerate(lines):
                if is_answered(line):
                    answered += 1
                else:
                    line.close()
                    lines[at] = service.line()
                    closed += 1
            if number % 100 == 0:
                watcher.is_served()
    print(f"{closed} closed, {answered} answered")
    assert closed > 10_000
    assert answered > 10_000
    watcher.judge(grows=8)


# --- Many ---


def test_a_hundred_thousand_calls_do_not_keep_others_waiting(watcher: Watcher, service: Service) -> None:
    number = 100_000
    with service.line() as line:
        raw = written("Ping", {"text": "x"}) * number
        sender = threading.Thread(target=line.send, args=[raw])
        sender.start()
        for count in range(number):
            assert line.receive() == {"parameters": {"text": "x"}}
            if count % 1000 == 0:
                watcher.is_served()
        sender.join()
    watcher.judge()


def test_calls_that_take_time_do_not_keep_others_waiting(watcher: Watcher, service: Service) -> None:
    with service.lines(3) as lines:
        for line in lines:
            line.send(written("Work", {"seconds": 0.0005}) * 500)
        watcher.is_served()
        for line in lines:
            assert [line.receive() for _ in range(500)] == [{"parameters": {}}] * 500
    watcher.judge()


def test_who_calls_and_does_not_read_is_not_handled_further(watcher: Watcher, service: Service) -> None:
    with service.lines(5) as lines:
        for line in lines:
            assert fill(line, written("Big", {"size": 1000}) * 100) < 4 * MIB
            watcher.is_served()
    watcher.judge()


def test_a_thousand_connections_are_too_many(watcher: Watcher, service: Service) -> None:
    with service.lines(1000) as lines:
        watcher.is_served()
        assert watcher.statistics()["connections"] == 32
        assert all(line.is_closed() for line in lines[31:])
        for line in lines[:31]:
            assert line.get("Ping", text="x") == {"text": "x"}
        watcher.is_served()
    eventually(lambda: watcher.statistics()["connections"] == 1, "the others are forgotten")
    with service.line() as line:
        assert line.get("Ping", text="again") == {"text": "again"}
    watcher.judge()


def test_one_process_does_not_shut_out_the_others_of_its_user(
    serve: Callable[..., Service],
) -> None:
    service = serve(limits={"together": {"ALL": 70}})
    with Watcher(service) as watcher, contextlib.ExitStack() as stack:
        stack.enter_context(connected(service.path, 100))
        assert watcher.statistics()["connections"] == 33
        with service.line() as line:
            assert line.get("Ping", text="x") == {"text": "x"}
        for _ in range(2):
            stack.enter_context(connected(service.path, 100))
        assert watcher.statistics()["connections"] == 70, "there is a bound on all of them"
        with service.line() as line:
            assert line.is_closed()
        watcher.judge()


def test_half_messages_cost_what_was_sent(watcher: Watcher, service: Service) -> None:
    with service.lines(30) as lines:
        for line in lines:
            line.send(b'{"method":"' + b"x" * (MIB // 2))
            watcher.is_served()
    eventually(lambda: watcher.statistics()["connections"] == 1, "the others are forgotten")
    watcher.judge(grows=30)


def test_without_descriptors_the_loop_does_not_spin(serve: Callable[..., Service]) -> None:
    service = serve(
        descriptors=24, limits={"connections": {"LOOK": 100, "ALL": 1}, "together": {"LOOK": 100, "ALL": 1}}
    )
    with Watcher(service) as watcher:
        watcher.get("ThisIsWorker", pid=os.getpid())  # so no descriptor is needed to judge the others
        with service.lines(40) as lines:
            for line in lines:
                line.send(written("Ping", {"text": "x"}))
            assert lines[8].receive() == {"parameters": {"text": "x"}}
            watcher.statistics()
            since = time.monotonic()
            select.select([], [], [], 1.5)
            after = watcher.statistics()
            assert after["connections"] < 24
            most = 60 + time.monotonic() - since
            assert after["turns"] < most, "two for each that was served, and one a second"
            for line in lines[:20]:
                line.close()
            assert [line.receive() for line in lines[20:25]] == [{"parameters": {"text": "x"}}] * 5
        watcher.judge()


# --- Slow ---


def test_a_large_reply_arrives_whole_at_a_slow_reader(watcher: Watcher, service: Service) -> None:
    size = 4 * MIB
    with service.line() as line:
        line.send(written("Big", {"size": size}) + written("Ping", {"text": "behind"}))
        received = bytearray()
        while received.count(0) < 2:
            watcher.is_served()
            received += line.socket.recv(16 << 10)
        large, small, rest = received.split(b"\0")
        assert json.loads(large) == {"parameters": {"text": "x" * size}}
        assert json.loads(small) == {"parameters": {"text": "behind"}}
        assert rest == b""
    watcher.judge(grows=20)


def test_who_reads_slowly_is_not_answered_in_advance(watcher: Watcher, service: Service) -> None:
    with service.line() as line:
        line.send(written("Big", {"size": 100_000}) * 800)
        received = 0
        while received < 8 * MIB:
            received += len(line.socket.recv(16 << 10))
        watcher.judge(grows=4)


def test_a_stream_does_not_wait_for_a_slow_reader(watcher: Watcher, service: Service) -> None:
    with service.line() as line:
        line.send(written("Listen", more=True))
        assert line.receive() == {"parameters": {"text": "listening"}, "continues": True}
        told = 0
        while watcher.get("Tell", size=10_000)["heard"]:
            told += 1
        assert 256 << 10 < told * 10_000 < MIB
        for _ in range(told):
            assert line.receive() == {"parameters": {"text": "x" * 10_000}, "continues": True}
        assert watcher.get("Tell", size=1) == {"heard": 1}
        assert line.receive() == {"parameters": {"text": "x"}, "continues": True}
    watcher.judge()


@pytest.fixture(scope="module")
def hasty(serve: Callable[..., Service]) -> Service:
    """Return a service that waits for nobody, and whose time is the test's."""
    return serve(clock=False, limits={"idle_timeout": 0.4, "half_timeout": 0.6, "stalled_timeout": 0.8})


class Clock(Line):
    """The time of a service."""

    def goes_on(self, seconds: float) -> None:
        """Let *seconds* pass, and the service do what is due."""
        self.get("Pass", seconds=seconds)
        self.is_idle()

    def is_idle(self) -> None:
        """Let the service do what there was to do."""
        for _ in range(3):
            self.get("Ping", text="x")


@pytest.fixture
def clock(hasty: Service) -> Iterator[Clock]:
    with Clock(hasty.path) as clock:
        eventually(lambda: clock.statistics()["connections"] == 1, "those of other tests are forgotten")
        yield clock


def is_let_go(line: Line, clock: Clock, after: float) -> None:
    """Have it that *line* is closed *after* seconds, and not before."""
    clock.goes_on(after - 0.01)
    assert not select.select([line.socket], [], [], 0)[0]
    clock.goes_on(0.02)
    assert line.is_closed()


def test_who_says_nothing_is_let_go(hasty: Service, clock: Clock) -> None:
    with hasty.line() as line:
        eventually(lambda: clock.statistics()["connections"] == 2, "it is connected")
        is_let_go(line, clock, after=0.4)


def test_who_speaks_may_stay(hasty: Service, clock: Clock) -> None:
    with hasty.line() as line:
        for _ in range(5):
            assert line.get("Ping", text="here") == {"text": "here"}
            clock.goes_on(0.3)
        assert line.get("Ping", text="here") == {"text": "here"}
        is_let_go(line, clock, after=0.4)


def test_half_a_call_is_not_waited_for_however_slowly_it_grows(hasty: Service, clock: Clock) -> None:
    with hasty.line() as line:
        line.send(written("Ping", {"text": "x"}) + b'{"method":"')
        assert line.receive() == {"parameters": {"text": "x"}}
        for _ in range(5):
            clock.goes_on(0.1)
            line.send(b"x")
        is_let_go(line, clock, after=0.1)


def test_who_always_has_begun_the_next_call_may_stay(hasty: Service, clock: Clock) -> None:
    raw = written("Ping", {"text": "x"})
    with hasty.line() as line:
        line.send(raw[:10])
        for _ in range(5):
            clock.goes_on(0.5)
            line.send(raw[10:] + raw[:10])
            assert line.receive() == {"parameters": {"text": "x"}}


def test_who_waits_for_an_answer_may_wait(hasty: Service, clock: Clock) -> None:
    with hasty.line() as line, hasty.line() as listening:
        listening.send(written("Listen", more=True))
        assert "continues" in listening.receive()
        line.send(written("Ping", {"text": "x"}) + written("Later", {"delay": 1.2}) + b'{"half":')
        assert line.receive() == {"parameters": {"text": "x"}}
        clock.goes_on(1.3)
        assert line.receive() == {"parameters": {"waited": 1.2}}
        is_let_go(line, clock, after=0.6)  # the half of a call was not waited for before
        assert clock.get("Tell", size=1) == {"heard": 1}
        assert listening.receive()["parameters"] == {"text": "x"}


def come(line: Line) -> int:
    """Return how many bytes could be read."""
    return array("i", fcntl.ioctl(line.socket, termios.FIONREAD, bytes(4)))[0]


@pytest.mark.parametrize("raw", [written("Big", {"size": 4 * MIB}), written("Big", {"size": 1000}) * 2000])
def test_who_takes_nothing_of_an_answer_is_let_go(hasty: Service, clock: Clock, raw: bytes) -> None:
    with hasty.line() as line:
        line.send(raw)
        before = 0
        while come(line) > before or not before:
            before = come(line)
            clock.is_idle()
        reader = select.poll()
        reader.register(line.socket, select.POLLHUP)
        clock.goes_on(0.79)
        assert not reader.poll(0)
        clock.goes_on(0.02)
        assert reader.poll(PATIENCE * 1000)


def test_who_takes_his_time_gets_all(hasty: Service, clock: Clock) -> None:
    with hasty.line() as line:
        line.send(written("Big", {"size": 2 * MIB}))
        received = 0
        while received < 2 * MIB:
            received += len(line.socket.recv(16 << 10))
            clock.goes_on(0.03)  # all in all far longer than it is waited for somebody who takes nothing
