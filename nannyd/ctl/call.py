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
from nannyd.ctl.render import clean, dump_json

if TYPE_CHECKING:
    from nannyd.ctl.client import Reply
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
    parameters = {"target": target, "arguments": arguments, "timeout": command.timeout}
    if (reply := ask_agent(command, "Call", parameters)) is None:
        return FAILED
    value = replies.Table(reply).table("result").values.get("value")
    sys.stdout.write(dump_json(value, indent=None))
    return ExitCode.CLEAN


def ask_agent(command: Command, method: str, parameters: dict[str, Any]) -> Reply | None:
    """Return what the one instance meant replies; None: what went wrong was printed."""
    instance, address = reach(command)
    try:
        return ask(address, f"{NANNY}.{method}", parameters, patience=None)
    except RefusedError as failure:
        if failure.error == f"{NANNY}.CodeFailed":
            _print_trace(str(failure.parameters.get("traceback", "")))
        complain(f"{instance.name}: {replies.words(failure)}")
    except FailureError as failure:
        complain(f"{instance.name}: {failure}")
    return None


def _print_trace(trace: str) -> None:
    """Print a traceback; without a place in the code it is the mere error, which is said anyway."""
    if '  File "' in trace:
        lines = trace.rstrip().split("\n")
        sys.stderr.write("".join(f"{clean(line)}\n" for line in lines if line))


def _arguments(text: str) -> dict[str, Any]:
    """Return the parameter `arguments`: a list has positional ones, an object those by name."""
    given = json.loads(text)
    if isinstance(given, list):
        return {"args": given}
    if isinstance(given, dict):
        return {"kwargs": given}
    raise ValueError("neither the one nor the other")
