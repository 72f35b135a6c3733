"""The command `nannyd`.

    nannyd run NAME [options] [-- COMMAND…]
    nannyd check|plan|explain NAME [options]
    nannyd reload NAME

`compile` is for the supervisor, which runs it as a child to reload.  pydantic is imported by the commands
that need it and not for `--help` and `--version`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from nannyd import __version__
from nannyd.config.complain import complain
from nannyd.core.errors import ConfigError, ExitCode, Problem
from nannyd.core.units import name_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from nannyd.config.compile import Compiled
    from nannyd.config.options import CommandLine

_HELP = """\
usage: nannyd COMMAND NAME [options]

Keeps one memory-hungry worker healthy under systemd.

  run NAME [options] [-- COMMAND ...]   supervise one instance in the foreground
  check NAME [options]                  print nothing, or everything that is wrong
  plan NAME [options]                   print the effective settings
  explain NAME [options]                print every setting and variable, and where it comes from
  reload NAME                           ask a running instance to read its configuration again

  nannyd COMMAND --help lists the options; --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (None: the process's own) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    if arguments[:1] == ["run"]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; nor must the interpreter complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CLEAN
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - a bug must not look like a worker that failed (1)
        complain(["bug in nannyd, please report it:", *traceback.format_exc().splitlines()])
        return ExitCode.INTERNAL_ERROR
    return status


def _open_standard_streams() -> None:
    """Put /dev/null where the caller closed 0, 1 or 2; else the next file we open takes its place.

    The supervisor and the worker would have the instance's lock for their standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w")  # noqa: SIM115 - a descriptor, and as long as we live
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


def _leave(number: int, frame: FrameType | None) -> None:
    """End: nothing was started yet, so for `run` that is a clean end, as a moment later.

    At once: where KeyboardInterrupt passes through exec() of a string (dataclasses, pydantic), the
    interpreter ends by SIGINT, whoever caught it (CPython 3.11, run_eval_code_obj and exit_sigint).
    """
    os._exit(ExitCode.CLEAN)


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["-h" | "--help", *_]:
            sys.stdout.write(_HELP)
        case ["--version", *_]:
            sys.stdout.write(f"nannyd {__version__}\n")
        case ["reload", "-h" | "--help"]:
            sys.stdout.write(_HELP)
        case ["reload", name] if not name.startswith("-"):
            from nannyd.config.reload import reload

            return reload(name)
        case ["reload", *_]:
            return _usage("nannyd reload takes one NAME")
        case ["run", name] if name.startswith("-") and _is_main_process():
            # `nannyd run %i`: no option, but what stands between @ and .service.
            complain([Problem("command line", "NAME", str(name_problem(name)))])
            return ExitCode.CONFIG
        case [command, *rest] if command in _COMMANDS:
            return _settled(command, rest)
        case [command, *_]:
            return _usage(f"{command!r} is not a command; write run, check, plan, explain or reload")
        case []:
            return _usage("a command is missing; write run, check, plan, explain or reload")
        case _:
            return _usage("the command line is not understood")
    return ExitCode.CLEAN


def _usage(message: str) -> int:
    sys.stderr.write(f"nannyd: {message}\nnannyd --help lists the commands\n")
    return ExitCode.USAGE


def _settled(command: str, rest: list[str]) -> int:
    """Run a *command* that takes settings."""
    from nannyd.config.options import parse

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A path or value that is no UTF-8 must not end us in the middle of a message.
            stream.reconfigure(errors="backslashreplace")
    try:
        line = parse(command, rest)
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else ExitCode.USAGE
    try:
        return _COMMANDS[command](line)
    except ConfigError as error:
        if command == "compile":
            sys.stdout.write(json.dumps({"problems": [str(problem) for problem in error.problems]}) + "\n")
        else:
            complain(error.problems)
        return ExitCode.CONFIG


def _is_main_process() -> bool:
    """Say whether systemd itself has executed us (systemd.exec(5), $SYSTEMD_EXEC_PID)."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def _compiled(line: CommandLine) -> Compiled:
    """Return the plan, in the surroundings of the unit where systemd runs the instance."""
    from nannyd.config.compile import compile_plan, own_surroundings

    if not line.foreground:
        from nannyd.config.unit import in_unit

        found = in_unit(line.request)
        if found is not None:
            request, around = found
            return compile_plan(request, around)
    return compile_plan(line.request, own_surroundings(os.environ))


def _run(line: CommandLine) -> int:
    from nannyd.config.run import run

    return run(_compiled(line))


def _check(line: CommandLine) -> int:
    for note in _compiled(line).notes:
        sys.stderr.write(f"note: {note}\n")
    return ExitCode.CLEAN


def _plan(line: CommandLine) -> int:
    from nannyd.config.explain import dump, plan_document, plan_text

    compiled = _compiled(line)
    sys.stdout.write(dump(plan_document(compiled)) if line.json else plan_text(compiled))
    return ExitCode.CLEAN


def _explain(line: CommandLine) -> int:
    from nannyd.config.explain import dump, explain_document, explain_text

    compiled = _compiled(line)
    sys.stdout.write(dump(explain_document(compiled)) if line.json else explain_text(compiled))
    return ExitCode.CLEAN


def _compile(line: CommandLine) -> int:
    from nannyd.config.handover import handover

    sys.stdout.buffer.write(handover(_compiled(line)))
    return ExitCode.CLEAN


_COMMANDS: dict[str, Callable[[CommandLine], int]] = {
    "run": _run,
    "check": _check,
    "plan": _plan,
    "explain": _explain,
    "compile": _compile,
}
