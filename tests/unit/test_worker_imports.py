"""What runs inside the user's interpreter needs Python 3.10 and its standard library, nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nannyd
from nannyd.core import wire
from nannyd.core.boot import boot_argv
from nannyd.supervisor.library import PARTS

ROOT = Path(nannyd.__file__).parent
FILES = sorted(path for part in PARTS for path in ROOT.glob(part))
DASK = ("dask", "distributed", "tornado")
"""What is there wherever the parts in `dask/` are used."""
MODULES = {".".join(("nannyd", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_standard_library_is_imported_and_what_the_supervisor_copies(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            # `from nannyd.core import wire` names a module, `from nannyd.core.wire import send` does not.
            packages = ("nannyd.core", "nannyd.worker", "nannyd.agent")
            inner = node.module in packages and f"{node.module}.{node.names[0].name}" in MODULES
            imported |= {f"{node.module}.{alias.name}" for alias in node.names} if inner else {node.module}
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    dasks = {name for name in foreign if path.parent.name == "dask" and name.split(".")[0] in DASK}
    assert foreign - dasks <= MODULES | {"nannyd"}


def test_types_are_right_for_python_3_10() -> None:
    pytest.importorskip("mypy")
    files = [str(path) for path in FILES]
    command = [sys.executable, "-m", "mypy", "--python-version", "3.10", *files]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("directory", ["/usr/lib/nannyd/only", "/a 'b' \"c\"\\ö", "/caf\udce9"])
def test_program_holds_any_directory(directory: str) -> None:
    python, option, program, *rest = boot_argv("/venv/bin/python", directory, "w1", "app:W")
    assert (python, option, rest) == ("/venv/bin/python", "-c", ["w1", "app:W"])
    assert "\n" not in program
    program.encode()
    constants = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    assert directory in constants


def test_any_error_fits_a_datagram() -> None:
    limit = 212_992 - 32  # net.core.wmem_default as the kernel sets it, less what it takes for itself
    assert len(f"X_NANNYD_ERROR={wire.format_error('🙂' * 100_000)}".encode()) < limit
