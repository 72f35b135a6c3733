"""The command `nannyctl`.

    nannyctl [list] [PATTERN…]
    nannyctl VERB NAME…

Every verb is a line of VERBS and a module that is imported when it is wanted: `nannyctl list` is to be there
at once.  A verb gets a Command and returns an exit status.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from nannyd import __version__
from nannyd.core.errors import ExitCode
from nannyd.core.paths import Scope
from nannyd.core.units import parse_duration
from nannyd.ctl import instances, owners
from nannyd.ctl.client import FailureError
from nannyd.ctl.command import FAILED, Command, complain
from nannyd.ctl.render import LEVELS, Style, level_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

_HELP = """\
usage: nannyctl [VERB] [NAME...] [options]

Sees and steers the instances of nannyd on this host.

"""
_OPTIONS = """
A NAME may be a pattern ('worker*').  Options:

  -a, --all            every instance; with list also those that never ran
      --json           JSON instead of text
      --system|--user  only the system's instances, or only your own
  -t, --timeout SPAN   how long to wait (5, 500ms, 1min 30s)
      --reason TEXT    why, for the log
  -n, --lines N        how many records to show
  -f, --follow         show what comes later too
  -b, --boot[=BOOT]    what was said since the machine started, or in an earlier run of it (-1)
      --since, --until TIME  as journalctl(1) has it: "10:00", yesterday, -1h
  -p, --priority LEVEL only what is as urgent: err, warning ... or 0 to 7
  -l, --full           do not shorten
  -q, --no-legend      neither header nor footer
  -e, --env NAME=VALUE a variable more for a command
  -w, --directory DIR  where a command runs
      --name PLUGIN    how a plugin is called
      --tty, --no-tty  a terminal for a command, or none; by default where nannyctl has one
  -h, --help, --version
"""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line."""

    module: str
    """Of this package; it has a function of the verb's name, `log_level`; `list_`."""
    synopsis: str
    help: str
    options: frozenset[str] = frozenset()
    """The options it takes beside `--json --system --user --all`."""


def _verb(module: str, synopsis: str, text: str, *options: str) -> Verb:
    return Verb(module, synopsis, text, frozenset(options))


VERBS: dict[str, Verb] = {
    "list": _verb(
        "listing", "[NAME...]", "every instance, a line each (the default)", "timeout", "full", "no_legend"
    ),
    "status": _verb("status", "NAME...", "how an instance is, in full", "timeout", "lines", "full"),
    "why": _verb("why", "NAME...", "how its last life ended, and why", "timeout", "lines", "full"),
    "metrics": _verb("metrics", "[NAME...]", "all figures as OpenMetrics text", "timeout"),
    "start": _verb("verbs", "NAME...", "start it, and wait until its worker is ready", "timeout"),
    "stop": _verb("verbs", "NAME...", "end the worker and nannyd", "timeout", "reason"),
    "restart": _verb("verbs", "NAME...", "end the worker and start the next", "timeout", "reason"),
    "kill": _verb(
        "verbs", "NAME...", "end the worker; the restart policy decides what follows", "timeout", "reason"
    ),
    "drain": _verb("verbs", "NAME...", "when the worker goes away, do not restart it", "reason"),
    "reload": _verb("verbs", "NAME...", "read the configuration again", "timeout"),
    "top": _verb("top", "[NAME...]", "all instances, live, and keys to restart or kill them", "reason"),
    "logs": _verb(
        "logs",
        "NAME...",
        "what nannyd and the worker said",
        *("follow", "lines", "boot", "since", "until", "priority"),
    ),
    "exec": _verb(
        "execute",
        "NAME -- COMMAND...",
        "run a command in its environment, with a terminal if there is one",
        *("timeout", "env", "directory", "tty", "no_tty"),
    ),
    "call": _verb("call", "NAME MODULE:FUNCTION [JSON]", "call a function in its agent", "timeout"),
    "plugin-add": _verb(
        "plugins", "NAME TARGET [JSON]", "set a plugin up in its agent, until nannyd ends", "name"
    ),
    "plugin-remove": _verb("plugins", "NAME PLUGIN", "take a plugin down"),
    "monitor": _verb("monitor", "NAME...", "what happens, as it happens"),
    "plan": _verb("plans", "NAME", "the settings in force"),
    "explain": _verb("plans", "NAME", "every setting and variable with its origin"),
    "log-level": _verb("verbs", "NAME [LEVEL]", "show or set how much nannyd itself logs"),
}

