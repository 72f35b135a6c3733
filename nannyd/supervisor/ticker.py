"""The one clock of an idle supervisor: systemd's watchdog is fed, and looked around at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nannyd.supervisor.history import SPACING

if TYPE_CHECKING:
    import asyncio

    from nannyd.supervisor.supervisor import Supervisor

_EXTEND_EVERY = 10.0
_EXTEND_BY = 30.0
"""Until the first READY systemd is asked for this much more time, again and again: the time that a start
or a back-off takes is the worker's and nannyd's to limit."""
_STATUS_EVERY = 15.0
"""Without a watchdog, how often the sentence of `systemctl status` is brought up to date."""


class Ticker:
    """Ticks as often as somebody needs it, and not at all where nobody does."""

    def __init__(self, supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
        """Tick for *supervisor*."""
        self._supervisor, self._loop = supervisor, loop
        self._watchdog = supervisor.systemd.watchdog
        self._next: asyncio.TimerHandle | None = None

    def tick(self) -> None:
        """Feed the watchdog, ask for time until the first READY, look whether a warning is over.

        From the queue of the supervisor, so that a hung loop does not feed the watchdog.
        """
        supervisor = self._supervisor
        every = [] if self._watchdog is None else [self._watchdog]
        if not supervisor.was_ready and supervisor.systemd.present:
            supervisor.systemd.extend(_EXTEND_BY)
            every.append(_EXTEND_EVERY)
        if self._watchdog is not None:
            supervisor.systemd.alive()
        if supervisor.life is not None and supervisor.life.watch is not None:
            supervisor.life.watch.sample()
        if supervisor.systemd.present:
            every.append(_STATUS_EVERY)
        if (reading := supervisor.reading()) is not None:
            supervisor.history.add(self._loop.time(), reading.working_set)
        if supervisor.plan.memory.thresholds.limit is not None:
            every.append(SPACING)
        supervisor.show()
        if every:
            self._next = self._loop.call_later(min(every), supervisor.post, self.tick)

    def stop(self) -> None:
        """Tick no more."""
        if self._next is not None:
            self._next.cancel()
