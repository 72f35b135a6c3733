"""`nannyctl why`: how the last life that is over ended, who ended it, and what nannyd said about it.

JSON: a list of objects `{"name", "scope", "reason": why nannyd does not answer or null, "exit": the type Exit
of io.nannyd.Nanny or null, "events": [...]}`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.core.paths import control_socket
from nannyd.ctl import render, replies
from nannyd.ctl.client import NANNY, FailureError, Question, ask
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import clean, size
from nannyd.ctl.status import event_lines, labelled

if TYPE_CHECKING:
    from nannyd.ctl.client import Reply
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance

_PATIENCE = 5.0


def why(command: Command) -> int:
    """Print the last exits; 1 where one cannot be had."""
    chosen, problems = command.chosen(command.find(patience=command.timeout))
    asked = {
        id(one): Question(control_socket(one.directory), f"{NANNY}.Why")
        for one in chosen
        if one.status is not None and one.directory is not None
    }
    answers = dict(zip(asked, ask(list(asked.values()), patience=_PATIENCE), strict=True))
    told: list[dict[str, Any]] = []
    texts: list[str] = []
    for instance in chosen:
        try:
            reply = _reply(instance, answers)
            texts.append(_text(instance, reply, command))
        except FailureError as failure:
            problems.append(f"{instance.name}: {replies.words(failure)}")
            continue
        told.append(_described(instance, reply))
    if command.json:
        sys.stdout.write(render.dump_json(told))
    else:
        sys.stdout.write("\n".join(texts))
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


def _described(instance: Instance, reply: Reply | None) -> dict[str, Any]:
    return {
        "name": instance.name,
        "scope": instance.scope.value,
        "reason": instance.reason or None,
        "exit": None if reply is None else reply.get("exit"),
        "events": [] if reply is None else reply.get("events", []),
    }


def _text(instance: Instance, reply: Reply | None, command: Command) -> str:
    name, style = clean(instance.name), command.style
    if reply is None:
        unit = instance.unit
        when = (
            ""
            if unit is None or unit.changed_at is None
            else f", {render.since(unit.changed_at, command.now)}"
        )
        lines = [
            f"{style.dot(instance.active_state)} {name}: {clean(instance.reason or instance.state)}{when}"
        ]
        if unit is not None:
            scope = " --user" if unit.scope == "user" else ""
            lines += labelled("Records", f"journalctl{scope} -u {clean(unit.id)}")
        return "\n".join(lines) + "\n"
    table = replies.Table(reply).table_or_none("exit")
    if table is None:
        return f"{style.dot(instance.active_state)} {name}: no life of its worker is over yet\n"
    last = replies.exit_of(table)
    lines = [f"{style.dot(instance.active_state)} {name}: life {last.generation} {clean(last.how)}"]
    lines += labelled("Result", f"{clean(last.result)}, by {clean(last.who)}")
    if last.detail:
        lines += labelled("Because", *render.clean_lines(last.detail))
    lines += labelled("When", render.since(last.at, command.now))
    if last.uptime is not None:
        ready = "it was ready" if last.was_ready else "it was never ready"
        lines += labelled("Lived", f"{render.span(last.uptime)}; {ready}")
    lines += labelled("Memory", *_memory(instance, last))
    lines += ["", *(line for event in replies.events(reply, "events") for line in event_lines(event, style))]
    return "\n".join(lines).rstrip() + "\n"


def _memory(instance: Instance, last: replies.Exit) -> list[str]:
    peak = (
        "peak not known"
        if last.memory_peak is None
        else f"peak {size(last.memory_peak)}, page cache included"
    )
    limit = None if instance.status is None else instance.status.memory.limit
    return [peak if limit is None else f"{peak}; the limit is {size(limit)}"]
