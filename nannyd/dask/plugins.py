"""Plugins of the nanny that come through Dask: pickled, and kept as files, which outlive the agent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from nannyd.dask.sparing import complete

LOADED_BY = "nannyd.dask.plugins:load"
"""The target of such a plugin."""


def load(path: str) -> Any:
    """Return the plugin that is pickled at *path*."""
    complete()
    from distributed.protocol.pickle import loads

    return loads(Path(path).read_bytes())


def digest(pickled: bytes) -> str:
    """Return what tells one plugin from another."""
    return hashlib.sha256(pickled).hexdigest()


def keep(pickled: bytes, directory: Path) -> Path:
    """Write *pickled* to a file of *directory*, seen whole or not at all, for nobody else to read."""
    path = directory / f"plugin-{digest(pickled)}"
    if not path.exists():
        descriptor, half = tempfile.mkstemp(prefix=".", dir=directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pickled)
        Path(half).replace(path)
    return path
