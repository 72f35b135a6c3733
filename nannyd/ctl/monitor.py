"""`nannyctl monitor`: what happens in several instances, as it happens.

JSON: an object a line, `{"name", "scope", "at": microseconds since the epoch, "event", "priority", "message",
"fields"}`; the event `gone` (with at null) is ours: this instance says no more.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.ctl import render, replies
from nannyd.ctl.client import NANNY, ClosedError, Connection, FailureError, NotListeningError, stream
from nannyd.ctl.command import FAILED, complain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nannyd.ctl.client import Reply
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.replies import Event


def monitor(command: Command) -> int:
    """Print events until all the instances are gone; 1 if one of them could not be heard."""
    chosen, problems = command.chosen(command.find(), up=True)
    for problem in problems:
        complain(problem)
    failed = follow(command, chosen, f"{NANNY}.Monitor", {}, _event)
    return FAILED if problems or failed else ExitCode.CLEAN


def _event(reply: Reply) -> list[Event]:
    return [replies.event_of(replies.Table(reply).table("event"))]


def follow(
    command: Command,
    instances: Sequence[Instance],
    method: str,
    parameters: Reply,
    read: Callable[[Reply], list[Event]],
) -> bool:
    """Print what *method* streams, *read* from each reply; return whether an instance could not be heard."""
    failed = False
    connections: list[tuple[Instance, Connection]] = []
    for instance in instances:
        try:
            connections.append((instance, _call(instance, method, parameters)))
        except FailureError as failure:
            complain(f"{instance.name}: {replies.words(failure)}")
            failed = True
    for instance, said in stream(connections):
        try:
            if isinstance(said, FailureError):
                raise said
            for event in read(said):
                show(command, instance, event)
        except ClosedError:
            _print_end(command, instance)
        except FailureError as failure:
            failed = True
            complain(f"{instance.name}: {replies.words(failure)}")
        sys.stdout.flush()
    return failed


def _call(instance: Instance, method: str, parameters: Reply) -> Connection:
    if (address := instance.address) is None:
        raise NotListeningError(f"it does not run ({instance.reason or instance.state})")
    if instance.failure is not None and not instance.is_well:
        raise instance.failure
    connection = Connection(address)
    connection.send(method, parameters, more=True)
    return connection


def show(command: Command, instance: Instance, event: Event) -> None:
    """Print one event."""
    sys.stdout.write(as_json(instance, event) if command.json else as_text(instance, event, command))


def as_json(instance: Instance, event: Event) -> str:
    """Return *event* as a line of JSON."""
    told = {"name": instance.name, "scope": instance.scope.value, **replies.described(event)}
    return render.dump_json(told, indent=None)


def as_text(instance: Instance, event: Event, command: Command) -> str:
    """Return *event* as journalctl would show it, further lines indented."""
    first, *rest = render.clean_lines(event.message)
    head = f"{render.log_instant(event.at)} {render.clean(instance.name)}: "
    colour = render.priority_colour(event.priority)
    lines = [head + command.style.paint(first, colour)]
    lines += [" " * len(head) + command.style.paint(line, colour) for line in rest]
    return "\n".join(lines) + "\n"


def _print_end(command: Command, instance: Instance) -> None:
    text = f"{instance.name} is gone"
    if command.json:
        told = {"name": instance.name, "scope": instance.scope.value, "at": None, "event": "gone"}
        sys.stdout.write(
            render.dump_json({**told, "priority": 5, "message": text, "fields": {}}, indent=None)
        )
    else:
        sys.stdout.write(command.style.paint(render.clean(f"-- {text} --"), render.GREY) + "\n")
