"""Which instances there are, and how each of them is.

Three witnesses, none of which knows all: the sockets in the runtime directories (also of instances in the
foreground), the service managers (also of what has failed), and the configuration (also of what was
stopped).  They are asked at the same time, and merged by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.paths import Scope, control_socket, parents
from nannyd.core.units import name_problem
from nannyd.ctl import replies, units
from nannyd.ctl.client import (
    NANNY,
    FailureError,
    NotListeningError,
    Question,
    RefusedError,
    ask,
    is_own,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nannyd.ctl.replies import Status
    from nannyd.ctl.units import Unit

_PATIENCE = 5.0
"""Seconds after which those that have not answered are given up."""
_STATUS_MAX = 1 << 20
"""Bytes of the longest Status: all of them are in memory at the same time."""
_LOOKED_AT = 40
"""Units whose details are asked for: a list is to be there at once."""


@dataclass(slots=True)
class Instance:
    """One instance, as far as it is known."""

    name: str
    scope: Scope
    directory: Path | None = None
    """Where its socket is, if there is one."""
    unit: Unit | None = None
    status: Status | None = None
    failure: FailureError | None = None
    """Why there is no status, where there is a socket."""
    was_started: bool = False
    """It has a state directory: it has run some time."""

    @property
    def answers(self) -> bool:
        """Whether nannyd is there, and be it to refuse."""
        return self.status is not None or isinstance(self.failure, RefusedError)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong with nannyd itself."""
        return self.failure is None or self.answers

    @property
    def state(self) -> str:
        """One word: systemd's for the worker where nannyd answers, `not answering` …, the unit's."""
        if self.status is not None:
            return self.status.state
        if not self.is_well and not self._is_gone:
            return "not answering"
        if self.unit is None:
            return "failed" if self._is_gone else "active" if self.answers else "inactive"
        if self.unit.active_state == "active":
            return "running"
        if self.unit.active_state in ("activating", "deactivating"):
            return self.unit.sub_state
        return self.unit.active_state

    @property
    def _is_gone(self) -> bool:
        return isinstance(self.failure, NotListeningError)

    @property
    def active_state(self) -> str:
        """systemd's ActiveState=."""
        if self.status is not None:
            return self.status.active_state
        if self.unit is not None:
            return self.unit.active_state
        if self.failure is not None:
            return "failed" if self._is_gone else "active"
        return "inactive"

    @property
    def is_up(self) -> bool:
        """Whether there is a nannyd, or systemd is about to start or stop one."""
        if self.failure is not None and not self._is_gone:
            return True
        return self.status is not None or (self.unit is not None and self.unit.runs)

    @property
    def is_listed(self) -> bool:
        """Whether it is more than a file of the configuration: it is there, or was some time."""
        return self.directory is not None or self.unit is not None or self.was_started

    @property
    def reason(self) -> str:
        """Why it is not simply running, in words; nothing where it is."""
        if self.failure is not None and not (self._is_gone and self.unit is not None):
            return self._failure_words()
        if self.status is not None:
            return ""
        if self.unit is not None and (self.unit.result or self.unit.active_state != "inactive"):
            return units.reason(self.unit)
        return "stopped" if self.was_started else "never started"

    def _failure_words(self) -> str:
        assert self.failure is not None  # noqa: S101 - asked by the caller
        if self._is_gone:
            return f"nannyd is gone and has left its socket ({self.failure})"
        return replies.words(self.failure)


class NoInstanceError(Exception):
    """There is no instance of a name, or a name that cannot be one's."""


def find(
    environ: Mapping[str, str],
    *,
    scopes: Iterable[Scope] = tuple(Scope),
    names: Sequence[str] = (),
    patience: float | None = None,
    quiet: float | None = None,
) -> list[Instance]:
    """Return every instance, by name and scope; of *names*, if there are any, only theirs are asked.

    Those that have not answered after *patience* seconds (None: a few), or when for *quiet* seconds nobody
    has said anything, are given up.
    """
    wanted = set(scopes)
    inquiries = [
        units.Inquiry(scope) for scope in wanted if units.is_managed(scope, environ.get("XDG_RUNTIME_DIR"))
    ]
    found: dict[tuple[str, Scope], Instance] = {}

    def at(name: str, scope: Scope) -> Instance:
        return found.setdefault((name, scope), Instance(name, scope))

    for scope, parent in parents(environ):
        if scope in wanted:
            for directory in _directories(parent, scope):
                at(directory.name, scope).directory = directory
    _ask(list(found.values()), names=names, patience=patience, quiet=quiet)
    for scope in wanted:
        for name in _configured(scope, environ):
            at(name, scope)
    for inquiry in inquiries:
        for unit in inquiry.units():
            at(unit.name, inquiry.scope).unit = unit
        _look_closer(inquiry.scope, found.values(), names)
    for instance in found.values():
        instance.was_started = _state_directory(instance, environ).is_dir()
    return sorted(found.values(), key=lambda instance: (instance.name, instance.scope))


