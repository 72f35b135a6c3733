"""The environment of the worker, and where each variable comes from.

Pure.  For each variable the later wins:

    configuration (`[nanny] environ`, `pre-spawn-environ`)
    < the variable in nannyd's own environment (unit `Environment=`, `EnvironmentFile=`)
    < argument (`--env K=V`, `[nanny] env`)

This is the Nanny's rule of Dask: arguments over existing environment over configuration.

A command gets everything at `execve`.  A Python worker gets `environ` only when its bootstrap runs,
before the first import of the user's code; what the C library, ld.so or the interpreter read at their
start (MALLOC_TRIM_THRESHOLD_, PYTHONHASHSEED, OMP_NUM_THREADS) belongs into `pre-spawn-environ`.
Where both configure a variable, `environ` wins in the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

INHERITED = "inherited"

HEADING = "# environment of the worker\n"
"""Above the variables, where settings and variables are explained."""

HASH_SEED = "6640"
"""The Nanny's own, so that workers agree on the hashes of strings."""

_PRIVATE = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_(PID|USEC)|LISTEN_(FDS|PID|FDNAMES|PIDFDID)|FDSTORE|MAINPID|MAINPIDFD|MAINPIDFDID"
    r"|MANAGERPID|MANAGERPIDFDID|SYSTEMD_EXEC_PID|MONITOR_\w+|NANNYD_\w+"
)
"""What systemd said to nannyd alone, and nannyd's own settings: never handed on."""

OURS = frozenset(
    {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "JOURNAL_STREAM",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "NANNYD_INSTANCE",
        "NANNYD_LOCAL_DIRECTORY",
    }
)
"""What nannyd itself may set for the worker; a configuration cannot."""

EXPORTED = frozenset({"NANNYD_INSTANCE", "NANNYD_LOCAL_DIRECTORY"})
"""Variables with the prefix of settings that are none, for a nannyd that is started by a worker."""

_SECRET = re.compile(
    r"PASSW(OR)?D|PASSPHRASE|PASS(?![A-Z])|SECRET|TOKEN(?!IZER)|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|CONN(ECTION)?_?STR(ING)?(?![A-Z])|AUTHORIZATION|WEBHOOK"
    r"|(^|_)(KEY|AUTH|AUTH_CONFIG|BEARER|COOKIE|CREDS?|DSN|JWT|PAT)$|_PWD$",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(r".*(_SOCK|_FILE|_DIR|_DIRECTORY|ASKPASS)", re.IGNORECASE)
"""Paths: they only sound like secrets."""
_ASSIGNMENT = re.compile(r"(-{0,2}([\w.-]+)=).+", re.DOTALL)
_OPTION = re.compile(r"--?([A-Za-z][\w.-]*)")
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]+(?=@)")
MASK = "********"


@dataclass(frozen=True, slots=True)
class Entry:
    """One configured value and where it stands."""

    value: str
    origin: str
    secret: bool = False
    """It came from a credential: never shown."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the worker."""

    name: str
    value: str
    origin: str
    secret: bool = False
    late: bool = False
    """Set by the bootstrap in the worker, not at `execve`."""


def is_private(name: str) -> bool:
    """Say whether an inherited variable is meant for nannyd and not for its worker."""
    return _PRIVATE.fullmatch(name) is not None


def looks_secret(name: str) -> bool:
    """Say whether the value of something called *name* should be masked in output and logs."""
    return _SECRET.search(name.replace("-", "_")) is not None and _NOT_SECRET.fullmatch(name) is None


def mask_url(text: str) -> str:
    """Return *text* without the password of a URL in it: `redis://user:********@host`."""
    return _URL_PASSWORD.sub(rf"\1:{MASK}", text)


def mask_arguments(arguments: Sequence[Any]) -> list[Any]:
    """Return *arguments* without the secrets: `--password=x`, `--password x`, `PASSWORD=x`, URLs.

    Elements that are no strings stay as they are.
    """
    result: list[Any] = []
    secret_next = False
    for argument in arguments:
        is_text = isinstance(argument, str)
        assignment = _ASSIGNMENT.fullmatch(argument) if is_text else None
        option = _OPTION.fullmatch(argument) if is_text else None
        if secret_next and option is None:
            result.append(MASK)
        elif assignment is not None and looks_secret(assignment[2]):
            result.append(assignment[1] + MASK)
        else:
            result.append(mask_url(argument) if is_text else argument)
        secret_next = option is not None and looks_secret(option[1])
    return result


def compose(
    *,
    inherited: Mapping[str, str],
    environ: Mapping[str, Entry],
    pre_spawn: Mapping[str, Entry],
    arguments: Mapping[str, Entry],
    unset: Collection[str] = (),
    bootstrap: bool = False,
    origins: Mapping[str, str] | None = None,
) -> list[Variable]:
    """Return the variables of the worker, sorted by name.

    *inherited* is nannyd's own environment, and *origins* says of what is in it where that comes from, as far
    as that is known.  With *bootstrap* (a Python worker) `environ` comes late
    and a variable may occur twice: as it is at `execve`, and as the bootstrap then sets it.
    """
    kept = {
        name: Entry(value, (origins or {}).get(name, INHERITED))
        for name, value in inherited.items()
        if not is_private(name) and name not in unset
    }
    seed = {"PYTHONHASHSEED": Entry(HASH_SEED, "default")}
    first = {**pre_spawn} if bootstrap else {**pre_spawn, **environ}
    later = {**environ} if bootstrap else {}
    for configured in (first, later):  # late, too: the worker's children would hash unlike itself
        if "PYTHONHASHSEED" in configured and configured["PYTHONHASHSEED"].value == "0":
            del configured["PYTHONHASHSEED"]
    at_exec = {**seed, **first, **kept, **arguments}
    late = {name: entry for name, entry in later.items() if name not in kept and name not in arguments}
    variables = [
        Variable(name, entry.value, entry.origin, entry.secret, late=is_late)
        for is_late, entries in ((False, at_exec), (True, late))
        for name, entry in entries.items()
    ]
    return sorted(variables, key=lambda variable: (variable.name, variable.late))
