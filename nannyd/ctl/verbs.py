"""The verbs that change something: start, stop, restart, kill, drain, reload, log-level.

Where systemd runs an instance, starting and stopping are its jobs, so that `systemctl status` agrees
and nothing restarts what was stopped.  All else goes to the control sockets, to all at once.

JSON: a list of objects

    {"name", "scope", "done": bool, "error": text or null, "reply": the method's parameters or null}
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.core.errors import ExitCode
from nannyd.core.units import format_duration
from nannyd.ctl import files, replies, units
from nannyd.ctl.client import (
    NANNY,
    SERVICE,
    FailureError,
    NotListeningError,
    Question,
    RefusedError,
    ask,
)
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.programs import Program, collect
from nannyd.ctl.render import LEVELS, dump_json, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nannyd.ctl.client import Address
    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.units import Manager, Unit

_GRACE = 5.0
"""Seconds beside the timeout that was given, for the answer to arrive."""
_PATIENCE = 5.0
"""Seconds for what is answered at once."""
_RELOAD_PATIENCE = 95.0
"""Seconds; nannyd gives up on reading its configuration before."""


@dataclass(slots=True)
class Deed:
    """What was done to one instance."""

    instance: Instance
    error: str | None = None
    reply: dict[str, Any] | None = None

    def fail(self, error: str) -> None:
        """Say what went wrong."""
        self.error = error


@dataclass(slots=True)
class _Work:
    """The deeds of one command."""

    command: Command
    deeds: list[Deed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, command: Command, *, down: bool = False) -> _Work:
        """Return what is meant; a pattern means what is up or has failed, or (*down*) everything."""
        chosen, problems = command.chosen(command.find(), up=not down)
        return cls(command, [Deed(instance) for instance in chosen], problems)

    def finish(self, say: Callable[[Deed], str] = lambda _: "") -> int:
        """Print what was done and what was not; return the exit status."""
        if self.command.json:
            sys.stdout.write(dump_json([_described(deed) for deed in self.deeds]))
        for deed in self.deeds:
            if deed.error is not None:
                complain(f"{deed.instance.name}: {deed.error}")
            elif not self.command.json and (text := say(deed)):
                sys.stdout.write(text)
        for problem in self.problems:
            complain(problem)
        failed = self.problems or any(deed.error is not None for deed in self.deeds)
        return FAILED if failed else ExitCode.CLEAN


def _described(deed: Deed) -> dict[str, Any]:
    return {
        "name": deed.instance.name,
        "scope": deed.instance.scope.value,
        "done": deed.error is None,
        "error": deed.error,
        "reply": deed.reply,
    }


# Verbs


def start(command: Command) -> int:
    """Start the worker of what is up, and the unit of what is down."""
    work = _Work.of(command, down=True)
    up = [deed for deed in work.deeds if _is_asked(deed)]
    tell(up, f"{NANNY}.Instantiate", _asked(command, "timeout"), _patience(command))
    _run_jobs(command, "start", [deed for deed in work.deeds if deed not in up])
    return work.finish()


def stop(command: Command) -> int:
    """End the instances; what is down stays so."""
    work = _Work.of(command)
    jobs = [deed for deed in work.deeds if deed.instance.unit is not None and deed.instance.unit.runs]
    others = [deed for deed in work.deeds if deed not in jobs and deed.instance.is_up]
    politely = command.timeout is not None or command.reason is not None
    told = [*others, *(deed for deed in jobs if politely and deed.instance.status is not None)]
    tell(told, f"{NANNY}.Terminate", _asked(command, "timeout", "reason"), _patience(command))
    for deed in others:
        _await_end(deed)
    _run_jobs(command, "stop", [deed for deed in jobs if deed.error is None])
    return work.finish()


def restart(command: Command) -> int:
    """Restart the worker of what is up, and the unit of what is down or has failed."""
    work = _Work.of(command)
    up = [deed for deed in work.deeds if _is_asked(deed)]
    tell(up, f"{NANNY}.Restart", _asked(command, "timeout", "reason"), _patience(command))
    _run_jobs(command, "restart", [deed for deed in work.deeds if deed not in up])
    return work.finish()


def kill(command: Command) -> int:
    """End the worker; what follows is the restart policy's."""
    work = _Work.of(command)
    tell(work.deeds, f"{NANNY}.Kill", _asked(command, "timeout", "reason"), _patience(command))
    return work.finish()


