"""What systemd knows of the instances: the units nannyd@NAME.service that a manager has loaded.

An enabled unit is loaded (its target wants it), and so is one that failed; one that was merely stopped may be
forgotten.  systemctl is asked, because it needs no bus where root asks: for the list of all units, which is
cheap, and for the details of those of which nannyd itself says nothing, which are dear (15 ms of PID 1's time
for each where the list of 200 takes 30).
"""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.core.exits import signal_name
from nannyd.core.paths import SYSTEMD_IS_HERE, Scope
from nannyd.core.units import name_problem
from nannyd.ctl import ends
from nannyd.ctl.programs import Program, collect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nannyd.ctl.ends import End
    from nannyd.ctl.owners import Owner

_TIMEOUT = 5.0
_PREFIX, _SUFFIX = "nannyd@", ".service"
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "StatusText",
    "StateChangeTimestamp",
)

_EXITED, _KILLED, _DUMPED = 1, 2, 3
"""CLD_EXITED … (sigaction(2)), as in ExecMainCode."""

_EXIT_WORDS = {
    ExitCode.CLEAN: "",
    ExitCode.WORKER_FAILED: "the worker failed, and the restart policy says no",
    ExitCode.USAGE: "nannyd does not understand its command line",
    ExitCode.NO_SCHEDULER: "no Dask scheduler was found in time",
    ExitCode.START_LIMIT_HIT: "gave up: the worker was started too often",
    ExitCode.INTERNAL_ERROR: "a bug in nannyd",
    ExitCode.COULD_NOT_START: "the worker could not be started",
    ExitCode.ALREADY_RUNNING: "an instance of this name runs already, outside this unit",
    ExitCode.CONFIG: "the configuration is wrong",
}
_RESULT_WORDS = {
    "timeout": "nannyd did not start or stop in time",
    "watchdog": "nannyd hung, and systemd ended it",
    "oom-kill": "the OOM killer ended nannyd",
    "start-limit-hit": "nannyd was started too often",
    "resources": "systemd could not start it: no resources",
    "protocol": "nannyd ended before it was ready",
    "exec-condition": "a condition of its unit is not met",
}
_LOAD_WORDS = {
    "not-found": "its unit is not installed",
    "bad-setting": "its unit has a setting that systemd refuses",
    "error": "its unit cannot be loaded",
    "masked": "its unit is masked",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit, in systemd's words (systemctl(1), org.freedesktop.systemd1(5))."""

    name: str
    """Of the instance, exactly what stands between @ and .service."""
    scope: Scope
    load_state: str = "loaded"
    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str = ""
    """Without it the details are not known."""
    main_pid: int = 0
    exec_code: int = 0
    """How the latest main process ended: CLD_EXITED …; 0: it did not, or there was none."""
    exec_status: int = 0
    status_text: str = ""
    changed_at: int | None = None
    """When the state became what it is, in seconds since the epoch."""

    @property
    def id(self) -> str:
        """The unit's own name."""
        return f"{_PREFIX}{self.name}{_SUFFIX}"

    @property
    def runs(self) -> bool:
        """Whether stopping it is systemd's business: it is up, on its way up, or on its way down."""
        return self.active_state not in ("inactive", "failed")


def unit_name(name: str) -> str:
    """Return the unit of instance *name*, which is never escaped."""
    return f"{_PREFIX}{name}{_SUFFIX}"


def may_be_unit(name: str) -> bool:
    """Say whether instance *name* can have a unit (systemd.unit(5)); systemctl would escape what cannot."""
    return all(c.isascii() and (c.isalnum() or c in ":_.\\-@") for c in name)


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager of the system, our own, or that of another user."""

    scope: Scope
    owner: Owner | None = None

    def command(self, *words: str) -> list[str]:
        """Return a command line for it, which runs as its user (`programs`)."""
        return ["systemctl", f"--{self.scope}", *words]

    @property
    def spelled(self) -> str:
        """What root writes between `systemctl` and the verb."""
        if self.owner is not None:
            return f" --user -M {self.owner.name}@"
        return " --user" if self.scope is Scope.USER else ""

    def runs(self, own_runtime: str | None) -> bool:
        """Say whether it is there; *own_runtime* is $XDG_RUNTIME_DIR."""
        if self.owner is None:
            return is_managed(self.scope, own_runtime)
        known = self.owner.group is not None and SYSTEMD_IS_HERE.exists()
        return known and os.path.lexists(self.owner.runtime / "systemd" / "private")


class Inquiry:
    """The question for the list of units, under way."""

    def __init__(self, manager: Manager, patience: float | None = None) -> None:
        """Ask *manager*, for at most *patience* seconds; of another user also for what lies in files."""
        self.manager = manager
        command = ["list-units", "--all", "--full", "--output=json", unit_name("*")]
        words = manager.command(*command)
        if manager.owner is not None:
            words = ["/bin/sh", "-c", f"{_FILES}\nexec {shlex.join(words)}"]
        self.program = Program(
            words, patience=_TIMEOUT if patience is None else patience, owner=manager.owner
        )
        self._files: dict[str, list[bytes]] = {}

    def units(self) -> list[Unit]:
        """Return the units without their details; none where the manager did not answer."""
        *files, listing = bytes(self.program.output).split(b"\0")
        found = parse_list(listing.decode(errors="replace"), self.manager.scope)
        self._files = {kind: [one[1:] for one in files if one[:1] == kind.encode()] for kind in "csm"}
        known = {unit.name for unit in found}
        names = {instance(os.fsdecode(name)) for name in self._files["m"]}
        return found + [masked(name, self.manager.scope) for name in names if name and name not in known]

    def configured(self) -> list[str]:
        """Return the names of another user's configuration files."""
        return [os.fsdecode(name) for name in self._files["c"]]

    def ended(self) -> dict[str, End | None]:
        """Return which instances of another user's have a state directory, and what it says of their end."""
        lines = [directory.partition(b"\n") for directory in self._files["s"]]
        return {os.fsdecode(name): ends.parse(end) for name, _, end in lines}


_FILES = """cd || exit
for file in .config/nannyd/*.toml .config/nannyd/*.toml.d; do
    [ -e "$file" ] && printf 'c%s\\0' "${file##*/}"
done
for directory in .local/state/nannyd/*/; do
    [ -d "$directory" ] || continue
    end=
    [ -f "$directory.ended.json" ] && IFS= read -r end < "$directory.ended.json"
    directory=${directory%/}
    printf 's%s\\n%s\\0' "${directory##*/}" "$end"
done
for file in .config/systemd/user/nannyd@*.service; do
    [ "$file" -ef /dev/null ] && printf 'm%s\\0' "${file##*/}"
done"""
"""What another user has of instances in files (`files`); read as that user, whose home may be anywhere."""


def details(
    wanted: Mapping[Manager, Sequence[str]], patience: float | None = None
) -> dict[Manager, dict[str, Unit]]:
    """Return the units of instances by name, those that their managers know.

    Another user's manager is given *patience* seconds.
    """
    command = ["show", "--all", "--timestamp=unix", f"--property={','.join(_PROPERTIES)}", "--"]
    asked = [
        (
            manager,
            Program(
                manager.command(*command, *map(unit_name, names)),
                patience=_TIMEOUT if manager.owner is None or patience is None else patience,
                owner=manager.owner,
            ),
        )
        for manager, names in wanted.items()
        if names
    ]
    collect(program for _, program in asked)
    return {
        manager: {
            unit.name: unit for unit in parse_units(program.output.decode(errors="replace"), manager.scope)
        }
        for manager, program in asked
    }


def masked(name: str, scope: Scope) -> Unit:
    """Return a unit that is masked and that no manager has loaded."""
    return Unit(name, scope, load_state="masked")


def is_managed(scope: Scope, own_runtime: str | None) -> bool:
    """Say whether a service manager of *scope* runs; *own_runtime* is $XDG_RUNTIME_DIR."""
    if not SYSTEMD_IS_HERE.exists():
        return False
    if scope is Scope.SYSTEM:
        return True
    if own_runtime is None:
        return False
    manager = Path(own_runtime) / "systemd" / "private"
    with suppress(OSError):  # somebody else's, after su(1)
        return manager.stat().st_uid == os.geteuid()
    return False


def parse_list(text: str, scope: Scope) -> list[Unit]:
    """Parse what `systemctl list-units --output=json` prints."""
    try:
        rows = json.loads(text or "[]")
        return [
            Unit(name, scope, load_state=row["load"], active_state=row["active"], sub_state=row["sub"])
            for row in rows
            if (name := instance(row["unit"]))
        ]
    except (ValueError, TypeError, KeyError):
        return []


def instance(unit: str) -> str | None:
    """Return what stands between @ and .service, or None for the unit of somebody else."""
    name = unit.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return name if unit == unit_name(name) and name_problem(name) is None else None


def parse_units(text: str, scope: Scope) -> list[Unit]:
    """Parse what `systemctl show` prints: a block of `Property=value` lines for each unit."""
    units = []
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        if name := instance(values.get("Id", "")):
            units.append(_unit(name, scope, values))
    return units


def _unit(name: str, scope: Scope, values: dict[str, str]) -> Unit:
    return Unit(
        name,
        scope,
        load_state=values.get("LoadState", ""),
        active_state=values.get("ActiveState", ""),
        sub_state=values.get("SubState", ""),
        result=values.get("Result", ""),
        main_pid=_number(values, "MainPID"),
        exec_code=_number(values, "ExecMainCode"),
        exec_status=_number(values, "ExecMainStatus"),
        status_text=values.get("StatusText", ""),
        changed_at=_number(values, "StateChangeTimestamp") or None,
    )


def _number(values: dict[str, str], name: str) -> int:
    text = values.get(name, "").removeprefix("@")
    return int(text) if text.isascii() and text.isdigit() else 0


# Why it is down, in words


def reason(unit: Unit) -> str:
    """Return why *unit* does not run as it should, or nothing where it does."""
    if unit.load_state in _LOAD_WORDS:
        return _LOAD_WORDS[unit.load_state]
    if not unit.result:
        return ""
    if unit.active_state == "failed":
        return _failure(unit)
    if unit.active_state == "activating" and unit.sub_state == "auto-restart":
        return f"{_failure(unit)}; systemd starts it again"
    if unit.active_state == "inactive":
        if unit.changed_at is None:
            return "not started since boot"
        return "stopped" if unit.exec_code else "not started"
    return ""


def _failure(unit: Unit) -> str:
    if unit.result == "exit-code":
        words = exit_words(unit.exec_status)
        # The last sentence of nannyd, which knows how the worker ended.
        _, failed, why = unit.status_text.partition("failed: ")
        why = why.removeprefix(f"{words.removeprefix('the ')}: ")
        return f"{words}: {why}" if failed else words
    if unit.result in ("signal", "core-dump"):
        return f"nannyd was killed by {signal_name(unit.exec_status) or f'signal {unit.exec_status}'}"
    return _RESULT_WORDS.get(unit.result, unit.result)


def exit_words(status: int) -> str:
    """Return what nannyd means by its exit *status*."""
    known = {code.value: words for code, words in _EXIT_WORDS.items()}
    if status in known:
        return known[status]
    # systemd itself failed before it could execute nannyd (systemd.exec(5), "Process exit codes").
    return f"systemd could not execute nannyd (status {status})" if status >= 200 else f"exit status {status}"
