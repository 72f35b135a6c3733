"""Who an instance runs as, where its own interpreter has to be asked something."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NOBODY = 65534
"""For a user whom systemd makes only when the unit starts (systemd.exec(5), DynamicUser=)."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A user."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @property
    def is_other(self) -> bool:
        """It is not who asks."""
        return self.uid != os.geteuid()

    @property
    def can_be(self) -> bool:
        """We may do something as this user."""
        return not self.is_other or os.geteuid() == 0

    def process_options(self) -> dict[str, Any]:
        """Return what makes a child of subprocess one of this user's."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups}


def owner_of_process(pid: int) -> Owner | None:
    """Return the user of process *pid*, or None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    values = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    uid, gid = int(values["Uid"][1]), int(values["Gid"][1])
    return Owner(uid, gid, tuple(map(int, values["Groups"])), _home(uid))


def owner_named(user: str, group: str) -> Owner:
    """Return who User= and Group= of a unit mean, by name or number (systemd.exec(5)); none is root."""
    entry = _user(user or "0")
    uid, gid = (_NOBODY, _NOBODY) if entry is None else (entry.pw_uid, entry.pw_gid)
    if entry is None and user.isdecimal():
        uid = gid = int(user)
    if group:
        gid = _group(group, gid)
    groups = () if entry is None else tuple(os.getgrouplist(entry.pw_name, gid))
    return Owner(uid, gid, groups, "/" if entry is None else entry.pw_dir)


def _user(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return None


def _group(group: str, default: int) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        return default


def _home(uid: int) -> str:
    entry = _user(str(uid))
    return "/" if entry is None else entry.pw_dir
