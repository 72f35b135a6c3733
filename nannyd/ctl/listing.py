"""`nannyctl list`: every instance, a line each.

JSON: a list of objects, by name, with null for what is not known:

    {"name", "scope": "system" | "user", "user": whose it is, of another user's,
     "unit": the unit that systemd has loaded,
     "state": systemd's word for the worker, `draining` where it is not to be started again;
              `not answering`, `inactive`, `masked`, `failed` where nannyd says nothing,
     "activeState": inactive | activating | active | deactivating | failed,
     "reason": why it is not simply running, in words,
     "ending": stopped | terminated | drained | succeeded | failed, of one that has ended,
     "processId": nannyd's, "workerProcessId", "workerStartedAt": microseconds since the epoch,
     "memoryWorkingSet", "memoryLimit": bytes, "restarts",
     "lastResult", "lastWho", "lastExitAt": of the last life that is over}
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.ctl import render
from nannyd.ctl.columns import GAP, Cell, Columns, Row, painted
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import Style, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.owners import Owner

_HEADER = ("NAME", "STATE", "WORKER", "UPTIME", "MEMORY", "", "RESTARTS", "LAST")
_COLUMNS = Columns(bar=5, right=frozenset({2, 3, 6}))
_BAR_WIDTH = 10
_QUIET = 0.12
"""Seconds in which nobody says anything, after which those left are given up."""


def list_(command: Command) -> int:
    """Print the instances.  One that is named and is not there makes the exit status 1."""
    # A list is to be there at once; whoever names some, or a time, means to wait.
    quiet = None if command.names or command.timeout is not None else _QUIET
    silent: list[Owner] = []
    found = command.find(patience=command.timeout, quiet=quiet, silent=silent)
    known, problems = command.filtered(found)
    hidden = 0 if command.names else len(found) - len(known)
    if command.json:
        sys.stdout.write(render.dump_json([describe(one) for one in known]))
    else:
        sys.stdout.write(
            listing(
                known, command.style, command.now, full=command.full, bare=command.no_legend, hidden=hidden
            )
        )
    for owner in silent:
        complain(f"the service manager of {owner.name} does not answer: what does not run there is not known")
    for problem in problems:
        complain(problem)
    return FAILED if problems else ExitCode.CLEAN


def describe(instance: Instance) -> dict[str, Any]:
    """Return *instance* in the form that the head of this file gives."""
    status, unit = instance.status, instance.unit
    worker = None if status is None else status.worker
    last = None if status is None else status.last_exit
    return {
        "name": instance.name,
        "scope": instance.scope.value,
        "user": None if instance.owner is None else instance.owner.name,
        "unit": None if unit is None else unit.id,
        "state": instance.state,
        "activeState": instance.active_state,
        "reason": instance.reason or None,
        "ending": None if instance.end is None else instance.end.kind,
        "processId": status.pid
        if status is not None
        else unit.main_pid or None
        if unit is not None
        else None,
        "workerProcessId": None if worker is None else worker.pid,
        "workerStartedAt": None if worker is None else round(worker.started_at * 1e6),
        "memoryWorkingSet": None if status is None else status.memory.working_set,
        "memoryLimit": None if status is None else status.memory.limit,
        "restarts": None if status is None else status.restarts,
        "lastResult": None if last is None else last.result,
        "lastWho": None if last is None else last.who,
        "lastExitAt": None if last is None else round(last.at * 1e6),
    }


# For people


def listing(
    instances: Sequence[Instance], style: Style, now: float, *, full: bool, bare: bool, hidden: int = 0
) -> str:
    """Return the table with its header and footer; *bare*: without them.

    *hidden*: how many there are that are configured and never ran.
    """
    rows = [row(instance, style, now) for instance in instances]
    head = [tuple(Cell(text, render.BOLD) for text in _HEADER)] if not bare and rows else []
    width = 0 if full or not style.width else style.width - GAP
    lines = [painted(line, style) for line in _COLUMNS.fit([*head, *rows], width, utf8=style.utf8)]
    dots = [*(Cell(" ") for _ in head), *(dot(instance, style) for instance in instances)]
    text = "".join(
        f"{style.paint(mark.text, mark.colour)} {line}\n" for mark, line in zip(dots, lines, strict=True)
    )
    if bare:
        return text
    count = len(instances)
    footer = f"{count} instance{'' if count == 1 else 's'} listed."
    if hidden:
        footer += f" Pass --all to see {hidden} more that never ran."
    return f"{text}\n" * bool(rows) + f"{footer}\n"


def dot(instance: Instance, style: Style) -> Cell:
    """Return a dot for what needs a look, as `systemctl list-units` does."""
    if instance.state == "not answering":
        return Cell("●" if style.utf8 else "*", render.RED)
    if instance.active_state == "failed":
        return Cell("×" if style.utf8 else "x", render.RED)
    return Cell(" ")


def share(instance: Instance) -> float | None:
    """Return the share of its limit that the worker uses."""
    memory = None if instance.status is None else instance.status.memory
    if memory is None or not memory.limit or memory.working_set is None:
        return None
    return memory.working_set / memory.limit


def row(instance: Instance, style: Style, now: float) -> Row:
    """Return the cells of one line."""
    status = instance.status
    worker = None if status is None else status.worker
    memory = None if status is None else status.memory
    used = share(instance)
    colour = memory_colour(instance)
    last, last_colour = _last(instance, now)
    return (
        Cell(clean(instance.name)),
        Cell(clean(instance.state), state_colour(instance)),
        Cell("-" if worker is None else str(worker.pid)),
        Cell("-" if worker is None else render.span(now - worker.started_at)),
        Cell("-" if memory is None else render.used_of(memory.working_set, memory.limit), colour),
        Cell(render.bar(used, _BAR_WIDTH, utf8=style.utf8) if used and style.terminal else "", colour),
        Cell("-" if status is None else str(status.restarts)),
        Cell(last, last_colour),
    )


def state_colour(instance: Instance) -> str:
    """Return the colour of the state."""
    if instance.state == "not answering":
        return render.RED
    return render.STATE_COLOURS.get(instance.active_state, "")


def memory_colour(instance: Instance) -> str:
    """Return the colour of the memory used: yellow from the warning threshold on, red from the next."""
    if instance.status is None or (used := instance.status.memory.working_set) is None:
        return ""
    memory = instance.status.memory
    if memory.terminate is not None and used >= memory.terminate:
        return render.RED
    return render.YELLOW if memory.warn is not None and used >= memory.warn else ""


def _last(instance: Instance, now: float) -> tuple[str, str]:
    """Return what there is to say: why it is not running, or how the life before this one ended."""
    colour = render.RED if instance.active_state == "failed" or instance.failure is not None else ""
    if reason := instance.reason:
        at = instance.down_since
        first = clean(reason.split("\n", 1)[0])
        return (first if at is None else f"{first}, {render.span(now - at)} ago"), colour
    status = instance.status
    if status is None:
        return "", ""
    if status.state != "running":
        return clean(status.sentence), colour
    if status.last_exit is None:
        return "-", ""
    last = status.last_exit
    return clean(f"{last.result}, by {last.who}, {render.span(now - last.at)} ago"), ""
