"""What was asked for on the command line, as every verb gets it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nannyd.core.paths import Scope
from nannyd.ctl import instances
from nannyd.ctl.client import FailureError, NotListeningError
from nannyd.ctl.render import clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nannyd.ctl.client import Address
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.owners import Owner
    from nannyd.ctl.render import Style

FAILED = 1
"""The exit status when something did not work for at least one instance; the rest was done."""


@dataclass(frozen=True, slots=True)
class Command:
    """What was asked for, and where."""

    verb: str
    names: list[str]
    environ: Mapping[str, str]
    style: Style
    now: float
    """Seconds since the epoch."""
    all: bool = False
    json: bool = False
    scopes: tuple[Scope, ...] = tuple(Scope)
    timeout: float | None = None
    reason: str | None = None
    lines: int | None = None
    full: bool = False
    no_legend: bool = False
    follow: bool = False
    boot: str | None = None
    """Which run of the machine, as in `journalctl --boot=`; empty: the present one."""
    since: str | None = None
    until: str | None = None
    priority: int | None = None
    words: list[str] = field(default_factory=list)
    """What is no name of an instance: a command; a function and its arguments."""
    env: list[str] = field(default_factory=list)
    directory: str | None = None
    name: str | None = None
    """How a plugin is to be called."""
    tty: bool = False
    no_tty: bool = False

    @property
    def asked_for(self) -> list[str]:
        """Names and patterns; `--all` without names is a pattern."""
        return [*self.names, *([instances.EVERY] if self.all and not self.names else [])]

    def find(
        self,
        *,
        patience: float | None = None,
        quiet: float | None = None,
        silent: list[Owner] | None = None,
    ) -> list[Instance]:
        """Return all instances there are, those named asked for their status; see `instances.find()`."""
        return instances.find(
            self.environ,
            scopes=self.scopes,
            names=self.names,
            patience=patience,
            quiet=quiet,
            silent=silent,
        )

    def filtered(self, known: Sequence[Instance]) -> tuple[list[Instance], list[str]]:
        """Return the instances of the names given, of every scope, and what is wrong with names.

        Without names: all that have ever run, with `--all` all there are.
        """
        if not self.names:
            return [one for one in known if self.all or one.is_listed], []
        found, problems = self.chosen(known)
        # Of one name both are meant, the system's and one's own.
        literal = [name for name in self.names if not instances.is_pattern(name)]
        return [
            one for one in known if one in found or any(instances.matches(one, name) for name in literal)
        ], problems

    def chosen(self, known: Sequence[Instance], *, up: bool = False) -> tuple[list[Instance], list[str]]:
        """Return the instances meant, and what is wrong with names.

        *up*: a pattern and `--all` mean what is up or has failed.
        """
        found: list[Instance] = []
        problems: list[str] = []
        for name in self.asked_for:
            try:
                some = instances.choose(known, name)
            except instances.NoInstanceError as error:
                problems.append(clean(str(error)))
                continue
            if up and instances.is_pattern(name):
                some = [one for one in some if one.is_up or one.active_state == "failed"]
            found += [one for one in some if one not in found]
        return found, problems


def reach(command: Command) -> tuple[Instance, Address]:
    """Return the one instance that is meant, and where it listens.  Raises FailureError."""
    chosen, problems = command.chosen(command.find())
    if problems:
        raise FailureError(problems[0])
    if len(chosen) > 1:
        names = ", ".join(one.name for one in chosen)
        raise FailureError(f"{len(chosen)} instances match; name one of {names}")
    (instance,) = chosen
    if (address := instance.address) is None:
        raise NotListeningError(f"{instance.name}: it does not run ({instance.reason or instance.state})")
    if instance.failure is not None and not instance.is_well:
        raise FailureError(f"{instance.name}: {instance.failure}")
    return instance, address


def complain(message: str) -> None:
    """Write what went wrong to standard error, each line clean."""
    for line in message.split("\n"):
        sys.stderr.write(f"{clean(line)}\n")
