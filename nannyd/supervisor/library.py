"""What the interpreters of workers and agent import of nannyd: a copy, as old as this supervisor.

A copy and no link, because an upgrade of the package replaces the files under a running supervisor: its next
worker would have a bootstrap of another version, which may speak another protocol, or half of one.
"""

from __future__ import annotations

import os
from pathlib import Path

PARTS = (
    "__init__.py",
    *(f"core/{module}.py" for module in ("__init__", "boot", "preload", "target", "trace", "wire")),
    "worker/*.py",
    "agent/*.py",
)
DASK_PARTS = ("dask/*.py",)
"""What workers and agents in a Dask cluster need beside these; with all of the folder, for a part that is not
theirs does no harm."""


def install(runtime: Path, *, dask: bool = False) -> Path:
    """Return a directory below *runtime* that holds nothing but these parts of `nannyd`."""
    package = Path(__file__).resolve().parent.parent
    library = runtime / "lib"
    _remove(library)
    for part in (*PARTS, *(DASK_PARTS if dask else ())):
        for source in package.glob(part):
            copy = library / "nannyd" / source.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    return library


def _remove(directory: Path) -> None:
    """Remove what an earlier supervisor left; its bytecode could pass for that of the new files."""
    for path, directories, files in os.walk(directory, topdown=False):
        for name in files:
            Path(path, name).unlink()
        for name in directories:
            directory = Path(path, name)
            if directory.is_symlink():  # to a directory: as nannyd 0.1 made it, or somebody else
                directory.unlink()
            else:
                directory.rmdir()
