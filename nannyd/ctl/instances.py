"""Which instances there are, and how each of them is.

Three witnesses, none of which knows all: the sockets in the runtime directories (also of instances in the
foreground), the service managers (also of what has failed), and the configuration (also of what was
stopped).  They are asked at the same time, and merged by name.

Root sees those of other users, too, as `alice/worker1` (`owners`).
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.core.paths import Scope, control_socket, parents
from nannyd.core.units import name_problem
from nannyd.ctl import ends, files, owners, replies, units
from nannyd.ctl.client import (
    NANNY,
    Address,
    FailureError,
    NotListeningError,
    Question,
    RefusedError,
    ask,
)
from nannyd.ctl.programs import collect
from nannyd.ctl.units import Manager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from nannyd.ctl.ends import End
    from nannyd.ctl.owners import Owner
    from nannyd.ctl.replies import Status
    from nannyd.ctl.units import Inquiry, Unit

_PATIENCE = 5.0
"""Seconds after which those that have not answered are given up."""
_OTHERS_PATIENCE, _OTHERS_QUICKLY = 2.0, 0.5
"""The same for other users' service managers, and for a list that is to be there at once."""
_STATUS_MAX = 1 << 20
"""Bytes of the longest Status: all of them are in memory at the same time."""
DRAINING = "draining"
EVERY = "**"
"""The pattern that means other users' instances, too."""
_LOOKED_AT = 40
"""Units whose details are asked for: a list is to be there at once."""


@dataclass(slots=True)
class Instance:
    """One instance, as far as it is known."""

    bare: str
    """Its name, for its user."""
    scope: Scope
    owner: Owner | None = None
    """The user whose it is, if that is another one."""
    directory: Path | None = None
    """Where its socket is, if there is one."""
    unit: Unit | None = None
    status: Status | None = None
    failure: FailureError | None = None
    """Why there is no status, where there is a socket."""
    was_started: bool = False
    """It has a state directory: it has run some time."""
    end: End | None = None
    """How it ended, if it has left word."""

    @property
    def name(self) -> str:
        """How it is spelled here."""
        return self.bare if self.owner is None else f"{self.owner.name}/{self.bare}"

    @property
    def manager(self) -> Manager:
        """The service manager that would run it."""
        return Manager(self.scope, self.owner)

    @property
    def address(self) -> Address | None:
        """Where it listens, or did."""
        if self.directory is None:
            return None
        return Address(control_socket(self.directory), None if self.owner is None else self.owner.uid)

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
        """One word: systemd's for the worker where nannyd answers, or `draining`, or `not answering` …"""
        if self.status is not None:
            return DRAINING if self.is_draining else self.status.state
        if not self.is_well and not self._is_gone:
            return "not answering"
        if self.unit is None:
            return "failed" if self._is_gone else "active" if self.answers else "inactive"
        if self.unit.active_state == "active":
            return "running"
        if self.unit.active_state in ("activating", "deactivating"):
            return self.unit.sub_state
        if self.unit.load_state == "masked" and self.unit.active_state == "inactive":
            return "masked"
        return self.unit.active_state

    @property
    def is_draining(self) -> bool:
        """Whether it goes on only as long as its worker does."""
        status = self.status
        return status is not None and status.goal == "down" and status.state in ("start", "running")

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
            return "it ends when its worker does" if self.is_draining else ""
        if self.unit is not None and (self.unit.active_state, self.unit.load_state) != ("inactive", "loaded"):
            return units.reason(self.unit)
        if self.end is not None:
            return self.end.words
        if self.unit is not None and self.unit.result:
            return units.reason(self.unit)
        return "stopped" if self.was_started else "never started"

    @property
    def down_since(self) -> float | None:
        """When it became what `reason` tells of, in seconds since the epoch, where systemd or nannyd know."""
        if self.status is not None or self.failure is not None:
            return None
        if self.end is not None and self.active_state == "inactive":
            return self.end.at
        return None if self.unit is None else self.unit.changed_at

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
    silent: list[Owner] | None = None,
) -> list[Instance]:
    """Return every instance, by name and scope; of *names*, if there are any, only theirs are asked.

    Those that have not answered after *patience* seconds (None: a few), or when for *quiet* seconds nobody
    has said anything, are given up.  *silent* receives the users whose service managers have not answered.
    """
    wanted = set(scopes)
    others = owners.others(environ) if wanted == set(Scope) else []
    others = [owner for owner in others if not names or any(_may_mean(name, owner) for name in names)]
    told = _OTHERS_PATIENCE if quiet is None else _OTHERS_QUICKLY
    runtime = environ.get("XDG_RUNTIME_DIR")
    inquiries = [units.Inquiry(it) for scope in wanted if (it := Manager(scope)).runs(runtime)]
    inquiries += [
        units.Inquiry(manager, told)
        for owner in others
        if (manager := Manager(Scope.USER, owner)).runs(runtime)
    ]
    found = _Found()
    for scope, parent in parents(environ):
        if scope in wanted:
            for directory in _directories(parent, scope):
                found.at(directory.name, Manager(scope)).directory = directory
    for owner in others:
        for directory in owner.directories():
            found.at(directory.name, Manager(Scope.USER, owner)).directory = directory
    _ask(list(found), names=names, patience=patience, quiet=quiet)
    for scope in wanted:
        for name in files.configured(scope, environ):
            found.at(name, Manager(scope))
        for name in files.masked(scope, environ):
            found.at(name, Manager(scope)).unit = units.masked(name, scope)
    collect(inquiry.program for inquiry in inquiries)
    for inquiry in inquiries:
        found.learn(inquiry)
    if silent is not None:
        silent += [it.manager.owner for it in inquiries if it.manager.owner is not None and it.program.late]
    _look_closer(found, names, told)
    for instance in found:
        if instance.owner is None:
            state = files.state_directory(instance.bare, instance.scope, environ)
            instance.was_started = os.path.isdir(state)  # noqa: PTH112 - it may be closed to us
            instance.end = None if instance.status is not None else ends.read(state)
    return sorted(found, key=lambda one: (one.owner is not None, one.name, one.scope))


