"""Dask's own configuration, as the unit of an instance finds it, whoever asks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .instances import as_user, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import NannydFactory

TOML = """
[dask]
nthreads = 1
[worker]
python = "PYTHON"
"""
SITE = "scheduler-address: 127.0.0.1:8786\ndistributed: {nanny: {environ: {A: site, B: site}}}\n"
BOBS = "distributed: {nanny: {environ: {B: bob}}}\n"
SPY = """#!/bin/sh
id -u >> DIRECTORY/uid
cat /proc/self/stat | cut -d' ' -f7 >> DIRECTORY/terminal
exec /usr/bin/python3 "$@"
"""


@pytest.fixture
def site() -> Iterator[Path]:
    """Return a file in /etc/dask."""
    path = Path("/etc/dask/nannyd-test.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(SITE)
    yield path
    path.unlink()


@pytest.fixture
def bobs() -> Iterator[Path]:
    """Return a file in the home of bob."""
    path = Path("~bob/.config/dask/own.yaml").expanduser()
    path.parents[1].mkdir()
    path.parent.mkdir()
    path.write_text(BOBS)
    yield path
    shutil.rmtree(path.parents[1])


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    """Return an interpreter that writes down who runs it."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    notes = tmp_path / "notes"
    notes.mkdir()
    notes.chmod(0o777)
    path = tmp_path / "python"
    path.write_text(SPY.replace("DIRECTORY", str(notes)))
    path.chmod(0o755)
    return path


def explained(name: str, user: str | None = None) -> dict[str, Any]:
    output = run_command(*as_user(user), "nannyd", "explain", "--json", name)
    found: dict[str, Any] = json.loads(output.stdout)
    return found


def origins(document: dict[str, Any], prefix: str) -> dict[str, tuple[Any, str]]:
    return {
        entry["name"]: (entry["value"], entry["origin"])
        for entry in document["settings"]
        if entry["name"].startswith(prefix)
    }


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/opt/dask/bin/python"])
def test_the_configuration_of_the_site_counts(nannyd: NannydFactory, site: Path, python: str) -> None:
    instance = nannyd(
        TOML.replace("PYTHON", python), "Environment=DASK_DISTRIBUTED__NANNY__PRELOAD=x", start=False
    )
    document = explained(instance.instance)
    assert origins(document, "dask.scheduler")["dask.scheduler"] == ("tcp://127.0.0.1:8786", str(site))
    assert origins(document, "nanny.environ") == {
        "nanny.environ.A": ("site", str(site)),
        "nanny.environ.B": ("site", str(site)),
    }
    assert origins(document, "nanny.preload")["nanny.preload"] == (["x"], "DASK_DISTRIBUTED__NANNY__PRELOAD")
    defaults = origins(document, "nanny.pre-spawn-environ")["nanny.pre-spawn-environ.OMP_NUM_THREADS"]
    assert defaults[0] == "1"
    assert defaults[1].endswith("distributed/distributed.yaml")


def test_the_interpreter_is_asked_as_the_units_user_and_finds_his_files(
    nannyd: NannydFactory, site: Path, bobs: Path, spy: Path
) -> None:
    instance = nannyd(TOML.replace("PYTHON", str(spy)), "User=bob\nGroup=bob", start=False)
    document = explained(instance.instance)
    assert origins(document, "nanny.environ")["nanny.environ.B"] == ("bob", str(bobs))
    bob = run_command("id", "-u", "bob").stdout
    assert (spy.parent / "notes/uid").read_text() == bob
    assert (spy.parent / "notes/terminal").read_text() == "0\n"


def test_nobody_runs_anothers_interpreter_merely_by_asking(
    nannyd: NannydFactory, site: Path, spy: Path
) -> None:
    toml = f"[dask]\nscheduler = 'tcp://x:1'\n[worker]\npython = '{spy}'\n"
    instance = nannyd(toml, start=False)
    document = explained(instance.instance, "bob")
    assert any("is run by its user and by root only" in note for note in document["notes"])
    assert not (spy.parent / "notes/uid").exists()
