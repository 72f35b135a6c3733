"""What can go wrong, said once: exit statuses and the form of every configuration error."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ExitCode(enum.IntEnum):
    """The exit statuses of `nannyd`; documented in nannyd(8) and README.md.

    Where sysexits.h has a fitting number it is used.  All but CLEAN make `Restart=on-failure` act
    unless the unit says otherwise; ours does for all but INTERNAL_ERROR (`RestartPreventExitStatus=`): what
    nannyd has decided about its worker, systemd does not undo.
    """

    CLEAN = 0
    """Asked to stop, or the worker succeeded and the restart policy is content."""
    WORKER_FAILED = 1
    """The worker failed after it had been ready, and the restart policy says no."""
    USAGE = 2
    """The command line is not one that nannyd knows."""
    NO_SCHEDULER = 68
    """No connection to the Dask scheduler within `dask.death-timeout`."""
    START_LIMIT_HIT = 69
    """The worker was started too often within `restart.start-limit-interval`."""
    INTERNAL_ERROR = 70
    """A bug in nannyd."""
    COULD_NOT_START = 71
    """The worker never became ready, and the restart policy says no."""
    ALREADY_RUNNING = 73
    """Another nannyd supervises an instance of this name."""
    CONFIG = 78
    """The configuration is wrong; all errors are on standard error."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the configuration."""

    where: str
    """The file, `environment` or `command line`."""
    key: str
    """The dotted setting, for example `memory.limit`; the variable or option where that is clearer."""
    message: str
    """What is wrong with the value, and what would be right."""

    def __str__(self) -> str:
        """Return the line an administrator reads, `/etc/nannyd/w.toml: memory.limit: 'x' is …`."""
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used.  Carries every problem found, never only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        """Remember *problems*, which must not be empty."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
