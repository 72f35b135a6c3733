"""What stands in the journal about an instance, read with the rights of whoever asks.

`journalctl` reads it: it knows how (earlier boots, the pager, every option an administrator is used to).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.core.exits import signal_name
from nannyd.core.paths import Scope
from nannyd.ctl import render, units
from nannyd.ctl.programs import colourless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.ctl.instances import Instance
    from nannyd.ctl.render import Style

_SOCKET = Path("/run/systemd/journal/socket")
_STORES = (Path("/run/log/journal"), Path("/var/log/journal"))
LINES = 10
"""As many as systemctl shows."""
_PATIENCE = 2.0
"""Seconds for all that is asked for at once."""
_AT_ONCE = 8
"""Times journalctl runs at the same time."""
_CORE_DUMP = "MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1"
"""Of systemd-coredump's records."""
_FIELDS = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,SYSLOG_PID,_COMM,_PID"


def why_not(instance: Instance) -> str | None:
    """Say why the journal is not where to read about *instance*, or return None."""
    if not _SOCKET.exists():
        return "no journal is kept here"
    if _is_elsewhere(instance):
        return f"it was not started as {units.unit_name(instance.bare)}, and its worker's lines go elsewhere"
    if not may_read(instance.scope):
        needs = "takes root or membership in the group systemd-journal"
        return f"to read its journal (the worker's lines, earlier lives) {needs}"
    return None


def _is_elsewhere(instance: Instance) -> bool:
    if instance.status is not None:
        return instance.status.unit != units.unit_name(instance.bare)
    return instance.is_up and instance.unit is None


def may_read(scope: Scope) -> bool:
    """Say whether we may read what the journal has on the units of *scope*."""
    if os.geteuid() == 0:
        return True
    names = ["system.journal"]
    if scope is Scope.USER:
        names.append(f"user-{os.getuid()}.journal")
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return False
    return any(os.access(store / machine / name, os.R_OK) for store in _STORES for name in names)


def journalctl(instances: Sequence[Instance], *options: str, also: Sequence[str] = ()) -> list[str]:
    """Return the command line for what nannyd, the workers and systemd said of *instances*.

    *also*: fields that an entry has to have, too.
    """
    terms = [[*term, *also] for one in instances for term in _terms(one)]
    which = [word for term in terms for word in ("+", *term)][1:]
    # Who reads her own journal only is not to be warned that she sees nothing of the system's.
    quiet = [] if may_read(Scope.SYSTEM) else ["--quiet"]
    return ["journalctl", *quiet, *options, *which]


def _terms(instance: Instance) -> list[list[str]]:
    """Return what `--unit` and `--user-unit` stand for (journalctl(1)); the latter knows no other user's."""
    unit = units.unit_name(instance.bare)
    if instance.scope is Scope.SYSTEM:
        return [
            [f"_SYSTEMD_UNIT={unit}"],
            ["_PID=1", f"UNIT={unit}"],
            ["_UID=0", f"OBJECT_SYSTEMD_UNIT={unit}"],
            [_CORE_DUMP, "_UID=0", f"COREDUMP_UNIT={unit}"],
        ]
    uid = f"_UID={os.getuid() if instance.owner is None else instance.owner.uid}"
    return [
        [f"_SYSTEMD_USER_UNIT={unit}", uid],
        [f"USER_UNIT={unit}", uid],
        [f"OBJECT_SYSTEMD_USER_UNIT={unit}", "_UID=0"],
        [_CORE_DUMP, f"COREDUMP_USER_UNIT={unit}", "_UID=0"],
    ]


# The last lines


@dataclass(frozen=True, slots=True)
class Line:
    """One entry; *at* is in seconds since the epoch."""

    at: float
    priority: int
    source: str
    """`nannyd[826]`."""
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """Which entries are meant: all of *instance*, or those of some time that have some fields."""

    instance: Instance
    options: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def of_worker(instance: Instance, since: float, until: float) -> Part:
    """Return what the worker said between two instants, in seconds since the epoch."""
    limits = (f"--since=@{since:.6f}", f"--until=@{until:.6f}")
    return Part(instance, limits, (f"SYSLOG_IDENTIFIER={instance.bare}",))


