"""Who may import whom.  A folder is a process, and processes talk by sockets, not by imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nannyd

ROOT = Path(nannyd.__file__).parent
FOLDERS = {"core", "config", "supervisor", "worker", "agent", "ctl", "dask"}

MAY_IMPORT = {
    "core": {"core"},
    "config": {"core", "config"},
    "supervisor": {"core", "supervisor"},
    "worker": {"core", "worker"},
    "agent": {"core", "agent"},
    "ctl": {"core", "ctl"},
    "dask": {"core", "worker", "agent", "supervisor", "dask"},
}

BELONGS_TO = {
    "pydantic": "config",
    "pydantic_settings": "config",
    "pydantic_core": "config",
    "psutil": "supervisor",
    "pythonjsonlogger": "supervisor",
    "sdnotify": "supervisor",
    "systemd": "supervisor",
    "ssl": None,
    "cloudpickle": "dask",
    "dask": "dask",
    "distributed": "dask",
    "tornado": "dask",
    "yaml": "dask",
}
"""Where each library is used, and nowhere else."""

FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in FOLDERS)


def imported(path: Path, *, at_once: bool = False) -> set[str]:
    """Return every module that *path* imports (*at_once*: when it is imported), but for types only."""
    found: set[str] = set()
    for node in _executed(ast.parse(path.read_text()), at_once=at_once):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # `from nannyd.supervisor import tree` names a module, `from os import path` may.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _executed(tree: ast.AST, *, at_once: bool) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes.append(node)
            todo += ast.iter_child_nodes(node)
    return nodes


def folder_of(path: Path) -> str:
    """Return the folder below the package."""
    return path.relative_to(ROOT).parts[0]


def test_there_is_something_to_look_at() -> None:
    assert {folder_of(path) for path in FILES} >= {"core", "config", "supervisor", "worker", "agent"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_import_core_and_themselves(path: Path) -> None:
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("nannyd.")}
    assert inner & FOLDERS <= MAY_IMPORT[folder_of(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_is_used_in_one_folder(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    foreign = tops - sys.stdlib_module_names - {"nannyd"}
    assert foreign <= set(BELONGS_TO), "a library that this table does not know"
    assert all(BELONGS_TO[name] == folder_of(path) for name in tops & set(BELONGS_TO))


def graph() -> dict[str, set[str]]:
    """Return which module of the package imports which, when it is imported itself."""
    modules = {".".join(("nannyd", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    return {
        module: {
            other
            for name in imported(path, at_once=True)
            for other in modules
            if other != module and (name == other or name.startswith(f"{other}."))
        }
        for module, path in modules.items()
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: others - {module} for module, others in graph().items()}
    while ready := [module for module, others in left.items() if not others]:
        for module in ready:
            del left[module]
        left = {module: others - set(ready) for module, others in left.items()}
    assert left == {}, "these, or some of them, need each other"


def loaded_by(module: str) -> set[str]:
    """Return what is in sys.modules of a fresh isolated interpreter after *module* was imported."""
    # As nannyd.supervisor.__main__ does: asyncio takes ssl where it finds it.
    without_ssl = "sys.modules['ssl'] = None\n" if module.startswith("nannyd.supervisor") else ""
    program = f"import sys\n{without_ssl}import {module}\n"
    program += "print(*(name for name, module in sys.modules.items() if module is not None))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["nannyd.supervisor.main", "nannyd.supervisor.tree"])
def test_the_supervisor_loads_neither_pydantic_nor_ssl(module: str) -> None:
    loaded = loaded_by(module)
    assert not {name for name in loaded if name.split(".")[0] in ("pydantic", "pydantic_core", "_ssl", "ssl")}
    assert not {name for name in loaded if name.startswith(("nannyd.config", "nannyd.worker"))}


@pytest.mark.parametrize("module", ["uuid", "random", "datetime", "psutil", "argparse"])
def test_the_supervisor_does_without_what_is_dear(module: str) -> None:
    """Each of them was found to cost memory that nothing in the supervisor earns."""
    assert module not in loaded_by("nannyd.supervisor.main")


@pytest.mark.parametrize("module", ["asyncio", "logging", "pydantic", "psutil", "random", "uuid"])
def test_the_client_does_without_what_would_make_people_wait(module: str) -> None:
    assert module not in loaded_by("nannyd.ctl.listing")


def test_core_loads_nothing_but_the_standard_library() -> None:
    program = "import sys; before = set(sys.modules)\n"
    program += "".join(
        f"import nannyd.core.{path.stem}\n"
        for path in (ROOT / "core").glob("*.py")
        if path.stem != "__init__"
    )
    program += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in done.stdout.split()}
    assert tops - sys.stdlib_module_names == {"nannyd"}


@pytest.mark.parametrize("room", ["worker", "agent"])
def test_the_bootstrap_loads_nothing_but_the_standard_library_and_core(room: str) -> None:
    loaded = loaded_by(f"nannyd.{room}.bootstrap")
    inner = {name for name in loaded if name.startswith("nannyd.")}
    assert {name.split(".")[1] for name in inner} == {"core", room}
    before = loaded_by("sys")
    tops = {name.split(".")[0] for name in loaded - before}
    assert tops - sys.stdlib_module_names == {"nannyd"}


def test_who_writes_a_plugin_need_not_load_asyncio() -> None:
    assert "asyncio" not in loaded_by("nannyd.agent")
