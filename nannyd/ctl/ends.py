"""Why an instance is not there any more: the file that nannyd leaves when it ends.

The worker can write to where it stands, and so can another user: it is read with care, and shown clean.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.core.paths import end_file
from nannyd.ctl.client import FailureError
from nannyd.ctl.replies import Table

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 16 << 10
"""Bytes; a reason has at most 1,000 characters."""
_WORDS = {
    "stopped": "stopped",
    "terminated": "terminated over its socket",
    "drained": "drained",
    "succeeded": "its worker succeeded",
    "failed": "its worker failed",
}


@dataclass(frozen=True, slots=True)
class End:
    """How an instance ended."""

    kind: str
    """stopped, terminated, drained, succeeded, failed."""
    reason: str
    """Of whoever asked for it."""
    worker: str
    """How the last worker ended, in words."""
    at: float
    """Seconds since the epoch."""

    @property
    def words(self) -> str:
        """What is to be said of it."""
        text = _WORDS[self.kind]
        if self.reason:
            text += f": {self.reason}"
        elif self.worker and self.kind not in ("stopped", "terminated"):
            text += f": it {self.worker}"
        return text


def read(state: Path) -> End | None:
    """Return what stands in the state directory of an instance."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(end_file(state), flags)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return parse(os.read(descriptor, _LONGEST))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def parse(text: bytes) -> End | None:
    """Return what a file says, or None."""
    try:
        table = Table(json.loads(text))
        end = End(table.text("kind"), table.text("reason"), table.text("worker"), table.integer("at") / 1e6)
    except (ValueError, RecursionError, FailureError):
        return None
    return end if end.kind in _WORDS else None
