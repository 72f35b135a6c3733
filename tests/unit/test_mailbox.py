"""The manager's end of a worker's NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from nannyd.core import wire
from nannyd.supervisor.mailbox import Mailbox, Sender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def descriptors() -> set[str]:
    """Return the open descriptors."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Post:
    """A mailbox, its loop, and what was delivered."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.delivered: list[tuple[dict[str, str], int]] = []
        self.mailbox = Mailbox(directory, self.loop, self.deliver)
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sender.connect(str(self.mailbox.path))

    def deliver(self, said: dict[str, str], sender: Sender) -> None:
        """Note what was said, and by whom."""
        self.delivered.append((said, sender.pid))

    def turn(self) -> None:
        """Let the loop handle what is ready."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def close(self) -> None:
        self.sender.close()
        self.mailbox.close()
        self.loop.close()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    before = descriptors()
    made = Post(tmp_path)
    yield made
    made.close()
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_a_message_is_delivered_with_its_senders_pid(post: Post) -> None:
    post.sender.send(b"READY=1\nSTATUS=a=b\n")
    post.turn()
    assert post.delivered == [({"READY": "1", "STATUS": "a=b"}, os.getpid())]


def test_the_socket_is_private_and_has_a_name_nobody_can_guess(post: Post, tmp_path: Path) -> None:
    assert stat.S_IMODE(post.mailbox.path.stat().st_mode) == 0o600
    other = Mailbox(tmp_path, post.loop, lambda said, _: None)
    assert other.path != post.mailbox.path
    assert other.path.name.startswith("notify-")
    other.close()


def test_sockets_are_not_inherited(post: Post) -> None:
    assert not os.get_inheritable(post.mailbox._socket.fileno())


@pytest.mark.parametrize(
    ("datagram", "said"),
    [
        (b"", {}),
        (b"\n\n", {}),
        (b"nonsense", {}),
        (b"=x", {"": "x"}),
        (b"READY=1\nREADY=0", {"READY": "0"}),
        (b"STATUS=\xff", {"STATUS": "\\xff"}),
        (b"STATUS=a\0b", {"STATUS": "a\0b"}),
        (b"X=" + b"x" * 100_000, {"X": "x" * 100_000}),
    ],
)
def test_any_datagram_is_taken(post: Post, datagram: bytes, said: dict[str, str]) -> None:
    post.sender.send(datagram)
    post.turn()
    assert post.delivered == [(said, os.getpid())]


def test_the_largest_error_arrives_whole(post: Post) -> None:
    error = wire.format_error("🙂" * wire.ERROR_MAX)
    post.sender.send(f"X_NANNYD_ERROR={error}\nSTOPPING=1".encode())
    post.turn()
    said = post.delivered[0][0]
    assert wire.parse_error(said["X_NANNYD_ERROR"]) == "🙂" * wire.ERROR_MAX
    assert said["STOPPING"] == "1"


def test_a_barrier_is_answered_after_what_came_before_it(post: Post) -> None:
    reading, writing = os.pipe()
    post.sender.send(b"STATUS=first")
    socket.send_fds(post.sender, [b"BARRIER=1"], [writing])
    os.close(writing)
    post.turn()
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""
    assert [said for said, _ in post.delivered] == [{"STATUS": "first"}, {"BARRIER": "1"}]
    os.close(reading)


def test_every_descriptor_that_is_sent_is_closed(post: Post) -> None:
    before = descriptors()
    for _ in range(5):
        socket.send_fds(post.sender, [b"FDSTORE=1"], [0] * 253)
        post.turn()
    assert descriptors() == before
    assert len(post.delivered) == 5


def test_who_is_told_may_copy_a_descriptor_while_it_is_told(tmp_path: Path) -> None:
    copies: list[int] = []
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(tmp_path, loop, lambda _, sender: copies.extend(map(os.dup, sender.descriptors)))
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(mailbox.path))
        socket.send_fds(sender, [b"FDSTORE=1\nFDNAME=x"], [writing])
        os.close(writing)
        loop.call_soon(loop.stop)
        loop.run_forever()
    (copy,) = copies
    os.write(copy, b"kept")
    os.close(copy)
    assert os.read(reading, 10) == b"kept"
    assert os.read(reading, 10) == b""
    os.close(reading)
    mailbox.close()
    loop.close()


def test_descriptors_are_closed_even_if_the_message_cannot_be_handled(tmp_path: Path) -> None:
    def fail(_said: dict[str, str], _sender: Sender) -> None:
        raise RuntimeError("cannot")

    failures: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: failures.append(str(context["exception"])))
    mailbox = Mailbox(tmp_path, loop, fail)
    before = descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(mailbox.path))
        socket.send_fds(sender, [b"FDSTORE=1"], [0, 1, 2])
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert failures == ["cannot"]
    assert descriptors() == before
    mailbox.close()
    loop.close()


def test_a_flood_does_not_keep_the_loop_from_other_work(post: Post) -> None:
    turns = 0

    def other_work() -> None:
        nonlocal turns
        turns += 1
        post.sender.send(b"WATCHDOG=1")
        if turns < 500:
            post.loop.call_soon(other_work)
        else:
            post.loop.stop()

    post.loop.call_soon(other_work)
    post.loop.run_forever()
    assert turns == 500
    assert len(post.delivered) >= 498


def test_what_was_said_before_an_end_is_drained(post: Post) -> None:
    for number in range(5):
        post.sender.send(f"STATUS={number}".encode())
    post.mailbox.drain()
    assert [said["STATUS"] for said, _ in post.delivered] == list("01234")


def test_a_flood_does_not_make_draining_endless(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        mailbox = Mailbox(tmp_path, loop, lambda said, _: sender.sendall(b"WATCHDOG=1"))
        sender.connect(str(mailbox.path))
        sender.send(b"WATCHDOG=1")
        mailbox.drain()  # for each message that it takes there is a new one
        mailbox.close()
    loop.close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    before = descriptors()
    with pytest.raises(FileNotFoundError) as caught:
        Mailbox(tmp_path / "missing", loop, lambda said, _: None)
    assert str(tmp_path / "missing") in str(caught.value.filename)
    assert descriptors() == before
    loop.close()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("5000000", 5_000_000),
        ("18446744073709551615", 2**64 - 1),
        ("9" * 21, None),
        ("9" * 5000, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        (" 1", None),
        ("²", None),
        ("٣", None),
        ("1_000", None),
    ],
)
def test_a_number_is_taken_as_systemd_takes_it(text: str, number: int | None) -> None:
    assert wire.parse_unsigned(text) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [('"a\\nb"', "a\nb"), ("plain", "plain"), ("12", "12"), ("[" * 100_000, "[" * 100_000), ("null", "null")],
)
def test_an_error_that_is_no_json_string_is_taken_as_it_stands(value: str, text: str) -> None:
    assert wire.parse_error(value) == text
