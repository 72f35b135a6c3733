"""Dask's own files and variables, as the lowest layers of a Dask worker's settings.

They are read by a child (`nannyd.dask.files`) of the worker's interpreter, in its environment and,
where the instance is another user's, as that user: it is his program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.config.dask import DASK_KEYS
from nannyd.config.daskrules import MEMORY
from nannyd.config.tree import Layer, Origin, find, plain, problem_at
from nannyd.config.wording import show
from nannyd.core.environ import Entry, compose
from nannyd.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nannyd.config.owner import Owner
    from nannyd.config.tree import Tree

TIMEOUT = 30.0
"""Seconds; it takes 50 ms, but not from a cold network drive."""

_SCRIPT = Path(__file__).parent.parent / "dask" / "files.py"
_TABLES = ("environ", "pre-spawn-environ", "env")
_OUR_WARN = 0.8
_OUR_TERMINATE = 0.95


@dataclass(slots=True)
class Theirs:
    """What Dask's own configuration says."""

    layers: list[Layer] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What is not distributed's default, by dotted key."""
    is_whole: bool = True
    """All of it could be read."""


def read(tree: Tree, environ: Mapping[str, str], owner: Owner | None) -> Theirs:
    """Return what the interpreter of *tree* finds in *environ*, as *owner* if that is given."""
    leaf = find(tree, ("worker", "python"))
    python = sys.executable if leaf is None or leaf.value == "none" else leaf.value
    if not isinstance(python, str) or not os.path.isabs(python):  # noqa: PTH117 - and that is said elsewhere
        return Theirs(is_whole=False)
    if owner is not None and not owner.can_be:
        # Nobody runs what another user may have written, merely by asking.
        note = f"Dask's own configuration is not known: {python} is run by its user and by root only"
        return Theirs(notes=[note], is_whole=False)
    directory = find(tree, ("worker", "working-directory"))
    try:
        said = _run(python, _environ(tree, environ, owner), directory and directory.value, owner)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return _failed(tree, f"{show(python)} {_why(error)}")
    if said["missing"] is not None:
        message = (
            f"{show(python)} has no {said['missing']}, which [dask] needs; install python3-distributed, or"
        )
        return _failed(tree, f"{message} nannyd[dask] with pip, or write an interpreter that has it")
    return _theirs(said, has_terminate=find(tree, ("memory", "terminate")) is not None)


def _failed(tree: Tree, message: str) -> Theirs:
    return Theirs(problems=[problem_at(tree, ("worker", "python"), message)], is_whole=False)


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"does not answer within {TIMEOUT:g} s when it is asked for Dask's configuration"
    if isinstance(error, OSError):
        return f"cannot be executed ({error.strerror})"
    return f"cannot say Dask's configuration: {error}"


# The child


def _environ(tree: Tree, environ: Mapping[str, str], owner: Owner | None) -> dict[str, str]:
    """Return the worker's environment, as far as it is written in plain words."""
    nanny = tree.get("nanny", {})
    tables = plain(nanny) if isinstance(nanny, dict) else {}

    def entries(key: str) -> dict[str, Entry]:
        return {
            name: Entry(str(value), "")
            for name, value in tables.get(key, {}).items()
            if isinstance(value, str | int | float) and "\0" not in f"{name}{value}" and "=" not in name
        }

    environs = [entries(key) for key in _TABLES]
    made = compose(inherited=environ, environ=environs[0], pre_spawn=environs[1], arguments=environs[2])
    result = {variable.name: variable.value for variable in made if variable.name}
    if owner is not None:
        result.setdefault("HOME", owner.home)
    return result


def _run(python: str, environ: dict[str, str], directory: Any, owner: Owner | None) -> dict[str, Any]:
    """Return what the script says.  Its output goes to files: who else has them open, holds nobody up."""
    known = isinstance(directory, str) and Path(directory).is_dir()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            [python, "-c", _SCRIPT.read_text()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environ,
            cwd=directory if known else None if owner is None else "/",
            timeout=TIMEOUT,
            check=False,
            start_new_session=True,  # nor has it our terminal
            **({} if owner is None else owner.process_options()),
        )
        output.seek(0)
        errors.seek(0)
        lines, words = output.read().splitlines(), errors.read().decode(errors="replace").split("\n")
    if done.returncode != 0 or not lines:
        last = next((word for word in reversed(words) if word.strip()), "it says nothing")
        raise ValueError(f"status {done.returncode}, {last}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


# What it said


def _theirs(said: dict[str, Any], *, has_terminate: bool) -> Theirs:
    theirs = Theirs(notes=said["notes"], is_whole=not said["problems"])
    theirs.problems = [
        Problem("environment" if where.startswith("DASK_") else where, _variable(where), message)
        for where, message in said["problems"]
    ]
    scheme = "tcp"
    for layer in said["layers"]:
        values = layer["values"]
        scheme = values.get("distributed.comm.default-scheme") or scheme
        if not layer["default"]:
            theirs.chosen.update(values)
        found = _settings(values, scheme, is_default=layer["default"])
        terminate = values.get(f"{MEMORY}.terminate")
        if isinstance(terminate, int | float) and 0 < terminate <= _OUR_WARN and not has_terminate:
            # nannyd's own default warning has to come before, too.
            found["memory"]["warn"] = round(terminate * _OUR_WARN / _OUR_TERMINATE, 4)
        if found:
            theirs.layers.append(Layer(Origin(layer["where"], layer["key"], is_dask=True), found))
    return theirs


def _variable(where: str) -> str:
    return where if where.startswith("DASK_") else ""


def _settings(values: dict[str, Any], scheme: str, *, is_default: bool) -> dict[str, Any]:
    """Return Dask's *values* as a tree of settings."""
    tree: dict[str, Any] = {}
    for name, theirs in DASK_KEYS.items():
        value = values.get(theirs)
        if value is None or (is_default and not value):
            continue
        section, key = name.split(".")
        tree.setdefault(section, {})[key] = _translated(name, value, scheme)
    return tree


def _translated(name: str, value: Any, scheme: str) -> Any:
    """Return the *value* of setting *name* in nannyd's form; what Dask would not take stays as it is."""
    match name, value:
        case (("nanny.environ" | "nanny.pre-spawn-environ"), dict()):
            # false drops a variable here, and null there
            return {str(key): False if item is None else str(item) for key, item in value.items()}
        case (("nanny.preload" | "worker.preload"), str()):
            return [value]
        case "memory.terminate", float() | int() if value is not True and value >= 1:
            return False  # the limit itself, which nannyd leaves to the kernel
        case "dask.scheduler", str() if "://" not in value:
            return f"{scheme}://{value}"
    return value
