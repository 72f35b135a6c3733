"""`nannyd.dask.Nanny` in programs of both versions of distributed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sdnotify

import nannyd

if TYPE_CHECKING:
    from .lab import Zygote

PROGRAMS = Path(__file__).with_name("nannies.py")


def names() -> list[str]:
    """Return the programs: what takes no arguments, and returns nothing."""
    functions = [
        node
        for node in ast.parse(PROGRAMS.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.args.args
    ]
    return [
        node.name for node in functions if node.returns is not None and ast.unparse(node.returns) == "None"
    ]


@pytest.mark.parametrize("name", names())
def test_a_program_with_nannies(zygote: Zygote, tmp_path: Path, name: str) -> None:
    path = tmp_path / "path"
    path.mkdir()
    # What nannyd needs, and no more of our own environment: the other has a distributed of its own.
    (path / "nannyd").symlink_to(Path(nannyd.__file__).parent)
    (path / "sdnotify").symlink_to(Path(sdnotify.__file__).parent)
    (path / PROGRAMS.name).symlink_to(PROGRAMS)
    log = tmp_path / "log"
    process = zygote.fork("program", log, config={}, path=[str(path)], module=PROGRAMS.stem, function=name)
    try:
        said = process.receive().decode()
        assert said == "done", f"{said}\n{log.read_text()}"
    finally:
        process.end()
