"""`nannyctl why`: how the last life that is over ended, who ended it, and what nannyd said about it.

Where there is no nannyd any more, the journal tells.

JSON: a list of objects `{"name", "scope", "reason": why nannyd does not answer or null, "exit": the type Exit
of io.nannyd.Nanny or null, "events": [...], "lines": what the worker said last, as in `nannyctl status`}`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.ctl import journal, render, replies
from nannyd.ctl.client import NANNY, FailureError, Question, ask
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import clean, size
from nannyd.ctl.status import event_lines, labelled

if TYPE_CHECKING:
    from nannyd.ctl.client import Reply
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.journal import Line
    from nannyd.ctl.replies import Event

_PATIENCE = 5.0
_AFTERWARDS = 0.1
"""Seconds in which the journal receives what the worker said last."""


@dataclass(slots=True)
class End:
    """What is known of how an instance's last life ended."""

    instance: Instance
    reply: Reply | None
    """To Why(); None where there is no nannyd, and only systemd knows."""
    last: replies.Exit | None
    events: list[Event]
    lines: list[Line] = field(default_factory=list)
    """What the worker said last, oldest first; where there is no nannyd, what anybody said."""
    exit: Reply | None = None
    """The type Exit, from nannyd or, where there is none, from the journal."""


def why(command: Command) -> int:
    """Print the last exits; 1 where one cannot be had."""
    chosen, problems = command.chosen(command.find(patience=command.timeout))
    asked = {
        id(one): Question(address, f"{NANNY}.Why")
        for one in chosen
        if one.status is not None and (address := one.address) is not None
    }
    answers = dict(zip(asked, ask(list(asked.values()), patience=_PATIENCE), strict=True))
    ends: list[End] = []
    for instance in chosen:
        try:
            ends.append(_end(instance, _reply(instance, answers)))
        except FailureError as failure:
            problems.append(f"{instance.name}: {replies.words(failure)}")
    parts = [(end, part) for end in ends if (part := _part(end)) is not None]
    count = journal.LINES if command.lines is None else command.lines
    for (end, _), tail in zip(parts, journal.tails([part for _, part in parts], count), strict=True):
        end.lines = tail
    if command.json:
        sys.stdout.write(render.dump_json([_described(end) for end in ends]))
    else:
        sys.stdout.write("\n".join(_text(end, command) for end in ends))
    for problem in problems:
        complain(problem)
    return FAILED if problems else ExitCode.CLEAN


def _reply(instance: Instance, answers: dict[int, Reply | FailureError]) -> Reply | None:
    """Return what nannyd says; None where there is no nannyd, and only systemd knows."""
    if instance.failure is not None and instance.is_up:
        raise instance.failure
    answer = answers.get(id(instance))
    if isinstance(answer, FailureError):
        raise answer
    return answer


def _end(instance: Instance, reply: Reply | None) -> End:
    if reply is None:
        found = journal.last_exit(instance)
        recorded = None if found is None else replies.exit_of(replies.Table(found))
        return End(instance, None, recorded, [], exit=found)
    table = replies.Table(reply).table_or_none("exit")
    last = None if table is None else replies.exit_of(table)
    return End(instance, reply, last, replies.events(reply, "events"), exit=reply.get("exit"))


def _part(end: End) -> journal.Part | None:
    last, status = end.last, end.instance.status
    if end.reply is None:
        return journal.Part(end.instance)
    if last is None or last.uptime is None:
        return None
    until = last.at + _AFTERWARDS
    if status is not None and status.worker is not None and status.generation == last.generation + 1:
        until = min(until, status.worker.started_at)
    return journal.of_worker(end.instance, last.at - last.uptime, until)


def _described(end: End) -> dict[str, Any]:
    return {
        "name": end.instance.name,
        "scope": end.instance.scope.value,
        "reason": end.instance.reason or None,
        "exit": end.exit,
        "events": [] if end.reply is None else end.reply.get("events", []),
        "lines": journal.described(end.lines),
    }


def _text(end: End, command: Command) -> str:
    instance, last, style = end.instance, end.last, command.style
    head = f"{style.dot(instance.active_state)} {clean(instance.name)}: "
    if end.reply is None:
        at = instance.down_since
        when = "" if at is None else f", {render.since(at, command.now)}"
        lines = [f"{head}{clean(instance.reason or instance.state)}{when}"]
        if last is not None:
            lines += labelled("Its worker", clean(last.how))
            lines += _labels(end, last, command)
        lines += [] if end.lines else labelled("Records", f"nannyctl logs {clean(instance.name)}")
    elif last is None:
        return f"{head}no life of its worker is over yet\n"
    else:
        lines = [f"{head}life {last.generation} {clean(last.how)}", *_labels(end, last, command)]
    lines += ["", *(line for event in end.events for line in event_lines(event, style))] if end.events else []
    lines += ["", *(text for line in end.lines for text in journal.worded(line, style))] if end.lines else []
    return "\n".join(lines).rstrip() + "\n"


def _labels(end: End, last: replies.Exit, command: Command) -> list[str]:
    lines = labelled("Result", f"{clean(last.result)}, by {clean(last.who)}")
    if last.detail:
        lines += labelled("Because", *render.clean_lines(last.detail))
    lines += labelled("When", render.since(last.at, command.now))
    if last.uptime is not None:
        ready = "it was ready" if last.was_ready else "it was never ready"
        lines += labelled("Lived", f"{render.span(last.uptime)}; {ready}")
    return lines + labelled("Memory", *_memory(end.instance, last))


def _memory(instance: Instance, last: replies.Exit) -> list[str]:
    peak = (
        "peak not known"
        if last.memory_peak is None
        else f"peak {size(last.memory_peak)}, page cache included"
    )
    limit = None if instance.status is None else instance.status.memory.limit
    return [peak if limit is None else f"{peak}; the limit is {size(limit)}"]
