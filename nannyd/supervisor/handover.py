"""What the launcher handed over, kept in the memfd that it came in: three lines of JSON (config/handover.py).

Only the plan is held in our own memory; the two answers are read when somebody asks.
"""

from __future__ import annotations

import json
import os
from typing import Any, Self

from nannyd.core import plan as plans


class Handover:
    """An open memfd, owned."""

    def __init__(self, descriptor: int) -> None:
        """Take over *descriptor*.  Raises ValueError, KeyError or TypeError for what is no handover."""
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self.plan = plans.from_json(self._line(0))

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Keep *content*, which a reload has brought.  Raises as the constructor does."""
        descriptor = os.memfd_create("nannyd-plan", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        try:
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _line(self, number: int) -> str:
        content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        lines = content.split(b"\n")
        if len(lines) != 4:  # the last is empty
            raise ValueError(f"three lines were expected, not {len(lines) - 1}")
        return lines[number].decode()

    def shown_plan(self) -> dict[str, Any]:
        """Return the answer to Plan."""
        answer: dict[str, Any] = json.loads(self._line(1))
        return answer

    def explanation(self) -> dict[str, Any]:
        """Return the answer to Explain."""
        answer: dict[str, Any] = json.loads(self._line(2))
        return answer

    def close(self) -> None:
        """Give the memfd back."""
        os.close(self._descriptor)
