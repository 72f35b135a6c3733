"""Who may do what; the kernel's word on real peers is in tests/integration/test_varlink_rights.py."""

from __future__ import annotations

import itertools
import os
import socket

import pytest

from nannyd.supervisor.rights import Peer, Right, read_peer, right_of, still_there

OWN, GROUP, OTHER = 990, 991, 1000


def judged(
    uid: int,
    gid: int = OTHER,
    groups: frozenset[int] | None = frozenset(),
    *,
    worker: bool | None = False,
    members: tuple[int, ...] = (),
    group: int | None = GROUP,
) -> Right:
    """Return what such a peer may do."""
    asked: list[int] = []

    def member(uid: int) -> bool:
        asked.append(uid)
        return uid in members

    right = right_of(
        Peer(7, uid, gid, groups),
        own_uid=OWN,
        group_gid=group,
        in_worker=lambda pid: worker if pid == 7 else None,
        member=member,
    )
    assert not asked or groups is None, "the group database is slow; the kernel knew"
    return right


@pytest.mark.parametrize("uid", [0, OWN])
def test_root_and_the_own_user_may_do_all(uid: int) -> None:
    assert judged(uid) is Right.ALL
    assert judged(uid, GROUP, None, members=(uid,)) is Right.ALL


@pytest.mark.parametrize("worker", [True, None])
def test_from_within_the_worker_everybody_may_only_look(worker: bool | None) -> None:  # noqa: FBT001
    assert judged(0, worker=worker) is Right.LOOK
    assert judged(OWN, worker=worker) is Right.LOOK
    assert judged(OTHER, GROUP, worker=worker) is Right.LOOK
    assert judged(OTHER, groups=frozenset([GROUP]), worker=worker) is Right.LOOK


def test_the_group_may_operate() -> None:
    assert judged(OTHER, GROUP) is Right.OPERATE
    assert judged(OTHER, groups=frozenset([1, GROUP])) is Right.OPERATE
    assert judged(OTHER, groups=None, members=(OTHER,)) is Right.OPERATE


@pytest.mark.parametrize("worker", [True, False, None])
def test_all_others_may_nothing(worker: bool | None) -> None:  # noqa: FBT001
    assert judged(OTHER, worker=worker) is Right.NONE
    assert judged(OTHER, groups=None, worker=worker) is Right.NONE
    assert judged(OTHER, groups=frozenset(range(GROUP)), worker=worker) is Right.NONE


def test_without_a_group_nobody_is_in_it() -> None:
    assert judged(OTHER, GROUP, None, members=(OTHER,), group=None) is Right.NONE


def test_rights_include_the_lesser() -> None:
    assert all(a < b for a, b in itertools.pairwise([Right.NONE, Right.LOOK, Right.OPERATE, Right.ALL]))


def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        expected = Peer(os.getpid(), os.geteuid(), os.getegid(), frozenset(os.getgroups()))
        assert read_peer(ours) == expected
        assert still_there(ours)
