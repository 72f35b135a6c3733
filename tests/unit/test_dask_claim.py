"""A name of an instance that nobody else has."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from nannyd.core.paths import control_socket, runtime_directory
from nannyd.dask.claim import claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user who is not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def claims() -> Iterator[list[int]]:
    """Descriptors to be closed."""
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_name_is_given_once_until_it_is_free_again(environ: dict[str, str], claims: list[int]) -> None:
    names = []
    for _ in range(3):
        name, descriptor = claim("alice", environ)
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        names.append(name)
        claims.append(descriptor)
    assert names == ["alice", "alice-2", "alice-3"]
    os.close(claims.pop(1))
    name, descriptor = claim("alice", environ)
    assert name == "alice-2"
    claims += [] if descriptor is None else [descriptor]


def test_a_running_instance_keeps_its_name(environ: dict[str, str], claims: list[int]) -> None:
    path = control_socket(runtime_directory("alice", environ))
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        name, descriptor = claim("alice", environ)
    assert name == "alice-2"
    claims += [] if descriptor is None else [descriptor]
    name, descriptor = claim("alice", environ)  # nobody listens any more
    assert name == "alice"
    claims += [] if descriptor is None else [descriptor]


def test_the_longest_name_has_room_for_a_number(environ: dict[str, str], claims: list[int]) -> None:
    for expected in ("x" * 64, f"{'x' * 62}-2"):
        name, descriptor = claim("x" * 64, environ)
        assert name == expected
        claims += [] if descriptor is None else [descriptor]


def test_where_no_directory_can_be_made_nannyd_itself_says_so(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "nannyd").write_text("")
    assert claim("alice", environ) == ("alice", None)


def test_a_directory_that_systemd_gave_is_for_any_name() -> None:
    assert claim("alice", {"RUNTIME_DIRECTORY": "/run/x"}) == ("alice", None)
