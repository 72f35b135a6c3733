"""Problems, written where people look for them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.core.errors import Problem


def complain(problems: Sequence[Problem | str]) -> None:
    """Write every problem to standard error, with the journal's priority where that is the journal."""
    prefix = "<3>" if _is_journal() else ""
    for problem in problems:
        # A file's name may have a newline; a line is a problem.
        text = str(problem).replace("\n", "\\n")
        sys.stderr.write(f"{prefix}{text}\n")


def _is_journal() -> bool:
    """Say whether standard error is the journal's stream (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
