"""Other users, whose instances root sees too, as `alice/worker1`.

Nothing of theirs is believed, and nobody waits for them: not their directories, which they may change at any
time; not their sockets (`client.Address`); nor the programs that ask their service managers (`programs`).
"""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.paths import control_socket, in_tmp
from nannyd.core.units import name_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_RUNTIMES = Path("/run/user")
_LOOKED_AT = 4096
"""Entries of a directory; more than anybody needs."""
INSTANCES_MAX = 256
"""Of one other user."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Another user."""

    uid: int
    name: str
    """Or the uid, of a user without a name."""
    group: int | None
    """None, as *home*: the user is not in the user database."""
    home: str | None

    @property
    def runtime(self) -> Path:
        """The user's XDG_RUNTIME_DIR."""
        return _RUNTIMES / str(self.uid)

    def directories(self) -> list[Path]:
        """Return the runtime directories that have a socket."""
        parents = (self.runtime / "nannyd", in_tmp(self.uid))
        found = itertools.chain.from_iterable(sockets_in(parent, self.uid) for parent in parents)
        return list(itertools.islice(found, INSTANCES_MAX))


def own_runtime(environ: Mapping[str, str]) -> str | None:
    """Return our XDG_RUNTIME_DIR, if there is one, also where sudo(8) has left none or su(1) another's."""
    uid = os.geteuid()
    given, usual = environ.get("XDG_RUNTIME_DIR"), _RUNTIMES / str(uid)
    with suppress(OSError):
        if given and Path(given).stat().st_uid == uid:
            return given
    return str(usual) if is_of(usual, uid) else given


def others(environ: Mapping[str, str]) -> list[Owner]:
    """Return the users beside us who are logged in, or whose instances are in /tmp, if we are root."""
    if os.geteuid() != 0:
        return []
    own = environ.get("XDG_RUNTIME_DIR")  # after su(1) it may be somebody else's
    uids = {uid for path, uid in _numbered(_RUNTIMES, "") if (uid or str(path) != own) and is_of(path, uid)}
    uids |= {uid for path, uid in _numbered(in_tmp(0).parent, "nannyd-") if uid and is_of(path, uid)}
    return [owner_of(uid) for uid in sorted(uids)]


def sockets_in(parent: Path, uid: int) -> Iterator[Path]:
    """Yield the directories within *parent* that have a control socket; none where it is not all *uid*'s."""
    if not is_of(parent, uid):
        return
    for name in listed(parent):
        if os.path.lexists(control_socket(parent / name)):
            yield parent / name


def listed(parent: Path) -> list[str]:
    """Return the entries of *parent* that may be names of instances."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, _LOOKED_AT)]
    except OSError:
        return []
    return [name for name in names if name_problem(name) is None]


def is_of(path: Path, uid: int) -> bool:
    """Say whether *path* is a directory, no link, that belongs to *uid* alone."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o022


def _numbered(parent: Path, prefix: str) -> Iterable[tuple[Path, int]]:
    try:
        paths = list(parent.iterdir())
    except OSError:
        return
    for path in paths:
        number = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and number.isascii() and number.isdigit() and len(number) <= 10:
            yield path, int(number)


def owner_of(uid: int) -> Owner:
    """Return what the user database knows."""
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return Owner(uid, str(uid), None, None)
    return Owner(uid, entry.pw_name, entry.pw_gid, entry.pw_dir)
