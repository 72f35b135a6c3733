"""`nannyctl status`: one instance in full, in the manner of `systemctl status`.

Exit status, as systemctl's: 0 active, 3 not active, 4 there is no such instance; of several the first that is
not 0.

JSON: a list of the objects of `nannyctl list --json`, each with

    "status": the reply to Status(), "samples": that to History(),
    "events": nannyd's own last records, oldest first,
    "lines": the last in the journal, [{"at", "priority", "source", "message"}],
    "processes": [{"processId", "parentProcessId", "command", "memory": bytes}]

where nannyd does not answer, null and empty lists.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.core.units import format_duration
from nannyd.ctl import journal, processes, render, replies
from nannyd.ctl.client import NANNY, FailureError, Question, ask
from nannyd.ctl.command import complain
from nannyd.ctl.instances import NoInstanceError, choose
from nannyd.ctl.listing import describe, memory_colour
from nannyd.ctl.render import clean, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.journal import Line
    from nannyd.ctl.processes import Process
    from nannyd.ctl.render import Style
    from nannyd.ctl.replies import Event, Sample, Status

_PATIENCE = 5.0
_LABEL = 10
_HOUR = 3600.0
_COLUMNS = 60
"""Of the sparkline: a minute each."""
_BAR_WIDTH = 20


class Found(enum.IntEnum):
    """The exit statuses (systemctl(1), EXIT STATUS)."""

    ACTIVE = 0
    NOT_ACTIVE = 3
    NOT_THERE = 4


@dataclass(slots=True)
class Report:
    """What is known of one instance."""

    instance: Instance
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    """Oldest first."""
    lines: list[Line] = field(default_factory=list)
    """The last in the journal, oldest first, where we may read it: they have the events among them."""
    processes: list[Process] = field(default_factory=list)


def status(command: Command) -> int:
    """Print the instances."""
    known = command.find(patience=command.timeout)
    chosen, problems = command.chosen(known)
    reports = collect(chosen, journal.LINES if command.lines is None else command.lines)
    if command.json:
        sys.stdout.write(render.dump_json([_described(report) for report in reports]))
    else:
        sys.stdout.write("\n".join(text(report, command) for report in reports))
    for problem in problems:
        complain(problem)
    return next((found for found in _founds(command, known) if found), Found.ACTIVE)


def _founds(command: Command, known: Sequence[Instance]) -> Iterator[Found]:
    """Yield what was found, in the order in which it was asked for."""
    for name in command.asked_for:
        try:
            some = choose(known, name)
        except NoInstanceError:
            yield Found.NOT_THERE
            continue
        for one in some:
            active = one.active_state in ("active", "reloading") and one.is_well
            yield Found.ACTIVE if active else Found.NOT_ACTIVE


def collect(instances: Sequence[Instance], lines: int) -> list[Report]:
    """Return what is known of *instances*: those that answer are asked for more, at the same time."""
    reports = {id(instance): Report(instance) for instance in instances}
    asked: list[tuple[Report, Question]] = []
    for report in reports.values():
        instance = report.instance
        address = instance.address
        if instance.status is None or address is None:
            continue
        asked.append((report, Question(address, f"{NANNY}.History")))
        if lines:
            asked.append((report, Question(address, f"{NANNY}.GetLogs", {"n": lines})))
        report.processes = processes.of_worker(instance.status)
    answers = ask([question for _, question in asked], patience=_PATIENCE)
    for (report, question), answer in zip(asked, answers, strict=True):
        try:
            _take(report, question, answer)
        except FailureError as failure:
            report.instance.failure = failure
    tails = journal.tails([journal.Part(instance) for instance in instances], lines)
    for report, tail in zip(reports.values(), tails, strict=True):
        report.lines = tail
    return list(reports.values())


def _take(report: Report, question: Question, answer: Any) -> None:
    if isinstance(answer, FailureError):
        raise answer
    if question.method.endswith(".History"):
        report.samples = replies.samples(answer)
    else:
        report.events = replies.events(answer, "records")[::-1]


def _described(report: Report) -> dict[str, Any]:
    found = report.instance.status
    return {
        **describe(report.instance),
        "status": None if found is None else found.raw,
        "samples": [{"at": round(one.at * 1e6), "workingSet": one.working_set} for one in report.samples],
        "events": [replies.described(event) for event in report.events],
        "lines": journal.described(report.lines),
        "processes": [
            {
                "processId": process.pid,
                "parentProcessId": process.parent,
                "command": process.command,
                "memory": process.memory,
            }
            for process in report.processes
        ],
    }


# For people


def text(report: Report, command: Command) -> str:
    """Return everything about one instance."""
    style, instance = command.style, report.instance
    title = f"{style.dot(instance.active_state)} {clean(instance.name)}"
    if instance.unit is not None:
        title += f" - {clean(instance.unit.id)}"
    lines = [title, *labelled("Active", _active(instance, style, command.now))]
    if instance.reason:
        lines += labelled("Reason", *render.clean_lines(instance.reason))
    if instance.status is not None:
        lines += _of_status(report, instance.status, command)
    elif instance.unit is not None and instance.unit.status_text:
        lines += labelled("Status", f'"{clean(instance.unit.status_text)}"')
    if last := last_lines(report, style):
        lines += ["", *last]
    if style.width and not command.full:
        lines = [render.shorten(line, style.width, utf8=style.utf8) for line in lines]
    return "\n".join(lines) + "\n"


def labelled(label: str, *texts: str) -> list[str]:
    """Return lines of which the first begins with *label*."""
    heads = [f"{label:>{_LABEL}}: ", *[" " * (_LABEL + 2)] * (len(texts) - 1)]
    return [head + line for head, line in zip(heads, texts, strict=True)]


def _active(instance: Instance, style: Style, now: float) -> str:
    words = f"{instance.active_state} ({clean(instance.state)})"
    colour = (
        render.RED
        if instance.state == "not answering"
        else render.STATE_COLOURS.get(instance.active_state, "")
    )
    painted = style.paint(words, colour)
    at = _since(instance)
    return painted if at is None else f"{painted} since {render.since(at, now)}"


def _since(instance: Instance) -> float | None:
    """Return when the state became what it is, where that is known."""
    found = instance.status
    if found is None:
        return instance.down_since
    match found.state:
        case "running" if found.worker is not None:
            return found.worker.ready_at or found.worker.started_at
        case "start" if found.worker is not None:
            return found.worker.started_at
        case "auto-restart" | "failed" if found.last_exit is not None:
            return found.last_exit.at
        case _:
            return None


def _of_status(report: Report, found: Status, command: Command) -> list[str]:
    style, now = command.style, command.now
    lines = labelled("Status", f'"{clean(found.sentence)}"')
    lines += labelled(
        "nannyd", f"{found.version}, process {found.pid}, since {render.since(found.started_at, now)}"
    )
    if found.worker is not None:
        lines += _worker(found, now)
    if found.dask is not None:
        lines += _dask(found.dask)
    if found.next_start_at is not None:
        lines += labelled("Next start", render.since(found.next_start_at, now))
    lines += labelled("Restarts", _restarts(found))
    lines += labelled("Memory", *_memory(report.instance, found, style))
    if spark := hour(report.samples, found, command):
        lines += labelled("Last hour", spark)
    if report.processes:
        room = 0 if command.full or not style.width else style.width - _LABEL - 2
        lines += labelled("Processes", *processes.tree(report.processes, style, room))
    if found.plugins:
        lines += labelled("Plugins", clean(", ".join(found.plugins)))
    if found.last_exit is not None:
        last = found.last_exit
        lines += labelled(
            "Last exit", clean(replies.exit_words(last)), f"{render.since(last.at, now)}, {_life(last)}"
        )
    return lines


def _life(last: replies.Exit) -> str:
    lived = "" if last.uptime is None else f" after {render.span(last.uptime)}"
    peak = "" if last.memory_peak is None else f", memory peak {size(last.memory_peak)}"
    return f"life {last.generation}{lived}{peak}"


def _worker(found: Status, now: float) -> list[str]:
    worker = found.worker
    assert worker is not None  # noqa: S101 - asked by the caller
    ready = ""
    if worker.ready_at is not None:
        ready = f", ready after {format_duration(max(0.0, worker.ready_at - worker.started_at))}"
    texts = [
        f"process {worker.pid} (life {found.generation}), for {render.span(now - worker.started_at)}{ready}"
    ]
    texts += [f'says "{clean(worker.status)}"'] if worker.status else []
    for label, value in (
        ("address", worker.address),
        ("directory", worker.directory),
        ("scratch", worker.local_directory),
        ("cgroup", worker.control_group),
    ):
        texts += [f"{label} {clean(value)}"] if value else []
    return labelled("Worker", *texts)


def _dask(dask: replies.Dask) -> list[str]:
    texts = [f"scheduler {clean(dask.scheduler) if dask.scheduler else 'not found yet'}"]
    texts += [f"nanny {clean(dask.nanny)}"] if dask.nanny else []
    texts += [f"plugins {', '.join(map(clean, dask.plugins))}"] if dask.plugins else []
    return labelled("Dask", *texts)


def _restarts(found: Status) -> str:
    by = ", ".join(f"{count} × {clean(result)}" for result, count in found.restarts_by_result.items())
    limit = "; the start limit is hit" if found.start_limit_hit else ""
    return f"{found.restarts}" + (f" ({by})" if by else "") + limit


def _memory(instance: Instance, found: Status, style: Style) -> list[str]:
    memory = found.memory
    used = render.used_of(memory.working_set, memory.limit).replace("/", " of ")
    if memory.limit and memory.working_set is not None:
        share = memory.working_set / memory.limit
        used += f" ({100 * share:.0f} %)"
        if style.terminal:
            used += " " + render.bar(share, _BAR_WIDTH, utf8=style.utf8)
    parts = [("anon", memory.anon), ("shmem", memory.shmem), ("kernel", memory.kernel), ("swap", memory.swap)]
    parts += [("peak", memory.peak)]
    rungs = [("warning at", memory.warn), ("termination at", memory.terminate), ("wall at", memory.max)]
    limit = f"limit {size(memory.limit)}" if memory.limit is not None else "no limit"
    watched = "polled" if memory.mode == "poll" else f"watched by {clean(memory.mode)}"
    why = f" ({clean(memory.weaker)})" if memory.weaker else ""
    return [
        style.paint(used, memory_colour(instance)),
        *_listed(parts),
        *_listed(rungs),
        f"{limit}: {clean(memory.where)}; {watched}{why}",
    ]


def _listed(parts: Sequence[tuple[str, int | None]]) -> list[str]:
    known = [f"{name} {size(value)}" for name, value in parts if value is not None]
    return [", ".join(known)] if known else []


def hour(samples: Sequence[Sample], found: Status, command: Command) -> str:
    """Return the sparkline of the last hour, a column for some time each, newest last."""
    if not samples:
        return ""
    columns = _COLUMNS
    if command.style.width:
        columns = max(10, min(columns, command.style.width - _LABEL - 20))
    values: list[float | None] = [None] * columns
    for sample in samples:
        index = columns - 1 - int((command.now - sample.at) / _HOUR * columns)
        if 0 <= index < columns:
            values[index] = max(values[index] or 0.0, float(sample.working_set))
    highest = max((value for value in values if value is not None), default=0.0)
    top = float(found.memory.limit or highest)
    line = render.sparkline(values, top, utf8=command.style.utf8)
    return f"{line} highest {size(round(highest))}" if highest else ""


def last_lines(report: Report, style: Style) -> list[str]:
    """Return what was said last: by all, as the journal has it, or else by nannyd."""
    if report.lines:
        return [text for line in report.lines for text in journal.worded(line, style)]
    return [text for event in report.events for text in event_lines(event, style)]


def event_lines(event: Event, style: Style) -> list[str]:
    """Return a record as journalctl shows one, further lines indented."""
    first, *rest = render.clean_lines(event.message)
    colour = render.priority_colour(event.priority)
    lines = [f"{render.log_instant(event.at)} {style.paint(first, colour)}"]
    lines += [" " * 16 + style.paint(line, colour) for line in rest]
    return lines
