"""`nannyctl call`: a function of the user's, called in the agent; its result is printed as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.ctl import replies
from nannyd.ctl.client import NANNY, FailureError, RefusedError
from nannyd.ctl.client import call as ask
from nannyd.ctl.command import FAILED, complain, reach
from nannyd.ctl.render import clean

if TYPE_CHECKING:
    from nannyd.ctl.command import Command


def call(command: Command) -> int:
    """Print what the function returns, or the traceback."""
    if not 1 <= len(command.words) <= 2:
        complain("write nannyctl call NAME MODULE:FUNCTION [JSON]")
        return ExitCode.USAGE
    target, *given = command.words
    try:
        arguments = _arguments(given[0]) if given else {}
    except ValueError as error:
        complain(f"{given[0]!r} is no JSON list or object ({error}); write '[1, 2]' or '{{\"key\": 1}}'")
        return ExitCode.USAGE
    instance, path = reach(command)
    parameters = {"target": target, "arguments": arguments, "timeout": command.timeout}
    try:
        reply = ask(path, f"{NANNY}.Call", parameters, patience=None)
    except RefusedError as failure:
        if failure.error == f"{NANNY}.CodeFailed":
            lines = str(failure.parameters.get("traceback", "")).rstrip().split("\n")
            sys.stderr.write("".join(f"{clean(line)}\n" for line in lines if line))
        complain(f"{instance.name}: {replies.words(failure)}")
        return FAILED
    except FailureError as failure:
        complain(f"{instance.name}: {failure}")
        return FAILED
    value = replies.Table(reply).table("result").values.get("value")
    sys.stdout.write(f"{json.dumps(value, ensure_ascii=False, indent=None)}\n")
    return ExitCode.CLEAN


def _arguments(text: str) -> dict[str, Any]:
    """Return the parameter `arguments`: a list has positional ones, an object those by name."""
    given = json.loads(text)
    if isinstance(given, list):
        return {"args": given}
    if isinstance(given, dict):
        return {"kwargs": given}
    raise ValueError("neither the one nor the other")
