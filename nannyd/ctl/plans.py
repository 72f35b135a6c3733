"""`nannyctl plan` and `nannyctl explain`: what is in force in a running instance.

JSON: as `nannyd plan --json` and `nannyd explain --json` print it (nannyd(8)), with the source `self`.  For
an instance that does not run they are what those commands print.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from nannyd.core.errors import ExitCode
from nannyd.core.paths import interpreter
from nannyd.ctl import files, replies
from nannyd.ctl.client import NANNY, FailureError, call
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import clean, dump_json

if TYPE_CHECKING:
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance

_PATIENCE = 5.0


def plan(command: Command) -> int:
    """Print the settings in force."""
    return _show(command, "Plan", "plan")


def explain(command: Command) -> int:
    """Print every setting and variable with its origin."""
    return _show(command, "Explain", "explanation")


def _show(command: Command, method: str, key: str) -> int:
    chosen, problems = command.chosen(command.find())
    if len(chosen) > 1:
        problems.append(f"{len(chosen)} instances match; name one of {', '.join(one.name for one in chosen)}")
    for problem in problems:
        complain(problem)
    if problems:
        return FAILED
    (instance,) = chosen
    if (address := instance.address) is None:
        if instance.owner is not None:
            complain(
                f"{instance.name}: it does not run; what would be in force, {instance.owner.name} can ask"
            )
            return FAILED
        return _become_nannyd(command, instance)
    try:
        if instance.failure is not None and not instance.is_well:
            raise instance.failure
        reply = call(address, f"{NANNY}.{method}", patience=_PATIENCE)
        answer = replies.Table(reply)
        if command.json:
            sys.stdout.write(dump_json(answer.table(key).values))
        else:
            lines = answer.text("text").rstrip("\n").split("\n")
            sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))
    except FailureError as failure:
        complain(f"{instance.name}: {replies.words(failure)}")
        return FAILED
    return ExitCode.CLEAN


def _become_nannyd(command: Command, instance: Instance) -> NoReturn:
    """Let the launcher say what would be in force."""
    options = ["--json"] if command.json else []
    if not instance.manager.runs(command.environ.get("XDG_RUNTIME_DIR")):
        # Where there is a service manager, the launcher learns it from the unit.
        options += files.config_dir(instance.bare, instance.scope, command.environ)
    sys.stdout.flush()
    call = [*interpreter(os.environ), "-m", "nannyd", command.verb, instance.bare, *options]
    os.execv(call[0], call)  # noqa: S606