class _Found:
    """The instances, as they are found."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Manager], Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._found.values())

    def at(self, name: str, manager: Manager) -> Instance:
        """Return the instance, known or not."""
        return self._found.setdefault((name, manager), Instance(name, manager.scope, manager.owner))

    def learn(self, inquiry: Inquiry) -> None:
        """Take what a service manager knows; of another user, what lies in files too, within bounds."""
        manager = inquiry.manager
        for unit in inquiry.units():
            self.at(unit.name, manager).unit = unit
        if manager.owner is None:
            return
        states = inquiry.ended()
        names = [*states, *files.names_of(inquiry.configured())]
        for name in names[: owners.INSTANCES_MAX]:
            if name_problem(name) is None:
                instance = self.at(name, manager)
                instance.was_started, instance.end = name in states, states.get(name)


def _look_closer(instances: Iterable[Instance], names: Sequence[str], patience: float) -> None:
    """Learn the details of the units of which nannyd itself says nothing; those that failed come first."""
    wanted = [
        one
        for one in instances
        if one.unit is not None and one.status is None and (not names or _is_named(one, names))
    ]
    wanted.sort(key=lambda one: (one.active_state == "inactive", one.owner is not None))
    asked: dict[Manager, list[str]] = defaultdict(list)
    for one in wanted[:_LOOKED_AT]:
        if one.unit is not None and (one.unit.load_state, one.unit.active_state) != ("masked", "inactive"):
            asked[one.manager].append(one.bare)
    found = units.details(asked, patience)
    for one in wanted:
        one.unit = found.get(one.manager, {}).get(one.bare, one.unit)


def _is_named(instance: Instance, names: Sequence[str]) -> bool:
    return any(matches(instance, name) for name in names)


def _directories(parent: Path, scope: Scope) -> list[Path]:
    """Return the runtime directories within *parent* that have a socket."""
    if scope is Scope.USER:
        return list(owners.sockets_in(parent, os.geteuid()))  # anybody can make a directory in /tmp
    names = owners.listed(parent)
    return [parent / name for name in names if os.path.lexists(control_socket(parent / name))]


def _ask(
    instances: list[Instance], *, names: Sequence[str], patience: float | None, quiet: float | None
) -> None:
    """Learn the status of *instances*, of all at once."""
    asked = [
        (instance, Question(address, f"{NANNY}.Status"))
        for instance in instances
        if (address := instance.address) is not None and (not names or _is_named(instance, names))
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


# Names and patterns


def is_pattern(name: str) -> bool:
    """Say whether *name* stands for any number of instances."""
    return any(c in name for c in "*?[")


def matches(instance: Instance, name: str) -> bool:
    """Say whether *name*, perhaps a pattern, means *instance*.

    As in a path, a pattern without a slash means nothing of other users.
    """
    if name == EVERY:
        return True
    whose, slash, bare = name.rpartition("/")
    if slash:
        owner = instance.owner or (_ourselves() if instance.scope is Scope.USER else None)
        if owner is None or not _is_owner(whose, owner):
            return False
    elif instance.owner is not None:
        return False
    return _fits(instance.bare, bare)


def _may_mean(name: str, owner: Owner) -> bool:
    """Say whether *name* can mean an instance of *owner*: nobody else is to be waited for."""
    whose, slash, _ = name.rpartition("/")
    return name == EVERY or (slash != "" and _is_owner(whose, owner))


def _is_owner(whose: str, owner: Owner) -> bool:
    return _fits(owner.name, whose) or whose == str(owner.uid)


def _fits(text: str, name: str) -> bool:
    if not is_pattern(name):
        return text == name
    from fnmatch import fnmatchcase

    return fnmatchcase(text, name)


@functools.cache
def _ourselves() -> Owner:
    return owners.owner_of(os.geteuid())


def plain(name: str) -> str:
    """Return the name of an instance from what was typed: `nannyd@worker1.service` is worker1."""
    whose, slash, bare = name.rpartition("/")
    if bare.startswith("nannyd@"):
        bare = bare.removeprefix("nannyd@").removesuffix(".service")
    return f"{whose}{slash}{bare}"


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
    whose, slash, bare = name.rpartition("/")
    if slash and not whose:
        raise NoInstanceError(f"{name!r} has no user before the slash")
    if problem := name_problem(bare):
        raise NoInstanceError(problem)
    if not found and slash and os.geteuid() != 0:
        raise NoInstanceError(f"there is no instance {name} that you may see; root sees those of other users")
    if not found:
        raise NoInstanceError(f"there is no instance {name}")
    return [min(found, key=lambda instance: (not instance.is_up, instance.scope is Scope.SYSTEM))]