def drain(command: Command) -> int:
    """Let the instance end with its worker."""
    work = _Work.of(command)
    tell(work.deeds, f"{NANNY}.CloseGracefully", _asked(command, "reason"), _PATIENCE)
    return work.finish()


def reload(command: Command) -> int:
    """Put the configuration in force, and print what has changed."""
    work = _Work.of(command)
    patience = _RELOAD_PATIENCE if command.timeout is None else command.timeout
    refused = tell(work.deeds, f"{NANNY}.Reload", {}, patience)
    # Who may not ask nannyd may still be one whom systemd obeys.
    jobs = [deed for deed in refused if deed.instance.unit is not None and deed.instance.unit.runs]
    for deed in jobs:
        deed.error = None
    _run_jobs(command, "reload", jobs)
    return work.finish(_changes)


def _changes(deed: Deed) -> str:
    from nannyd.ctl.render import clean

    changes = (deed.reply or {}).get("changes")
    return f"{clean(deed.instance.name)}: {clean(changes)}\n" if isinstance(changes, str) and changes else ""


def log_level(command: Command) -> int:
    """Show the level of nannyd's own log, or set it."""
    from dataclasses import replace

    names, levels = (command.names[:1], command.names[1:]) if not command.all else ([], command.names)
    if len(levels) > 1:
        complain("nannyctl log-level takes one NAME and one LEVEL.")
        return ExitCode.USAGE
    command = replace(command, names=names)
    work = _Work.of(command)
    if not levels:
        return _show_levels(work)
    level = level_of(levels[0])
    if level is None:
        complain(f"{levels[0]!r} is not a level; write one of {', '.join(LEVELS)}, or 0 to 7")
        return FAILED
    tell(work.deeds, f"{SERVICE}.SetLogLevel", {"level": level}, _PATIENCE)
    return work.finish()


def _show_levels(work: _Work) -> int:
    from nannyd.ctl.render import clean

    for deed in work.deeds:
        status = deed.instance.status
        if status is None:
            deed.fail(deed.instance.reason if deed.instance.is_up else _not_running(deed.instance))
        elif status.log_level is None or not 0 <= status.log_level < len(LEVELS):
            deed.fail("its nannyd does not say")
        else:
            deed.reply = {"level": status.log_level}
    alone = len(work.deeds) == 1

    def say(deed: Deed) -> str:
        word = LEVELS[deed.reply["level"]] if deed.reply is not None else ""
        return f"{word}\n" if alone else f"{clean(deed.instance.name)}: {word}\n"

    return work.finish(say)


# Calls