def tails(parts: Sequence[Part], count: int) -> list[list[Line]]:
    """Return the last *count* lines of each; nothing where they cannot be read, or not in time."""
    deadline = time.monotonic() + _PATIENCE

    def tail(part: Part) -> list[Line]:
        left = deadline - time.monotonic()
        return [] if left <= 0 or why_not(part.instance) is not None else _tail(part, count, left)

    if not count or not parts:
        return [[] for _ in parts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(tail, parts))


def _tail(part: Part, count: int, timeout: float) -> list[Line]:
    options = (f"--lines={count}", f"--output-fields={_FIELDS}", *part.options)
    written = _entries(part.instance, timeout, *options, also=part.fields).splitlines()
    return [line for text in written if (line := parse(text)) is not None]


def _entries(instance: Instance, timeout: float, *options: str, also: Sequence[str] = ()) -> bytes:
    """Return what journalctl writes as JSON, an entry a line; nothing where it cannot, or not in time."""
    try:
        done = subprocess.run(
            journalctl([instance], "--output=json", "--no-pager", "--quiet", *options, also=also),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=colourless(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout


def last_exit(instance: Instance) -> dict[str, Any] | None:
    """Return what nannyd recorded of the latest end of a worker, as the type Exit; None: not to be had."""
    if why_not(instance) is not None:
        return None
    which = ("NANNYD_EVENT=worker-ended", "NANNYD_EVENT=worker-failed")
    try:
        entry = _entries(instance, _PATIENCE, "--lines=1", "--all", also=which)
        return recorded_exit(json.loads(entry))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def recorded_exit(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the Exit that a journal *entry* tells of.  Raises ValueError or TypeError for another entry."""

    def number(name: str) -> int | None:
        value = entry.get(name)
        return None if value is None else int(value)

    signal_number, uptime = number("EXIT_SIGNAL"), number("UPTIME_USEC")
    return {
        "generation": int(entry.get("NANNYD_GENERATION", 0)),
        "result": _text(entry.get("RESULT")),
        "who": _text(entry.get("WHO")),
        "how": _text(entry.get("HOW")),
        "detail": _text(entry.get("DETAIL", "")),
        "exitStatus": number("EXIT_STATUS"),
        "signal": None if signal_number is None else signal_name(signal_number) or str(signal_number),
        "at": int(entry["__REALTIME_TIMESTAMP"]) if "__REALTIME_TIMESTAMP" in entry else 0,
        "uptime": None if uptime is None else uptime / 1e6,
        "memoryPeak": number("MEMORY_PEAK"),
        "wasReady": entry.get("WAS_READY") == "yes",
    }


def parse(text: bytes) -> Line | None:
    """Parse one line of `journalctl -o json`; None for what is none."""
    try:
        entry = json.loads(text)
        at = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        priority = int(entry.get("PRIORITY", 6))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    name = _text(entry.get("SYSLOG_IDENTIFIER") or entry.get("_COMM") or "unknown")
    pid = _text(entry.get("SYSLOG_PID") or entry.get("_PID") or "")
    return Line(at, priority, f"{name}[{pid}]" if pid else name, _text(entry.get("MESSAGE")))


def _text(value: Any) -> str:
    """Return a field: text, or a list of bytes where it is not UTF-8, or null where it is long."""
    if isinstance(value, str):
        return value
    if value is None:
        return "(a very long line)"
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        return bytes(value).decode(errors="replace")
    return "(several lines)"


def described(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return *lines* as JSON has them."""
    return [{**asdict(line), "at": round(line.at * 1e6)} for line in lines]


def worded(line: Line, style: Style) -> list[str]:
    """Return *line* as journalctl shows it, further lines of it indented."""
    first, *rest = render.clean_lines(line.message)
    colour = render.priority_colour(line.priority)
    head = f"{render.log_instant(line.at)} {render.clean(line.source)}: "
    return [
        head + style.paint(first, colour),
        *(" " * len(head) + style.paint(more, colour) for more in rest),
    ]
