"""Where an in-process Nanny lives: directories, names, environment and output."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from nannyd.dask import lodging

if TYPE_CHECKING:
    from pathlib import Path


def test_names_are_like_those_of_files_and_used_once() -> None:
    names = [lodging.instance_name(name) for name in ("../../a b", ("x", 1), None, None, "y" * 200)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name and len(name) < 80 for name in names)


def test_sockets_have_a_directory_whose_name_is_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    rooms = lodging.Rooms("a", str(tmp_path / "deep" / "place"))
    assert len(str(rooms.runtime / "notify-12345678")) < 108
    assert rooms.runtime.stat().st_mode & 0o777 == 0o700
    assert rooms.scratch.is_relative_to(tmp_path / "deep" / "place")
    rooms.remove()
    assert not rooms.runtime.exists()
    assert not rooms.scratch.exists()


def test_what_is_said_to_the_program_alone_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("OWN", "1")
    found = lodging.environ({"OWN": "2", "MORE": "3"}, {"MORE": "4"})
    assert (found["OWN"], found["MORE"]) == ("2", "4")
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & found.keys()


@pytest.mark.parametrize("closing", ["", ">&-", "2>&-"])
def test_a_worker_has_an_output_where_the_program_has_none(tmp_path: Path, closing: str) -> None:
    program = "import os, sys; from nannyd.dask.lodging import output; fd = output(); "
    program += (
        f"open({str(tmp_path / 'fd')!r}, 'w').write(os.readlink(f'/proc/self/fd/{{fd}}') + ' ' + str(fd))"
    )
    subprocess.run(["sh", "-c", f'exec {sys.executable} -c "$0" {closing}', program], check=True)
    where, _, fd = (tmp_path / "fd").read_text().rpartition(" ")
    assert (int(fd) == 1) is (closing == "")
    assert where == "/dev/null" or not closing
