"""`nannyctl monitor`: what happens in several instances, as it happens.

JSON: an object a line, `{"name", "scope", "at": microseconds since the epoch, "event", "priority", "message",
"fields"}`; the event `gone` (with at null) is ours: this instance says no more.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.core.paths import control_socket
from nannyd.ctl import render, replies
from nannyd.ctl.client import NANNY, Connection, FailureError, NonsenseError, NotListeningError, stream
from nannyd.ctl.command import FAILED, complain

if TYPE_CHECKING:
    from nannyd.ctl.client import Reply
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.replies import Event


def monitor(command: Command) -> int:
    """Print events until all the instances are gone; 1 if one of them could not be heard."""
    chosen, problems = command.chosen(command.find(), up=True)
    connections: list[tuple[Instance, Connection]] = []
    for instance in chosen:
        try:
            connections.append((instance, _listen(instance)))
        except FailureError as failure:
            problems.append(f"{instance.name}: {replies.words(failure)}")
    for problem in problems:
        complain(problem)
    failed = bool(problems)
    for instance, said in stream(connections):
        if isinstance(said, FailureError):
            if isinstance(said, NotListeningError):
                _print_end(command, instance)
            else:
                failed = True
                complain(f"{instance.name}: {replies.words(said)}")
        else:
            _print(command, instance, said)
        sys.stdout.flush()
    return FAILED if failed else ExitCode.CLEAN


def _listen(instance: Instance) -> Connection:
    if instance.directory is None:
        raise NotListeningError(f"it does not run ({instance.reason or instance.state})")
    if instance.failure is not None and not instance.is_well:
        raise instance.failure
    connection = Connection(control_socket(instance.directory))
    connection.send(f"{NANNY}.Monitor", {}, more=True)
    return connection


def _print(command: Command, instance: Instance, said: Reply) -> None:
    try:
        event = replies.event_of(replies.Table(said).table("event"))
    except NonsenseError as failure:
        complain(f"{instance.name}: {failure}")
        return
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
