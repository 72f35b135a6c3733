"""The reader of Dask's own configuration takes whatever stands there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nannyd.config import daskfiles
from nannyd.dask.files import WANTED, Reader

if TYPE_CHECKING:
    from pathlib import Path


def read(directory: Path, text: str | bytes, environ: dict[str, str] | None = None) -> Reader:
    """Return what is found in one file and in *environ*."""
    (directory / "root").mkdir(exist_ok=True)
    (directory / "distributed.yaml").write_text("distributed: {nanny: {environ: {}}}")
    (directory / "root/a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    reader = Reader()
    places = {"DASK_ROOT_CONFIG": str(directory / "root"), "DASK_CONFIG": "/nonexistent"}
    reader.read(directory, {**places, **(environ or {})})
    return reader


def values(reader: Reader, name: str) -> list[Any]:
    return [layer["values"][name] for layer in reader.layers if name in layer["values"]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a: 1\nb: [}\n", ":2: is not YAML: "),
        ("a: 2024-13-45", ": is not YAML: month must be in 1..12"),
        (f"a: {'9' * 5000}", ": is not YAML: Exceeds the limit"),
        (
            f"distributed: {{nanny: {{preload: {'[' * 3000}{']' * 3000}}}}}",
            ": is not YAML that can be read: it is nested too deep",
        ),
        ("a: !!python/object:os.system x", ":1: is not YAML: could not determine a constructor"),
        (b"a: \xff", ": is not utf-8 text; write it in that"),
        ("just words", ": is no configuration of Dask; write a table such as distributed: {...}"),
        (
            "distributed: {nanny: {environ: &a {b: *a}}}",
            ": is not YAML that can be read: it is nested too deep",
        ),
    ],
)
def test_what_is_no_yaml_is_one_problem(text: str | bytes, answer: str, tmp_path: Path) -> None:
    ((where, message),) = read(tmp_path, text).problems
    assert f"{where}: {message}".startswith(f"{tmp_path}/root/a.yaml{answer}")


def test_what_json_has_not_becomes_text(tmp_path: Path) -> None:
    text = "distributed: {nanny: {environ: {2024-01-01: 2025-01-01, true: yes, 3: null, x: !!set {a}}}}"
    (found,) = values(read(tmp_path, text), "distributed.nanny.environ")[1:]
    assert found == {"2024-01-01": "2025-01-01", "True": True, "3": None, "x": ["a"]}


def test_a_file_that_cannot_be_read_is_noted_and_left_out_as_by_dask(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/b.yaml").mkdir()
    reader = read(tmp_path, "scheduler-address: tcp://x:1")
    assert values(reader, "scheduler-address") == ["tcp://x:1"]
    assert reader.problems == []
    assert reader.notes == [f"{tmp_path}/root/b.yaml cannot be read (Is a directory); Dask leaves it out"]


_KEYS = st.sampled_from([*{part for name in WANTED for part in name.split(".")}, "pre_spawn_environ", "x", 3])
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_KEYS, _TREES, max_size=3), st.dictionaries(st.sampled_from(WANTED), _TREES))
def test_any_configuration_is_read_and_judged(
    tmp_path: Path, file: dict[Any, Any], variables: dict[str, Any]
) -> None:
    environ = {
        f"DASK_{name.upper().replace('-', '_').replace('.', '__')}": repr(value)
        for name, value in variables.items()
    }
    reader = read(tmp_path, json.dumps(file), environ)
    said = {"layers": reader.layers, "problems": reader.problems, "notes": reader.notes}
    theirs = daskfiles._theirs(json.loads(json.dumps(said)), has_terminate=False)
    assert len(theirs.problems) == len(reader.problems)
    for layer in theirs.layers:
        assert set(layer.values) <= {"nanny", "worker", "memory", "dask"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30))
def test_any_text_is_some_file_or_a_problem(tmp_path: Path, text: str) -> None:
    reader = read(tmp_path, text.encode(errors="replace"))
    assert len(reader.problems) <= 1
