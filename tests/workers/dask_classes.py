"""Dask workers of one's own, and a preload."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_Worker: Any = importlib.import_module("distributed").Worker


class Own(_Worker):  # type: ignore[misc]
    """Is different from others in name only."""


class Broken(_Worker):  # type: ignore[misc]
    """Cannot be started, for a reason that is no missing scheduler."""

    async def start_unsafe(self) -> None:
        """Raise what the reason is."""
        raise TimeoutError("no answer from the shop")


def dask_setup(worker: Any) -> None:
    """Say so."""
    print("dask_setup of", type(worker).__name__, file=sys.stderr)
