"""Watching a worker's memory: by the kernel's own event, or, where there is no leaf, by looking.

`core.memory` decides; this reads and arms.  Both watchers say what they see, also where all is fine, by one
callback, `report(verdict, reading, wall)`, from the event loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from nannyd.core.memory import (
    POLL_HASTE,
    Reading,
    Thresholds,
    Verdict,
    afford,
    next_doubt,
    next_pause,
    next_threshold,
    poll_interval,
    relaxed,
    verdict,
    wire,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from nannyd.supervisor.cgroup import Leaf
    from nannyd.supervisor.group import Group
    from nannyd.supervisor.poll import Sampler

    Report = Callable[[Verdict, Reading, bool], None]

_CALM = 10.0
"""After so many pauses without a touch of the wire, the next touch is the first again."""


class Watch(Protocol):
    """What the supervisor asks of either watcher."""

    def reading(self) -> Reading | None:
        """Return what the worker uses now; None: it cannot be read."""

    def sample(self) -> None:
        """Look once, on the supervisor's own tick: a warned worker may have calmed down."""

    def apply(self, thresholds: Thresholds, swap: int | None) -> None:
        """Put new thresholds in force."""

    def lift(self) -> None:
        """Nothing is to slow down a worker that was asked to end; only the wall stays."""

    def close(self) -> None:
        """Stop watching."""


class Tripwire:
    """cgroup mode: memory.high is the wire, memory.events the bell."""

    def __init__(
        self, leaf: Leaf, thresholds: Thresholds, loop: asyncio.AbstractEventLoop, report: Report
    ) -> None:
        """Arm the lowest rung; *leaf* has its other limits already."""
        self._leaf, self._loop, self._report = leaf, loop, report
        self._thresholds = thresholds
        self._warned = False
        self._decided = False
        self._pause = 0.0
        self._touched_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._arm()
        leaf.watch_memory(self._touched)

    def _arm(self) -> None:
        self._leaf.set_high(None if self._decided else wire(self._thresholds, warned=self._warned))

    def reading(self) -> Reading | None:
        """Return what the leaf uses now."""
        return self._leaf.reading()

    def _touched(self) -> None:
        """Judge what made the kernel ring."""
        if not self._decided and not self._judge():
            self._look_away()

    def _judge(self) -> bool:
        """Say what there is to say, and draw the wire accordingly; say whether there was something."""
        reading = self._leaf.reading()
        said = verdict(reading.working_set, self._thresholds, warned=self._warned)
        if said is Verdict.FINE:
            self._report(said, reading, False)
            return False
        self._warned = True
        if said is Verdict.TERMINATE:
            # The wire stays, to hold the worker back until it was asked to end: then it is lifted.
            self._decided = True
        else:
            self._arm()
        self._report(said, reading, False)
        if said is Verdict.WARN:
            self._judge()  # it may have passed the next rung before the wire was there
        return True

    def _look_away(self) -> None:
        """It was page cache, which the kernel reclaims by itself; a busy one must not keep us awake."""
        now = self._loop.time()
        if now - self._touched_at > _CALM * self._pause:
            self._pause = 0.0
        self._touched_at = now
        self._pause = next_pause(self._pause)
        self._leaf.look_away()
        self._timer = self._loop.call_later(self._pause, self._leaf.look_again)

    def sample(self) -> None:
        """Return to the first rung when a warned worker is below it again."""
        if self._warned and not self._decided and relaxed(self._leaf.reading().working_set, self._thresholds):
            self._warned = False
            self._arm()

    def apply(self, thresholds: Thresholds, swap: int | None) -> None:
        """Move wall and wire; a worker already above them is judged first, not squeezed."""
        self._thresholds = thresholds
        self._warned = False
        if not self._decided:
            self._judge()
        if not self._decided:
            self._leaf.set_limits(thresholds.max, swap)
            self._arm()

    def lift(self) -> None:
        """Lift the wire: a worker that is throttled cannot shut down."""
        self._decided = True
        self._arm()

    def close(self) -> None:
        """Stop watching; the leaf stays."""
        if self._timer is not None:
            self._timer.cancel()
        self._leaf.look_away()


