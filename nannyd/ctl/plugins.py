"""`nannyctl plugin-add` and `plugin-remove`: plugins of a running instance.

JSON: the reply to PluginAdd() and PluginRemove().
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.ctl import replies
from nannyd.ctl.call import ask_agent
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import clean, dump_json

if TYPE_CHECKING:
    from nannyd.ctl.command import Command


def plugin_add(command: Command) -> int:
    """Set a plugin up, and print its name."""
    if not 1 <= len(command.words) <= 2:
        complain("write nannyctl plugin-add NAME TARGET [JSON]")
        return ExitCode.USAGE
    target, *given = command.words
    try:
        kwargs = json.loads(given[0]) if given else {}
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        complain(f"{given[0]!r} is no JSON object; write '{{\"key\": 1}}'")
        return ExitCode.USAGE
    reply = ask_agent(command, "PluginAdd", {"name": command.name, "target": target, "kwargs": kwargs})
    if reply is None:
        return FAILED
    table = replies.Table(reply)
    restarted = "; the worker was restarted for it" if table.flag("restarted") else ""
    text = f"plugin {clean(table.text('name'))} was added{restarted}\n"
    sys.stdout.write(dump_json(reply) if command.json else text)
    return ExitCode.CLEAN


def plugin_remove(command: Command) -> int:
    """Take a plugin down."""
    if len(command.words) != 1:
        complain("write nannyctl plugin-remove NAME PLUGIN")
        return ExitCode.USAGE
    reply = ask_agent(command, "PluginRemove", {"name": command.words[0]})
    if reply is None:
        return FAILED
    if command.json:
        sys.stdout.write(dump_json(reply))
    return ExitCode.CLEAN
