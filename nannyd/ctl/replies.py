"""What instances answer, checked: nothing of a reply is used before its type is known.

The types are those of `io.nannyd.Nanny` (see the .varlink file); what a newer nannyd says beside them is
passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from nannyd.core.units import format_duration
from nannyd.ctl.client import NANNY, FailureError, NonsenseError, RefusedError

T = TypeVar("T")


class Table:
    """An object of a reply, read key by key.  Raises NonsenseError that names the key."""

    def __init__(self, value: object, where: str = "reply") -> None:
        """*where* is what messages call it."""
        if not isinstance(value, dict):
            raise NonsenseError(f"its answer cannot be read: {where} must be an object")
        self.values: dict[str, Any] = value
        self._where = where

    def _get(self, key: str, kind: type[T], word: str, default: T | None) -> T:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise NonsenseError(f"its answer cannot be read: {self._where}.{key} must be {word}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        return self._get(key, str, "a string", default)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer of 64 bits."""
        value = self._get(key, int, "an integer", default)
        if not -(1 << 63) <= value < 1 << 63:
            raise NonsenseError(
                f"its answer cannot be read: {self._where}.{key} must be an integer of 64 bits"
            )
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean."""
        return self._get(key, bool, "a boolean", None)

    def number(self, key: str) -> float | None:
        """Return a number or None."""
        if isinstance(value := self.values.get(key), float):
            return value if abs(value) < 1e15 else None  # nor NaN
        return self.whole(key)

    def whole(self, key: str) -> int | None:
        """Return an integer or None."""
        return None if self.values.get(key) is None else self.integer(key)

    def word(self, key: str) -> str | None:
        """Return a string or None."""
        return None if self.values.get(key) is None else self.text(key)

    def table(self, key: str) -> Table:
        """Return an object."""
        return Table(self.values.get(key), f"{self._where}.{key}")

    def table_or_none(self, key: str) -> Table | None:
        """Return an object or None."""
        return None if self.values.get(key) is None else self.table(key)

    def tables(self, key: str) -> list[Table]:
        """Return a list of objects."""
        values = self._get(key, list, "a list", None)
        return [Table(value, f"{self._where}.{key}[{index}]") for index, value in enumerate(values)]

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        values = self._get(key, list, "a list", None)
        if not all(isinstance(value, str) for value in values):
            raise NonsenseError(f"its answer cannot be read: {self._where}.{key} must have strings")
        return values

    def counts(self, key: str) -> dict[str, int]:
        """Return an object whose values are integers."""
        table = self.table(key)
        return {name: table.integer(name) for name in table.values}


@dataclass(frozen=True, slots=True)
class Memory:
    """The type Memory; sizes in bytes."""

    mode: str
    weaker: str | None
    limit: int | None
    where: str
    warn: int | None
    terminate: int | None
    max: int | None
    working_set: int | None
    anon: int | None
    shmem: int | None
    kernel: int | None
    swap: int | None
    peak: int | None


@dataclass(frozen=True, slots=True)
class Exit:
    """The type Exit: how a life ended.  *at* is in seconds since the epoch."""

    generation: int
    result: str
    who: str
    how: str
    detail: str
    exit_status: int | None
    signal: str | None
    at: float
    uptime: float | None
    memory_peak: int | None
    was_ready: bool


@dataclass(frozen=True, slots=True)
class Process:
    """The type Process: the living worker.  Instants are in seconds since the epoch."""

    pid: int
    started_at: float
    ready_at: float | None
    status: str
    address: str
    directory: str
    local_directory: str | None
    control_group: str | None


@dataclass(frozen=True, slots=True)
class Dask:
    """The type Dask: where a Dask worker belongs."""

    scheduler: str | None
    nanny: str | None
    plugins: list[str]


@dataclass(frozen=True, slots=True)
class Event:
    """The type Event: one record.  *at* is in seconds since the epoch."""

    at: float
    event: str
    priority: int
    message: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """The type Sample: a point of the memory history."""

    at: float
    working_set: int


@dataclass(frozen=True, slots=True)
class Status:
    """The reply to Status()."""

    raw: dict[str, Any]
    """The reply itself, for `--json`."""
    version: str
    pid: int
    """nannyd's own process."""
    started_at: float
    unit: str | None
    state: str
    active_state: str
    goal: str
    sentence: str
    generation: int
    restarts: int
    restarts_by_result: dict[str, int]
    next_start_at: float | None
    start_limit_hit: bool
    worker: Process | None
    memory: Memory
    last_exit: Exit | None
    log_level: int | None
    dask: Dask | None
    plugins: list[str]


def status(reply: dict[str, Any]) -> Status:
    """Read the reply to Status()."""
    table = Table(reply)
    worker = table.table_or_none("worker")
    last_exit = table.table_or_none("lastExit")
    agent = table.table_or_none("agent")
    return Status(
        raw=reply,
        version=table.text("version"),
        pid=table.integer("processId"),
        started_at=_instant(table, "startedAt"),
        unit=table.word("unit"),
        state=table.text("state"),
        active_state=table.text("activeState"),
        goal=table.text("goal"),
        sentence=table.text("sentence"),
        generation=table.integer("generation"),
        restarts=table.integer("restarts"),
        restarts_by_result=table.counts("restartsByResult"),
        next_start_at=_instant_or_none(table, "nextStartAt"),
        start_limit_hit=table.flag("startLimitHit"),
        worker=None if worker is None else _process(worker),
        memory=_memory(table.table("memory")),
        last_exit=None if last_exit is None else exit_of(last_exit),
        log_level=table.whole("logLevel"),
        dask=None if (dask := table.table_or_none("dask")) is None else _dask(dask),
        plugins=[] if agent is None else agent.texts("plugins"),
    )


