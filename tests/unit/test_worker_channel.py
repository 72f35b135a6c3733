"""The bootstrap's end of the channel, without a bootstrap."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from nannyd.core import wire
from nannyd.worker.channel import GONE, Channel, Stop, parse_specification, parse_stop

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC: dict[str, Any] = {
    "protocol": wire.PROTOCOL,
    "name": "w1",
    "target": "app:W",
    "args": [1],
    "kwargs": {"x": None},
    "environ": {"A": "1"},
    "preload": ["p"],
    "preload_argv": [["--x"]],
    "stop_timeout": 30.0,
    "local_directory": None,
}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    """Return the supervisor's end and the worker's."""
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    with ours:
        yield ours, channel
    channel.close()


def test_specification_arrives_in_pieces_and_with_a_request_behind_it(
    ends: tuple[socket.socket, Channel],
) -> None:
    ours, channel = ends
    ours.sendall(json.dumps(SPEC).encode() + b'\n{"stop": {"timeout": 1, ')
    spec = channel.read_specification()
    assert (spec.name, spec.target, spec.args, spec.kwargs) == ("w1", "app:W", [1], {"x": None})
    assert spec.grace == 24.0
    assert channel.read_stop(spec.grace) is None
    ours.sendall(b'"reason": "r"}}\n')
    assert channel.read_stop(spec.grace) == Stop(1.0, "r")
    assert channel.read_stop(spec.grace) is None


def test_request_is_heard_before_the_end(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.sendall(b'{"stop": {"reason": "r"}}\n')
    ours.shutdown(socket.SHUT_WR)
    assert channel.read_stop(9.0) == Stop(9.0, "r")
    assert channel.ended


def test_end_is_a_request(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.shutdown(socket.SHUT_WR)
    assert channel.read_stop(9.0) == Stop(9.0, GONE)


@pytest.mark.parametrize(
    "line", [b"", b"no JSON", b"\xff", b"[]", b"1", b"{}", b'{"stop": true}', b'{"more": {}}']
)
def test_other_lines_are_no_request(line: bytes) -> None:
    assert parse_stop(line, 1.0) is None


def test_descriptor_is_not_inherited(ends: tuple[socket.socket, Channel]) -> None:
    assert not os.get_inheritable(ends[1].fileno())


def test_no_channel_is_told() -> None:
    reading, writing = os.pipe()
    with pytest.raises(RuntimeError, match=f"descriptor {reading} is no channel"):
        Channel(reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("protocol", [0, 2, "1", None])
def test_another_protocol_is_refused(protocol: object) -> None:
    with pytest.raises(RuntimeError, match=f"speaks protocol {protocol}, but .* speaks {wire.PROTOCOL};"):
        parse_specification(json.dumps({**SPEC, "protocol": protocol}).encode())
