"""`nannyctl logs`: what nannyd and the worker of an instance said, earlier lives included.

We become journalctl, which reads the journal with the caller's rights.  Where they do not suffice, or there
is no journal, we say so and show what nannyd itself still has: its own last records.

JSON: that of `journalctl -o json`; of nannyd's own records that of `nannyctl monitor`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.ctl import journal, replies
from nannyd.ctl.client import NANNY, FailureError, Question, ask
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.monitor import follow, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.ctl.client import Reply
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.replies import Event

_STATUS_PATIENCE = 1.0
_PATIENCE = 5.0
_FOLLOWED = 10
"""Records shown before those to come, as with `journalctl -f`."""


def logs(command: Command) -> int:
    """Print the lines; 1 where there is nothing to print them from."""
    # One that hangs is the one whose log is wanted.
    chosen, problems = command.chosen(command.find(patience=_STATUS_PATIENCE))
    whys = {id(one): why for one in chosen if (why := journal.why_not(one)) is not None}
    own = [one for one in chosen if id(one) in whys]
    others = [one for one in chosen if id(one) not in whys]
    if command.follow and own and others:
        problems.append(
            f"{others[0].name} is followed in the journal, {own[0].name} is not: follow them apart"
        )
    for problem in problems:
        complain(problem)
    if problems:
        return FAILED
    status = _show_own(command, own, whys) if own else ExitCode.CLEAN
    return _become_journalctl(command, others) if others else status


def _become_journalctl(command: Command, instances: Sequence[Instance]) -> int:
    given = {
        "lines": command.lines,
        "boot": command.boot,
        "since": command.since,
        "until": command.until,
        "priority": command.priority,
        "output": "json" if command.json else None,
    }
    options = [
        f"--{name}={value}" if value != "" else f"--{name}"
        for name, value in given.items()
        if value is not None
    ]
    options += ["--follow"] if command.follow else []
    sys.stdout.flush()
    # Python ignores it, and what is ignored stays so: `nannyctl logs w | head` would go on in vain.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp("journalctl", journal.journalctl(instances, *options))  # noqa: S606
    except OSError as error:
        complain(f"journalctl cannot be run ({error.strerror})")
    return FAILED


# What nannyd itself still has


def _show_own(command: Command, instances: Sequence[Instance], whys: dict[int, str]) -> int:
    asked = {"n": command.lines, "priority": command.priority}
    parameters = {name: value for name, value in asked.items() if value is not None}
    silent = [one for one in instances if one.directory is None or (one.failure is not None)]
    heard = [one for one in instances if one not in silent]
    for instance in silent:
        reason = replies.words(instance.failure) if instance.failure is not None else "it does not run"
        complain(f"{instance.name}: {whys[id(instance)]}; and nannyd says nothing: {reason}")
    for instance in heard:
        complain(
            f"{instance.name}: {whys[id(instance)]}; these are nannyd's own last records{_unheeded(command)}"
        )
    if command.follow:
        parameters = {"n": _FOLLOWED, **parameters, "follow": True}
        failed = follow(command, heard, f"{NANNY}.GetLogs", parameters, _records)
    else:
        failed = _show_last(command, heard, parameters)
    return FAILED if silent or failed else ExitCode.CLEAN


def _unheeded(command: Command) -> str:
    given = [f"--{name}" for name in ("boot", "since", "until") if getattr(command, name) is not None]
    return f", whatever {' and '.join(given)} says" if given else ""


def _show_last(command: Command, instances: Sequence[Instance], parameters: dict[str, Any]) -> bool:
    """Print the records of all, oldest first; return whether some could not be had."""
    questions = [
        Question(address, f"{NANNY}.GetLogs", parameters)
        for one in instances
        if (address := one.address) is not None
    ]
    failed = False
    records: list[tuple[Instance, Event]] = []
    for instance, answer in zip(instances, ask(questions, patience=_PATIENCE), strict=True):
        try:
            if isinstance(answer, FailureError):
                raise answer
            records += [(instance, event) for event in _records(answer)]
        except FailureError as failure:
            complain(f"{instance.name}: {replies.words(failure)}")
            failed = True
    for instance, event in sorted(records, key=lambda record: record[1].at):
        show(command, instance, event)
    return failed


def _records(reply: Reply) -> list[Event]:
    return replies.events(reply, "records")[::-1]
