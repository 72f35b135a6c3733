"""The parts of nannyd that are laid out for the interpreters of Python workers."""

from __future__ import annotations

from pathlib import Path

import pytest

import nannyd
from nannyd.supervisor import library

SOURCE = Path(nannyd.__file__).parent


def test_the_parts_are_copied_and_nothing_of_the_daemon(tmp_path: Path) -> None:
    installed = library.install(tmp_path)
    assert [path.name for path in installed.iterdir()] == ["nannyd"]
    files = {str(path.relative_to(installed / "nannyd")) for path in installed.rglob("*.py")}
    assert {"__init__.py", "core/wire.py", "worker/bootstrap.py"} <= files
    assert not any(file.startswith(("config/", "supervisor/", "ctl/")) for file in files)
    for file in files:
        assert (installed / "nannyd" / file).read_bytes() == (SOURCE / file).read_bytes()


@pytest.mark.parametrize("dask", [False, True])
def test_what_dask_needs_is_only_there_where_it_is_needed(tmp_path: Path, dask: bool) -> None:  # noqa: FBT001
    installed = library.install(tmp_path, dask=dask)
    assert (installed / "nannyd" / "dask" / "__init__.py").exists() == dask


def test_what_an_earlier_supervisor_left_is_replaced_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.py").write_text("")
    old = library.install(tmp_path) / "nannyd"
    (old / "worker" / "stale.py").write_text("")
    (old / "__pycache__").mkdir()
    (old / "__pycache__" / "x.pyc").write_text("")
    (old / "linked").symlink_to(outside)
    assert not (library.install(tmp_path) / "nannyd" / "worker" / "stale.py").exists()
    assert (outside / "precious.py").exists()


def test_a_link_in_the_place_of_the_package_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "nannyd").symlink_to(SOURCE)
    library.install(tmp_path)
    assert not (tmp_path / "lib" / "nannyd").is_symlink()
    assert (SOURCE / "supervisor").is_dir()
