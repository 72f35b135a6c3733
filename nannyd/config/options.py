"""The command lines that take settings: `run`, `check`, `plan`, `explain`, `compile`.

argparse does the fixed options and the help.  Setting options are taken out before it: their free keys
(`--nanny.environ.FOO=bar`) cannot be declared, and an unknown one is a problem among the others of the
configuration, not a broken command line.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.config.compile import LOG_LEVELS, Request
from nannyd.config.settings import SECTIONS, Setting, catalogue
from nannyd.core.plan import LogFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTING = re.compile(r"(--[A-Za-z][\w-]*\.[^=]+)(?:=(.*))?", re.DOTALL)

COMMANDS = {
    "run": "supervise one instance in the foreground, until SIGTERM or SIGINT",
    "check": "print nothing, or everything that is wrong with the configuration",
    "plan": "print the effective settings",
    "explain": "print every setting and variable of the worker, and where it comes from",
    "compile": "print the plan, or all problems, as JSON",
}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line that was understood."""

    request: Request
    json: bool = False
    foreground: bool = False


def parse(command: str, arguments: Sequence[str]) -> CommandLine:
    """Return what *arguments*, those after *command*, ask for.

    Raises SystemExit(2) for a broken command line, and SystemExit(0) after `--help`.
    """
    before, worker = _split(arguments)
    parser = _parser(command)
    rest, settings = _take_settings(before, parser)
    options = parser.parse_args(rest)
    request = Request(
        name=options.name,
        config_dir=options.config_dir,
        options=settings,
        env=options.env,
        command=worker,
        log_format=options.log_format,
        log_level=options.log_level,
        arguments=["run", *arguments],
    )
    return CommandLine(
        request, getattr(options, "json", False), command in ("run", "compile") or options.foreground
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return what stands before `--`, and the worker's command after it, if there is one."""
    if "--" not in arguments:
        return list(arguments), None
    at = arguments.index("--")
    return list(arguments[:at]), list(arguments[at + 1 :])


def _take_settings(
    arguments: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return *arguments* without the setting options, and those with their texts."""
    rest, settings, position = [], [], 0
    while position < len(arguments):
        argument = arguments[position]
        match = _SETTING.fullmatch(argument)
        position += 1
        if match is None:
            rest.append(argument)
            continue
        text = match[2]
        if text is None:
            if position == len(arguments):
                parser.error(f"argument {argument}: expected one value; write {argument}=VALUE")
            text = arguments[position]
            position += 1
        settings.append((match[1], text))
    return rest, settings


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        # The text may be a value without its name: it is not shown.
        raise argparse.ArgumentTypeError("expected NAME=VALUE")
    return name, value


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"nannyd {command}",
        usage=f"nannyd {command} NAME [options] [--SECTION.KEY=VALUE ...] [-- COMMAND ...]",
        description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the instance, for example worker1")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="read DIR instead of /etc/nannyd")
    parser.add_argument(
        "--env", type=_assignment, action="append", default=[], metavar="NAME=VALUE",
        help="a variable of the worker; may be repeated",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=[word.value for word in LogFormat])
    parser.add_argument("--log-level", choices=LOG_LEVELS)
    if command in ("plan", "explain"):
        parser.add_argument("--json", action="store_true", help="print JSON")
    if command in ("check", "plan", "explain"):
        parser.add_argument(
            "--foreground", action="store_true",
            help="use the environment of this shell, also for an instance that systemd runs",
        )  # fmt: skip
    for section, settings in catalogue().items():
        group = parser.add_argument_group(f"[{section}]", SECTIONS[section].__doc__)
        for setting in settings.values():
            group.add_argument(setting.option, metavar="VALUE", help=_help(setting))
            if setting.is_table:
                group.add_argument(f"{setting.option}.KEY", metavar="VALUE", help="one entry of it")
    return parser


def _help(setting: Setting) -> str:
    kind = "  (JSON)" if setting.is_json or setting.is_table else ""
    return (setting.description + kind).replace("%", "%%")