class Poller:
    """poll mode: look at the process tree, seldom while there is far to go, ten times a second near.

    One that is about to pass a threshold is looked at just then.  Pages that forked workers share are in the
    cheap sum once for each, so a sum that calls for action is doubted (`_doubted`).
    """

    def __init__(
        self,
        group: Group,
        sampler: Sampler,
        thresholds: Thresholds,
        loop: asyncio.AbstractEventLoop,
        report: Report,
    ) -> None:
        """Look for the first time at once."""
        self._group, self._sampler, self._loop, self._report = group, sampler, loop, report
        self._thresholds = thresholds
        self._warned = False
        self._decided = False
        self._timer: asyncio.TimerHandle | None = None
        self._owed = 0.0
        self._doubt = 0.0
        self._ask_at = 0.0
        self._sharers = frozenset[int]()
        self._excess = 0
        """What the sum counts too much for these."""
        self._seen, self._seen_at = 0, loop.time()
        self._schedule(0)

    def reading(self) -> Reading | None:
        """Return what the group uses now."""
        return self._sampler.reading(self._group.pids())

    def _schedule(self, working_set: int) -> None:
        now = self._loop.time()
        growth = (working_set - self._seen) / max(now - self._seen_at, POLL_HASTE)
        self._seen, self._seen_at = working_set, now
        interval = poll_interval(working_set, self._thresholds, warned=self._warned, growth=growth)
        if interval is not None:
            pause, self._owed = afford(interval, self._owed)
            self._timer = self._loop.call_later(pause, self._look)

    def _judge(self, working_set: int) -> tuple[Verdict, bool]:
        """Return the verdict, and whether the wall was met."""
        wall = self._thresholds.max
        said = verdict(working_set, self._thresholds, warned=self._warned)
        return said, wall is not None and working_set >= wall

    def _is_fine(self, reading: Reading) -> bool:
        return self._judge(reading.working_set) == (Verdict.FINE, False)

    def _doubted(self, pids: Sequence[int], reading: Reading) -> Reading:
        """Return *reading* with shared pages counted once.

        Who is asked walks the page tables: less often, while the answer keeps being no.  Meanwhile the same
        processes share what they shared, and what their sum grows by is theirs alone.
        """
        now = self._loop.time()
        same = self._sharers == frozenset(pids)
        working_set = reading.working_set - self._excess if same else self._seen
        likely = replace(reading, working_set=working_set)
        if now < self._ask_at and (self._is_fine(likely) or not same):
            return likely
        confirmed = self._sampler.confirmed(pids, reading)
        self._sharers = frozenset(pids)
        self._excess = reading.working_set - confirmed.working_set
        threshold = next_threshold(self._thresholds, warned=self._warned)
        if threshold is not None and self._is_fine(confirmed):
            surprise = confirmed.working_set - likely.working_set
            self._doubt = next_doubt(self._doubt, surprise, threshold - confirmed.working_set)
        else:
            self._doubt = 0.0
        self._ask_at = now + self._doubt
        return confirmed

    def _look(self) -> None:
        pids = self._group.pids()
        reading = self._sampler.reading(pids)
        if reading is None:
            self._schedule(self._seen)  # it has ended, as a rule, and that is about to be seen
            return
        if not self._is_fine(reading):
            reading = self._doubted(pids, reading)
        said, wall = self._judge(reading.working_set)
        if wall or (said is not Verdict.FINE and not (self._decided and said is Verdict.TERMINATE)):
            self._decided = self._decided or wall or said is Verdict.TERMINATE
            self._warned = True
            self._report(Verdict.TERMINATE if wall else said, reading, wall)
        else:
            self._report(Verdict.FINE, reading, False)
            if self._warned and relaxed(reading.working_set, self._thresholds):
                self._warned = False
        self._schedule(reading.working_set)

    def sample(self) -> None:
        """Nothing: it looks by itself."""

    def apply(self, thresholds: Thresholds, swap: int | None) -> None:
        """Judge by the new thresholds from now on."""
        self.close()
        self._thresholds = thresholds
        self._warned = False
        self._ask_at = 0.0
        self._look()

    def lift(self) -> None:
        """Nothing: looking slows nobody down."""

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
