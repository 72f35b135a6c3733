"""One life, begun without a supervisor: what is given back when its beginning fails half-way."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import Home, children_of, descriptors_of, processes_marked, zombies_of

from nannyd.config.compile import Request, compile_plan, own_surroundings
from nannyd.supervisor.life import Life, Place
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import FileDescriptorLike


class FullSelector(selectors.EpollSelector):
    """An epoll that takes no process any more (ENOSPC, fs.epoll.max_user_watches), sockets yet."""

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        kind = str(Path(f"/proc/self/fd/{fileobj}").readlink()) if isinstance(fileobj, int) else "socket"
        if "pidfd" in kind:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().register(fileobj, events, data)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    home = Home.make()
    for name, value in home.environ().items():
        monkeypatch.setenv(name, value)
    yield home
    assert not processes_marked(home.mark)
    assert not home.sockets_left()
    shutil.rmtree(home.base)


def test_a_worker_that_cannot_be_watched_is_ended_and_reaped(home: Home) -> None:
    request = Request("t", home.config, command=["sleep", "60"])
    plan = compile_plan(request, own_surroundings(os.environ)).plan
    loop = asyncio.SelectorEventLoop(FullSelector())
    place = Place(
        loop=loop,
        runtime=home.run,
        library=Path(sys.prefix),
        delegation=None,
        tree=None,
        sampler=None,
        output=lambda: 1,
        post=lambda event: None,
        noted=lambda: None,
    )
    before = descriptors_of(os.getpid())
    life = Life(place, plan, 1)
    with pytest.raises(SpawnError, match="No space left on device") as caught:
        life.begin(lambda verdict, reading, wall: None)
    assert caught.value.errno == errno.ENOSPC
    assert life.scratch is not None
    life.scratch.forget(removed=False)  # the directory is the supervisor's to remove
    assert descriptors_of(os.getpid()) == before
    assert not zombies_of(os.getpid())
    assert not children_of(os.getpid())
    loop.close()
