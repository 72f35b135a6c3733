"""nannyd's own last records, bounded in number and size, and who wants to hear of new ones."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nannyd.supervisor import notices
from nannyd.supervisor.logs import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.supervisor.connection import Call

_RECORDS_MAX = 500
_CHARACTERS_MAX = 200_000
_OF_LIFE_MAX = 12
_ENDS = (notices.WORKER_ENDED.event, notices.WORKER_FAILED.event, notices.START_FAILED.event)

Record = dict[str, Any]
"""An `Event` of the control interface."""


class Ring(logging.Handler):
    """A log handler that keeps the newest records."""

    def __init__(self) -> None:
        """Start with none."""
        super().__init__()
        self._records: deque[tuple[int, Record]] = deque()
        self._characters = 0
        self._listeners: list[Callable[[Record], None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record; the oldest make room for it."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        kept = {
            "at": time.time_ns() // 1000,
            "event": str(fields.get("nannyd_event", "")),
            "priority": PRIORITIES.get(record.levelno, 6),
            "message": message,
            "fields": {key: _plain(value) for key, value in fields.items() if value not in (None, "")},
        }
        size = len(message) + sum(len(str(value)) for value in fields.values())
        self._records.append((size, kept))
        self._characters += size
        while len(self._records) > _RECORDS_MAX or (
            self._characters > _CHARACTERS_MAX and len(self._records) > 1
        ):
            self._characters -= self._records.popleft()[0]
        for listener in tuple(self._listeners):
            listener(kept)

    def newest(self, count: int | None, priority: int) -> list[Record]:
        """Return at most *count* records of *priority* or a more urgent one, newest first."""
        found = (record for _, record in reversed(self._records) if record["priority"] <= priority)
        return [record for _, record in zip(range(count if count is not None else _RECORDS_MAX), found)]  # noqa: B905

    def of_life(self, generation: int) -> list[Record]:
        """Return what was said of one life from the end of the one before to its own; oldest first."""
        found: list[Record] = []
        for _, record in reversed(self._records):
            if record["event"] in _ENDS:
                if found:
                    break
                if record["fields"].get("nannyd_generation") != generation:
                    continue
            elif not found:
                continue
            found.append(record)
        return found[:_OF_LIFE_MAX][::-1]

    def listen(self, listener: Callable[[Record], None]) -> Callable[[], None]:
        """Call *listener* with each new record; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None


def tell_new(ring: Ring, call: Call, least: int, worded: Callable[[list[Record]], dict[str, Any]]) -> None:
    """Send each new record of priority *least*, or a more urgent one, in the words of the method.

    A reader that is too slow loses records, and is told how many as soon as it reads again.
    """
    count, latest = 0, Record()

    def catch_up() -> None:
        """Tell what was lost, now or when there is room."""
        nonlocal count
        if count and call.more_reply(worded([_lost(latest, count)])):
            count = 0
        elif count:
            call.when_room(catch_up)

    def heard(record: Record) -> None:
        nonlocal count, latest
        told = [record] if record["priority"] <= least else []
        if record["event"] == notices.FINISHED.event:
            call.reply(worded(told))  # the last there is to say
        elif told and (count or not call.more_reply(worded(told))):
            count, latest = count + 1, record
            call.when_room(catch_up)

    call.when_closed(ring.listen(heard))


def _lost(record: Record, count: int) -> Record:
    message = f"{count} events were lost: they were not read in time"
    return {**record, "event": "events-lost", "priority": 4, "message": message, "fields": {"lost": count}}


def _plain(value: Any) -> Any:
    """Return a field's value as JSON has it: enumerations are text, lists stay."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
