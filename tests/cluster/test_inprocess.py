"""`nannyd.dask.Nanny` in programs of both versions of distributed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sdnotify

import nannyd

from .lab import NEWEST, VERSIONS

if TYPE_CHECKING:
    from .lab import Zygote

PROGRAMS = Path(__file__).with_name("nannies.py")
OF_EITHER_VERSION = {
    "it_looks_like_a_nanny",
    "arguments_may_be_anything_that_can_be_pickled",
    "the_worker_has_the_event_loop_that_is_configured",
    "a_start_that_fails_raises_why",
    "a_start_that_takes_too_long_is_given_up",
    "a_worker_that_dies_is_followed_by_another",
    "too_much_memory_ends_a_worker",
    "ends_that_are_meant_end_the_nanny",
    "other_ends_do_not",
    "it_answers_as_a_nanny",
    "plugins_reach_the_next_worker",
    "clusters_use_it",
    "connections_may_be_encrypted",
}
"""Those in which the library has a part; the others are run with its newest version."""


def programs() -> list[tuple[str, str]]:
    """Return versions and programs; a program is a function that takes and returns nothing."""
    functions = [
        node.name
        for node in ast.parse(PROGRAMS.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.args.args
        and ast.unparse(node.returns or ast.Pass()) == "None"
    ]
    assert set(functions) >= OF_EITHER_VERSION
    return [
        (version, name)
        for version in VERSIONS
        for name in functions
        if version == NEWEST or name in OF_EITHER_VERSION
    ]


@pytest.mark.parametrize(("zygote", "name"), programs(), indirect=["zygote"])
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
