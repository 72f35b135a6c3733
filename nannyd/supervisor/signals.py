"""What signals mean to a supervisor."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from nannyd.core.paths import SUPERVISED
from nannyd.supervisor.reload import ReloadFailedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Coroutine

    from nannyd.supervisor.helpers import Helpers
    from nannyd.supervisor.supervisor import Supervisor


_ECHO = 0.5
"""Seconds in which the same signal is no second one: who signals a group signals who passes it on, too."""


def stop_on_sigterm(supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
    """Take SIGTERM and SIGINT as requests to stop; a second SIGINT, and during a drain SIGTERM, kills.

    What the launcher has blocked until now comes in: the last thing to be done before supervising.
    """
    seen: dict[signal.Signals, float] = {}

    def asked(number: signal.Signals) -> None:
        supervisor.signalled = True
        stop = supervisor.worker.stop
        drains = stop is not None and stop.drain > 0
        supervisor.stop(number.name)
        is_second = loop.time() - seen.setdefault(number, loop.time()) > _ECHO
        if is_second and (number is signal.SIGINT or drains):
            supervisor.kill(f"a second {number.name}")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.post, lambda number=number: asked(number))
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SUPERVISED)


def reload_on_sighup(
    loop: asyncio.AbstractEventLoop,
    tasks: asyncio.TaskGroup,
    reload: Callable[[], Coroutine[None, None, str]],
) -> None:
    """Reload on SIGHUP; the verdict is in the log."""

    async def quietly() -> None:
        with suppress(ReloadFailedError):
            await reload()

    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(quietly()))


def reap_on_sigchld(
    supervisor: Supervisor,
    loop: asyncio.AbstractEventLoop,
    helpers: Helpers,
    reap: Callable[[Collection[int]], bool],
) -> None:
    """Without a leaf the worker's orphans become our children: reap them, and learn of the last."""

    def some_child_ended() -> None:
        life = supervisor.life
        known = helpers.pids() | ({life.pid} if life is not None and life.pid is not None else set())
        if reap(known) and life is not None and life.group is not None:
            life.group.child_reaped()

    loop.add_signal_handler(signal.SIGCHLD, some_child_ended)