def _look_closer(scope: Scope, instances: Iterable[Instance], names: Sequence[str]) -> None:
    """Learn the details of the units of which nannyd itself says nothing; those that failed come first."""
    wanted = [
        one
        for one in instances
        if one.scope is scope
        and one.unit is not None
        and one.status is None
        and (not names or _is_named(one, names))
    ]
    wanted.sort(key=lambda one: one.active_state == "inactive")
    some = wanted[:_LOOKED_AT]
    found = units.details(scope, [one.name for one in some])
    for one in some:
        one.unit = found.get(one.name, one.unit)


def _is_named(instance: Instance, names: Sequence[str]) -> bool:
    return any(matches(instance, name) for name in names)


def _directories(parent: Path, scope: Scope) -> list[Path]:
    """Return the runtime directories within *parent* that have a socket."""
    if scope is Scope.USER and not is_own(parent):
        return []  # anybody can make a directory in /tmp
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if name_problem(entry.name) is None]
    except OSError:
        return []
    return [parent / name for name in names if os.path.lexists(control_socket(parent / name))]


def _ask(
    instances: list[Instance], *, names: Sequence[str], patience: float | None, quiet: float | None
) -> None:
    """Learn the status of *instances*, of all at once."""
    asked = [
        (instance, Question(control_socket(instance.directory), f"{NANNY}.Status"))
        for instance in instances
        if instance.directory is not None and (not names or _is_named(instance, names))
    ]
    patience = _PATIENCE if patience is None else patience
    answers = ask([question for _, question in asked], patience=patience, quiet=quiet, longest=_STATUS_MAX)
    for (instance, _), answer in zip(asked, answers, strict=True):
        try:
            if isinstance(answer, FailureError):
                raise answer
            instance.status = replies.status(answer)
        except FailureError as failure:
            instance.failure = failure


def _configured(scope: Scope, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the configuration files."""
    directory = Path("/etc/nannyd")
    if scope is Scope.USER:
        directory = _home(environ, "XDG_CONFIG_HOME", ".config") / "nannyd"
    try:
        files = [path.name.removesuffix(".d") for path in directory.iterdir()]
    except OSError:
        return []
    names = {name.removesuffix(".toml") for name in files if name.endswith(".toml")}
    return [name for name in names if name_problem(name) is None]


def _state_directory(instance: Instance, environ: Mapping[str, str]) -> Path:
    if instance.scope is Scope.SYSTEM:
        return Path("/var/lib/nannyd") / instance.name
    return _home(environ, "XDG_STATE_HOME", ".local/state") / "nannyd" / instance.name


def _home(environ: Mapping[str, str], variable: str, usual: str) -> Path:
    given = environ.get(variable)
    return Path(given) if given else Path(environ.get("HOME", "/")) / usual


# Names and patterns


def is_pattern(name: str) -> bool:
    """Say whether *name* stands for any number of instances."""
    return any(c in name for c in "*?[")


def matches(instance: Instance, name: str) -> bool:
    """Say whether *name*, perhaps a pattern, means *instance*."""
    if not is_pattern(name):
        return instance.name == name
    from fnmatch import fnmatchcase

    return fnmatchcase(instance.name, name)


def plain(name: str) -> str:
    """Return the name of an instance from what was typed: `nannyd@worker1.service` is worker1."""
    if name.startswith("nannyd@"):
        return name.removeprefix("nannyd@").removesuffix(".service")
    return name


def choose(known: Sequence[Instance], name: str) -> list[Instance]:
    """Return the instances that *name* means: one, or those that a pattern matches.

    Where the system and the user have one of the same name, the one that is up is meant, or else the
    user's.  Raises NoInstanceError.
    """
    found = [instance for instance in known if matches(instance, name)]
    if is_pattern(name):
        found = [instance for instance in found if instance.is_listed]
        if not found:
            raise NoInstanceError(f"no instance matches {name!r}")
        return found
    if problem := name_problem(name):
        raise NoInstanceError(problem)
    if not found:
        raise NoInstanceError(f"there is no instance {name}")
    return [min(found, key=lambda instance: (not instance.is_up, instance.scope is Scope.SYSTEM))]
