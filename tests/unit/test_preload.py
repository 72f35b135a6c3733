"""Preloads: found, imported, called."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from nannyd.core import preload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Forget what the tests import."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, source: str) -> str:
    """Write a preload and return its name."""
    path.write_text(source)
    return str(path)


def test_file_is_imported_under_its_own_name(tmp_path: Path) -> None:
    loaded = preload.load(write(tmp_path / "my_preload.py", "X = __name__"), [])
    assert loaded.module.X == "my_preload"
    assert sys.modules["my_preload"] is loaded.module


@pytest.mark.parametrize("taken", ["json", "graphlib", "pytest"])
def test_file_does_not_take_the_name_of_another_module(tmp_path: Path, taken: str) -> None:
    loaded = preload.load(write(tmp_path / f"{taken}.py", "X = __name__"), [])
    assert f"{taken}_" == loaded.module.X
    assert sys.modules.get(taken) is not loaded.module


def test_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "my_helper.py", "Y = 5")
    path_before = list(sys.path)
    loaded = preload.load(write(tmp_path / "my_preload.py", "from my_helper import Y"), [])
    assert loaded.module.Y == 5
    assert sys.path == path_before


def test_file_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path_before = list(sys.path)
    with pytest.raises(ZeroDivisionError):
        preload.load(write(tmp_path / "my_preload.py", "1 / 0"), [])
    assert "my_preload" not in sys.modules
    assert sys.path == path_before


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.py"):
        preload.load(str(tmp_path / "nothing.py"), [])


@pytest.mark.parametrize(
    ("signature", "argv", "called_with"),
    [
        ("(worker)", [], ("w",)),
        ("(worker, argv)", [], ("w", [])),
        ("(worker, argv)", ["--x"], ("w", ["--x"])),
        ("(worker, argv=None)", [], ("w", [])),
        ("(*everything)", ["--x"], ("w", ["--x"])),
        ("(worker, *, key=1)", [], ("w",)),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_setup_takes_the_arguments_if_it_can(
    tmp_path: Path, kind: str, signature: str, argv: list[str], called_with: tuple[object, ...]
) -> None:
    source = (
        f"CALLS = []\n{kind} nannyd_setup{signature}:\n"
        "    values = list(locals().values())\n"
        "    CALLS.append(values[0] if isinstance(values[0], tuple) else tuple(v for v in values if v != 1))"
    )
    loaded = preload.load(write(tmp_path / "my_preload.py", source), argv)
    asyncio.run(preload.maybe_await(loaded.set_up("w")))
    assert [called_with] == loaded.module.CALLS


@pytest.mark.parametrize("source", ["", "def nannyd_setup(worker): pass"])
def test_arguments_that_nobody_takes_are_an_error(tmp_path: Path, source: str) -> None:
    loaded = preload.load(write(tmp_path / "my_preload.py", source), ["--x"])
    with pytest.raises(TypeError, match=r"has arguments \['--x'\], but no nannyd_setup\(worker, argv\)"):
        asyncio.run(preload.maybe_await(loaded.set_up("w")))


def test_preload_without_functions_is_only_imported() -> None:
    loaded = preload.load("email.mime", [])
    asyncio.run(preload.maybe_await(loaded.set_up("w")))
    asyncio.run(preload.maybe_await(loaded.tear_down("w")))


def test_first_family_that_the_module_knows_is_called(tmp_path: Path) -> None:
    source = "CALLS = []\ndef dask_setup(nanny): CALLS.append(nanny)\n"
    loaded = preload.load(write(tmp_path / "my_preload.py", source), [], ("nannyd", "dask"))
    assert loaded.set_up("n") is None
    assert loaded.module.CALLS == ["n"]
    worker = preload.load(write(tmp_path / "mine.py", source), [])
    assert worker.set_up("w") is None
    assert worker.module.CALLS == []