_FUNCTIONS = {"list": "list_", "exec": "execute"}
_BOOT = re.compile(r"all|[+-]?\d+|[0-9a-f]{32}([+-]\d+)?", re.ASCII)
"""journalctl(1), --boot=."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_OF_SOME = tuple(sorted(frozenset[str]().union(*(verb.options for verb in VERBS.values()))))
"""The options that only some verbs take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (None: the process's own) and return the exit status."""
    # Who was given none of them (a daemon, `>&-`) has work to be done all the same.
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()  # whoever read it has seen enough
        return ExitCode.CLEAN
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except FailureError as failure:
        complain(str(failure))
        return FAILED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            return _bug()
        complain(f"standard output cannot be written: {error.strerror}")
        _discard_output()
        return FAILED
    except Exception:  # noqa: BLE001 - a bug must not look like an instance that failed (1)
        return _bug()
    return status


def _bug() -> int:
    import traceback

    sys.stderr.write(f"bug in nannyctl, please report it:\n{traceback.format_exc()}")
    return ExitCode.INTERNAL_ERROR


def _discard_output() -> None:
    """Have the interpreter not complain at its end of what it cannot write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # noqa: PTH123 - to the end


def _dispatch(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments, behind = _split(arguments)
    options = _parser().parse_intermixed_args(_with_boot(arguments))
    if options.help:
        sys.stdout.write(_help())
        return ExitCode.CLEAN
    if options.version:
        sys.stdout.write(f"nannyctl {__version__}\n")
        return ExitCode.CLEAN
    name, *names = options.words or ["list"]
    if name not in VERBS:
        return _usage(f"Unknown command verb {name!r}.")
    verb = VERBS[name]
    if runtime := owners.own_runtime(os.environ):
        os.environ["XDG_RUNTIME_DIR"] = runtime  # for systemctl, too
    names, words = _told_apart(name, names, behind)
    if problem := _misused(name, verb, options, names):
        return _usage(problem)
    command = Command(
        name,
        [instances.plain(word) for word in names],
        os.environ,
        Style.of_terminal(sys.stdout, os.environ),
        time.clock_gettime(time.CLOCK_REALTIME),
        all=options.all,
        json=options.json,
        scopes=tuple(Scope) if options.scope is None else (Scope(options.scope),),
        **{option: getattr(options, option) for option in _OF_SOME},
        words=words,
    )
    module = importlib.import_module(f"nannyd.ctl.{verb.module}")
    status: int = getattr(module, _FUNCTIONS.get(name, name.replace("-", "_")))(command)
    return status


def _misused(name: str, verb: Verb, options: argparse.Namespace, names: list[str]) -> str | None:
    for option in _OF_SOME:
        if getattr(options, option) not in (None, False, []) and option not in verb.options:
            return f"nannyctl {name} does not take --{option.replace('_', '-')}."
    if not names and not options.all and verb.synopsis.startswith("NAME"):
        return f"nannyctl {name} needs the name of an instance: nannyctl {name} {verb.synopsis}"
    if verb.synopsis.split()[0] == "NAME" and name != "log-level" and (len(names) > 1 or options.all):
        return f"nannyctl {name} takes one name: nannyctl {name} {verb.synopsis}"
    return None


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before `--` and what behind it, where nothing is an option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def _with_boot(arguments: list[str]) -> list[str]:
    """Return *arguments* with the value of --boot joined to it.

    It is optional; as with journalctl the next word is it where it can be one: `--boot w` means instance w.
    """
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] == "--boot=" and _BOOT.fullmatch(word):
            joined[-1] += word
        elif word in ("-b", "--boot"):
            joined.append("--boot=")
        elif word.startswith("-b") and _BOOT.fullmatch(word[2:]):
            joined.append(f"--boot={word[2:]}")
        else:
            joined.append(word)
    return joined


def _told_apart(verb: str, names: list[str], behind: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of instances, and the words that are none; *behind* stood behind `--`."""
    if verb == "exec":
        return names, behind
    if verb in ("call", "plugin-add", "plugin-remove"):
        return names[:1], [*names[1:], *behind]
    return [*names, *behind], []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_usage(f"{message}."))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nannyctl", add_help=False, allow_abbrev=False, exit_on_error=True)
    parser.add_argument("words", nargs="*")
    for flags in (("-h", "--help"), ("--version",), ("-a", "--all"), ("--json",), ("-l", "--full")):
        parser.add_argument(*flags, action="store_true")
    parser.add_argument("-q", "--no-legend", action="store_true")
    parser.add_argument("--system", dest="scope", action="store_const", const=Scope.SYSTEM.value)
    parser.add_argument("--user", dest="scope", action="store_const", const=Scope.USER.value)
    parser.add_argument("-t", "--timeout", type=_span)
    parser.add_argument("--reason")
    parser.add_argument("-n", "--lines", type=_count)
    parser.add_argument("-f", "--follow", action="store_true")
    for option in ("--boot", "--since", "--until"):
        parser.add_argument(option)
    parser.add_argument("-p", "--priority", type=_priority)
    parser.add_argument("-e", "--env", action="append", default=[])
    parser.add_argument("-w", "--directory")
    parser.add_argument("--name")
    parser.add_argument("--tty", action="store_true")
    parser.add_argument("--no-tty", action="store_true")
    return parser


def _span(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 5, 500ms or 1min 30s") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines; write 10")
    return int(text)


def _priority(text: str) -> int:
    if (level := level_of(text)) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a level; write one of {', '.join(LEVELS)}, or 0 to 7"
        )
    return level


def _usage(message: str) -> int:
    complain(f"{message}\nnannyctl --help lists the verbs.")
    return ExitCode.USAGE


def _help() -> str:
    width = max(len(f"{name} {verb.synopsis}") for name, verb in VERBS.items())
    lines = [f"  {f'{name} {verb.synopsis}':<{width}}  {verb.help}\n" for name, verb in VERBS.items()]
    return _HELP + "".join(lines) + _OPTIONS