def _dask(table: Table) -> Dask:
    return Dask(table.word("scheduler"), table.word("nanny"), table.texts("plugins"))


def _process(table: Table) -> Process:
    return Process(
        pid=table.integer("processId"),
        started_at=_instant(table, "startedAt"),
        ready_at=_instant_or_none(table, "readyAt"),
        status=table.text("status"),
        address=table.text("address"),
        directory=table.text("directory"),
        local_directory=table.word("localDirectory"),
        control_group=table.word("controlGroup"),
    )


def _memory(table: Table) -> Memory:
    sizes = {name: table.whole(name) for name in ("limit", "warn", "terminate", "max")}
    used = {name: table.whole(name) for name in ("anon", "shmem", "kernel", "swap", "peak")}
    return Memory(
        mode=table.text("mode"),
        weaker=table.word("weaker"),
        where=table.text("where"),
        working_set=table.whole("workingSet"),
        **sizes,
        **used,
    )


def exit_of(table: Table) -> Exit:
    """Read an Exit."""
    return Exit(
        generation=table.integer("generation"),
        result=table.text("result"),
        who=table.text("who"),
        how=table.text("how"),
        detail=table.text("detail"),
        exit_status=table.whole("exitStatus"),
        signal=table.word("signal"),
        at=_instant(table, "at"),
        uptime=table.number("uptime"),
        memory_peak=table.whole("memoryPeak"),
        was_ready=table.flag("wasReady"),
    )


def described(event: Event) -> dict[str, Any]:
    """Return *event* in the form of the type Event."""
    return {
        "at": round(event.at * 1e6),
        "event": event.event,
        "priority": event.priority,
        "message": event.message,
        "fields": event.fields,
    }


def event_of(table: Table) -> Event:
    """Read an Event."""
    return Event(
        at=_instant(table, "at"),
        event=table.text("event"),
        priority=table.integer("priority"),
        message=table.text("message"),
        fields=table.table("fields").values,
    )


def events(reply: dict[str, Any], key: str) -> list[Event]:
    """Read the events in *reply*: `records` of GetLogs(), `events` of Why()."""
    return [event_of(table) for table in Table(reply).tables(key)]


def samples(reply: dict[str, Any]) -> list[Sample]:
    """Read the reply to History()."""
    return [
        Sample(_instant(table, "at"), table.integer("workingSet")) for table in Table(reply).tables("samples")
    ]


def _instant(table: Table, key: str) -> float:
    return table.integer(key) / 1e6


def _instant_or_none(table: Table, key: str) -> float | None:
    return None if (value := table.whole(key)) is None else value / 1e6


# Errors


def words(failure: FailureError) -> str:
    """Return why an instance did not do what it was asked, and what would be right."""
    if not isinstance(failure, RefusedError):
        return str(failure)
    try:
        return _refusal(failure.error, Table(failure.parameters, "error"))
    except NonsenseError:
        return failure.error


def _refusal(error: str, table: Table) -> str:
    match error.removeprefix(f"{NANNY}."):
        case "NotPermitted":
            return f"not permitted; needs {table.text('needs')}"
        case "InvalidArgument":
            return f"{table.text('parameter')}: {table.text('reason')}"
        case "TimedOut":
            span = format_duration(table.number("timeout") or 0.0)
            return f"not within {span}; it is {table.text('state')}, and what was asked for goes on"
        case "StartLimitHit":
            span = format_duration(table.number("interval") or 0.0)
            starts = f"it has given up: {table.integer('burst')} starts within {span}"
            return _with_exit(starts, table)
        case "WorkerFailed":
            return _with_exit("the worker failed", table)
        case "Superseded":
            return f"somebody asked for something else meanwhile: {table.text('by')}"
        case "InvalidConfiguration":
            problems = table.values.get("problems")
            lines = [str(line) for line in problems] if isinstance(problems, list) else []
            return "\n".join(["the configuration is wrong, the old one stays in force", *lines])
        case "CodeFailed":
            return f"{table.text('where')}: {table.text('type')}: {table.text('message')}"
        case "AgentFailed" | "CannotExecute":
            return table.text("reason")
        case "NoSuchPlugin":
            return f"it has no plugin {table.text('name')}"
        case "TooManyRuns":
            return f"it runs {table.integer('limit')} commands already"
        case "org.varlink.service.MethodNotFound" | "org.varlink.service.InterfaceNotFound":
            return "its nannyd is of another version, and cannot do this"
        case "org.varlink.service.PermissionDenied":
            return "not permitted; needs root or the user that nannyd runs as, from outside the worker"
        case "org.varlink.service.InvalidParameter":
            return f"its nannyd does not understand the parameter {table.text('parameter')}"
        case _:
            return error


def _with_exit(text: str, table: Table) -> str:
    last = table.table_or_none("exit")
    return text if last is None else f"{text}; {exit_words(exit_of(last))}"


def exit_words(last: Exit) -> str:
    """Return how a life ended, for example `was killed by SIGTERM: result memory, by nannyd (…)`."""
    detail = f" ({last.detail})" if last.detail else ""
    return f"{last.how}: result {last.result}, by {last.who}{detail}"
