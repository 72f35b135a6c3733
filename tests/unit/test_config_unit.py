"""What a unit of systemd gives its instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nannyd.config import envfile, unit
from nannyd.config.compile import Request
from nannyd.config.machine import Machine
from nannyd.core.memory import Bound

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1", {"A": "1"}),
        ("# A=1\n;B=2\n  # C=3\nD=4\n", {"D": "4"}),
        ("# a comment \\\nA=1\n", {"A": "1"}),
        ("A=b # no comment\n", {"A": "b # no comment"}),
        ("A=  b c \t\n", {"A": "b c"}),
        (" A =b\n", {"A": "b"}),
        ("A='b  c'\n", {"A": "b  c"}),
        ("A='it\\n'\n", {"A": "it\\n"}),
        ('A="b \\"c\\" \\$d \\e"\n', {"A": 'b "c" $d \\e'}),
        ('A="b\nc"\n', {"A": "b\nc"}),
        ('A="b\\\nc"\n', {"A": "bc"}),
        ("A=b\\\nc\n", {"A": "bc"}),
        ("A=b\\ \n", {"A": "b "}),
        ("A=\"b\"'c'd\n", {"A": "bcd"}),
        ("A=b'c'\n", {"A": "b'c'"}),
        ("A=$B ${C}\n", {"A": "$B ${C}"}),
        ("A=\n", {"A": ""}),
        ('A="unclosed\n', {"A": "unclosed\n"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("no assignment\n1A=x\nA-B=x\nC=3\n", {"C": "3"}),
        ("export A=1\n", {}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A==b=c\n", {"A": "=b=c"}),
        ("", {}),
    ],
)
def test_an_environment_file_is_read_by_systemds_rules(text: str, variables: dict[str, str]) -> None:
    assert envfile.parse(text) == variables


@settings(deadline=None)
@given(st.text())
def test_any_text_is_some_environment_file(text: str) -> None:
    assert all(name.isidentifier() for name in envfile.parse(text))


@settings(deadline=None)
@given(st.text(st.characters(blacklist_characters="'", blacklist_categories=["Cs"])))
def test_a_value_in_single_quotes_survives(value: str) -> None:
    assert envfile.parse(f"A='{value}'\n") == {"A": value}


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        (["run", "w"], ["run", "w"]),
        (["run", "$OPTIONS", "--", "x"], ["run", "--a=1", "b c", "--", "x"]),
        (["run", "$NONE"], ["run"]),
        (["--x=${ONE}y", "${OPTIONS}"], ["--x=1y", "--a=1 'b c'"]),
        (["--x=$ONE", "$$ONE", "a$$"], ["--x=$ONE", "$ONE", "a$"]),
    ],
)
def test_variables_in_exec_start_are_expanded_as_systemd_does(
    arguments: list[str], expanded: list[str]
) -> None:
    assert envfile.expand(arguments, {"OPTIONS": "--a=1 'b c'", "ONE": "1"}) == expanded


@pytest.mark.parametrize(
    ("cmdline", "arguments"),
    [
        ("python3 -I -m nannyd.supervisor --plan-fd=3 -- run w --x.y=1 -- a -- b", "run w --x.y=1 -- a -- b"),
        ("/usr/bin/python3 /usr/bin/nannyd run w -- nannyd", "run w -- nannyd"),
        ("python3 -m nannyd run w", "run w"),
        ("nannyd run w", "run w"),
        ("python3 -I -m nannyd.supervisor --plan-fd=3", None),
        ("sleep 5", None),
        ("sh -c x -- nannyd run", None),
    ],
)  # fmt: skip
def test_nannyds_own_arguments_are_recovered_from_its_process(cmdline: str, arguments: str | None) -> None:
    found = unit.recover_arguments(cmdline.split())
    assert found == (None if arguments is None else arguments.split())


def test_options_of_the_command_line_stand_above_those_of_the_unit() -> None:
    request = Request("w", options=[("--worker.nice", "2")], env=[("A", "2")])
    own = ["run", "w", "--config-dir", "/x", "--worker.nice=1", "--env", "A=1", "--", "sleep", "1"]
    merged = unit.add_arguments(request, own)
    assert str(merged.config_dir) == "/x"
    assert merged.options == [("--worker.nice", "1"), ("--worker.nice", "2")]
    assert merged.env == [("A", "1"), ("A", "2")]
    assert merged.command == ["sleep", "1"]
    assert unit.add_arguments(request, None) == request


def test_unset_environment_takes_names_and_exact_assignments() -> None:
    assert unit.without({"A": "1", "B": "1", "C": "1"}, ["A", "B=1", "C=2"]) == {"C": "1"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.slice", "/a.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("-.slice", "/"),
        ("system-nannyd.slice", "/system.slice/system-nannyd.slice"),
    ],
)
def test_a_slice_lies_within_the_slices_of_its_name(name: str, path: str) -> None:
    assert unit.slice_path(name) == path


def test_a_units_name_is_escaped_for_dbus() -> None:
    assert unit.escape_path("nannyd@w-1.service") == "nannyd_40w_2d1_2eservice"
    assert unit.escape_path("ü") == "_c3_bc"


PROPERTIES: unit.Properties = {
    "MainPID": 0,
    "ControlGroup": "",
    "Slice": "a.slice",
    "MemoryMax": 1 << 30,
    "MemoryHigh": (1 << 64) - 1,
    "LimitASSoft": 1 << 31,
    "LimitDATASoft": (1 << 64) - 1,
    "CPUQuotaPerSecUSec": 500_000,
    "PassEnvironment": [],
    "UnsetEnvironment": ["GONE"],
    "User": "root",
    "Group": "",
    "Environment": ["A=unit", "B=unit", "GONE=x"],
    "EnvironmentFiles": [],
    "ExecStart": [["/usr/bin/nannyd", ["/usr/bin/nannyd", "run", "w", "$MORE"], False, 0, 0, 0, 0, 0, 0, 0]],
}


def test_limits_of_a_unit_that_is_not_running_bind() -> None:
    machine = Machine((Bound("the host's MemTotal", 8 << 30),), 4.0)
    limited = unit.with_limits(machine, unit.Unit("nannyd@w.service", "--system", PROPERTIES))
    assert [(bound.where, bound.limit, bound.shared) for bound in limited.bounds[1:]] == [
        ("MemoryMax= of nannyd@w.service", 1 << 30, True),
        ("LimitAS= of nannyd@w.service", 1 << 31, False),
    ]
    assert limited.cpus == 0.5


@pytest.mark.parametrize(
    ("user", "system", "scope"),
    [
        ("", "", "--user"),
        ("", "configured", "--system"),
        ("configured", "configured", "--user"),
        ("configured", "failed", "--system"),
        ("configured failed", "configured failed", "--user"),
        ("configured failed", "running", "--system"),
        ("running", "configured running", "--user"),
    ],
)
def test_of_two_managers_the_one_that_has_the_instance_is_asked(
    tmp_path: Path, user: str, system: str, scope: str
) -> None:
    def made(scope: str, words: str) -> unit.Unit:
        directory = tmp_path / scope
        directory.mkdir()
        if "configured" in words:
            (directory / "w.toml").write_text("")
        argv = ["/usr/bin/nannyd", "run", "w", f"--config-dir={directory}"]
        state = {"MainPID": 0, "ActiveState": "failed" if "failed" in words else "inactive"}
        if "running" in words:
            state = {"MainPID": 1, "ActiveState": "active"}
        return unit.Unit("nannyd@w.service", scope, {**PROPERTIES, **state, "ExecStart": [["", argv]]})

    units = [made("--user", user), made("--system", system)]
    found = unit.chosen(units, "w")
    assert found is not None
    assert found.scope == scope


FAKE_BUSCTL = """\
#!/bin/sh
case "$*" in
*nannyd_40w_2eservice*Unit*) echo '{"type":"s","data":"loaded"}'; echo '{"type":"s","data":"inactive"}';;
*nannyd_40w_2eservice*Service*) cat "$(dirname "$0")/service";;
*Manager\\ Environment) echo '{"type":"as","data":["PATH=/bin","A=manager"]}';;
*) exit 1;;
esac
"""


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a program in the place of busctl, which knows of nannyd@w.service."""
    import json

    (tmp_path / "busctl").write_text(FAKE_BUSCTL)
    (tmp_path / "busctl").chmod(0o755)
    files = [
        [str(tmp_path / "env"), False],
        [str(tmp_path / "absent"), True],
        [str(tmp_path / "gone"), False],
    ]
    properties = {**PROPERTIES, "EnvironmentFiles": files}
    lines = [json.dumps({"type": "x", "data": properties[name]}) for name in unit._SERVICE_PROPERTIES]
    (tmp_path / "service").write_text("\n".join(lines))
    (tmp_path / "env").write_text("B='file 1'\nMORE=--worker.nice=3 --env X=y\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(unit, "SYSTEMD_IS_HERE", tmp_path)
    return tmp_path


def test_a_unit_that_is_not_running_is_read_from_its_properties_and_files(manager: Path) -> None:
    found = unit.in_unit(Request("w"))
    assert found is not None
    request, around = found
    assert around.environ == {
        "PATH": "/bin",
        "A": "unit",
        "B": "file 1",
        "MORE": "--worker.nice=3 --env X=y",
    }
    assert around.origins == {
        "PATH": "the service manager's environment",
        "A": "Environment= of nannyd@w.service",
        "B": f"{manager}/env",
        "MORE": f"{manager}/env",
    }
    assert request.options == [("--worker.nice", "3")]
    assert request.env == [("X", "y")]
    assert around.unit == "nannyd@w.service"
    assert around.notes == (
        f"nannyd@w.service: EnvironmentFile={manager}/gone is missing, the unit would not start",
    )


def test_a_variable_of_a_running_process_comes_from_where_it_has_that_value() -> None:
    layers = [unit.Layer("first", {"A": "1", "B": "1", "C": "1"}), unit.Layer("second", {"A": "2", "B": "2"})]
    assert unit.origins_of({"A": "2", "B": "1", "C": "3", "D": "4"}, layers) == {"A": "second", "B": "first"}


@pytest.mark.usefixtures("manager")
def test_an_instance_that_systemd_does_not_know_is_the_shells() -> None:
    assert unit.in_unit(Request("other")) is None