def _asked(command: Command, *names: str) -> dict[str, Any]:
    """Return the parameters that were given on the command line."""
    given = {name: getattr(command, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _patience(command: Command) -> float | None:
    """Return how long to wait for an answer: without a timeout nannyd has its own, and gives one."""
    return None if command.timeout is None else command.timeout + _GRACE


def _is_asked(deed: Deed) -> bool:
    """Whether nannyd is there to start a worker; while its unit is being stopped that is another job."""
    unit = deed.instance.unit
    if unit is not None and unit.active_state == "deactivating":
        return False
    return deed.instance.answers or _is_hung(deed)


def _is_hung(deed: Deed) -> bool:
    failure = deed.instance.failure
    return failure is not None and not isinstance(failure, NotListeningError)


def tell(
    deeds: Sequence[Deed], method: str, parameters: dict[str, Any], patience: float | None
) -> list[Deed]:
    """Call *method* of all that may answer; return those that were not permitted."""
    asked: list[tuple[Deed, Question]] = []
    for deed in deeds:
        address = _address(deed.instance)
        if address is None:
            deed.fail(_not_running(deed.instance))
        elif _is_hung(deed) and not deed.instance.answers:
            deed.fail(_advice(deed.instance))
        else:
            asked.append((deed, Question(address, method, parameters)))
    refused = []
    answers = ask([question for _, question in asked], patience=patience)
    for (deed, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, FailureError):
            deed.fail(replies.words(answer))
            if isinstance(answer, RefusedError) and answer.error == f"{NANNY}.NotPermitted":
                refused.append(deed)
        else:
            deed.reply = answer
    return refused


def _address(instance: Instance) -> Address | None:
    return None if isinstance(instance.failure, NotListeningError) else instance.address


def _not_running(instance: Instance) -> str:
    why = f" ({instance.reason})" if instance.reason else ""
    right = f"; nannyctl start {instance.name} starts it" if instance.unit is not None else ""
    return f"it does not run{why}{right}"


def _advice(instance: Instance) -> str:
    text = instance.reason
    if instance.unit is None:
        return text
    return (
        f"{text}; systemctl{instance.manager.spelled} restart {instance.unit.id} ends it and starts it anew"
    )


def _await_end(deed: Deed) -> None:
    """Wait until the process is gone: nannyd answers before it ends."""
    if deed.error is not None or deed.instance.status is None:
        return
    try:
        pidfd = os.pidfd_open(deed.instance.status.pid)
    except (OSError, OverflowError):  # it has gone, or has told nonsense
        return
    try:
        if not select.select([pidfd], [], [], _GRACE)[0]:
            deed.fail("its worker has ended, but nannyd has not")
    finally:
        os.close(pidfd)


# Jobs


def _run_jobs(command: Command, verb: str, deeds: Sequence[Deed]) -> None:
    """Let systemd *verb* the units; what it says goes to the terminal."""
    jobs: dict[Manager, list[Deed]] = defaultdict(list)
    for deed in deeds:
        instance = deed.instance
        right = f"write nannyd run {instance.bare}"
        if instance.owner is None:
            right = " ".join([right, *files.config_dir(instance.bare, instance.scope, command.environ)])
        if not instance.manager.runs(command.environ.get("XDG_RUNTIME_DIR")):
            who = "" if instance.owner is None else f" of {instance.owner.name}"
            deed.fail(f"it does not run, and no systemd{who} is here to {verb} it; {right}")
        elif not units.may_be_unit(instance.bare):
            deed.fail(f"its name has a character that no unit's may have; {right}")
        else:
            jobs[instance.manager].append(deed)
    for manager, some in jobs.items():
        _run_job(command, verb, manager, some)


def _run_job(command: Command, verb: str, manager: Manager, deeds: Sequence[Deed]) -> None:
    names = [units.unit_name(deed.instance.bare) for deed in deeds]
    words = manager.command(verb, "--", *names)
    try:
        status = _run(words, command.timeout) if manager.owner is None else _run_as(manager, words, command)
    except subprocess.TimeoutExpired:
        for deed in deeds:
            span = format_duration(command.timeout or 0.0)
            deed.fail(f"not within {span}; what was asked of systemd goes on")
        return
    except OSError as error:
        for deed in deeds:
            deed.fail(f"systemctl cannot be run ({error.strerror})")
        return
    if status != 0:
        now = units.details({manager: [deed.instance.bare for deed in deeds]})[manager]
        for deed in deeds:
            _judge(deed, verb, now.get(deed.instance.bare))


def _run(words: Sequence[str], timeout: float | None) -> int:
    return subprocess.run(words, check=False, timeout=timeout).returncode


def _run_as(manager: Manager, words: Sequence[str], command: Command) -> int | None:
    """Run systemctl as another user, away from our terminal; what it says is printed clean."""
    program = Program(words, patience=command.timeout, owner=manager.owner, errors=True)
    collect([program])
    if program.late:
        raise subprocess.TimeoutExpired(words, command.timeout or 0.0)
    if text := program.output.decode(errors="replace").rstrip("\n"):
        complain(text)
    return program.status


def _judge(deed: Deed, verb: str, unit: Unit | None) -> None:
    """Say of one of several units whether the job that failed was its."""
    if verb == "reload":
        deed.fail("systemd could not reload it")
    elif verb == "stop":
        if unit is not None and unit.runs:
            deed.fail("systemd did not stop it")
    elif unit is None or unit.active_state != "active":
        # A unit that could be started and was not even tried has no reason to tell.
        tried = unit is not None and (unit.load_state, unit.active_state) != ("loaded", "inactive")
        why = units.reason(unit) if unit is not None and tried else ""
        if why == units.exit_words(ExitCode.CONFIG) and deed.instance.owner is None:
            why += f"; nannyd check {deed.instance.bare} says where"
        deed.fail(f"systemd did not {verb} it" + (f": {why}" if why else ""))
