"""What `plan` and `explain` show, and above all what they do not."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from nannyd.config import explain
from nannyd.config.compile import Compiled, Request, Source, Surroundings, compile_plan
from nannyd.config.machine import Machine
from nannyd.config.wording import show
from nannyd.core.memory import Bound

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = Machine((Bound("memory.max of /a.slice", 4 << 30),), 4.0)

SECRETIVE = """\
[worker]
class = "m:C"
args = ["--password=hush1", { token = "hush2" }, "redis://u:hush3@h"]
preload = ["p"]
preload-argv = ["--api-key", "hush4"]
[worker.kwargs]
db_password = "hush5"
options = { secret = "hush6", list = [{ passwd = "hush7" }] }
name = { credential = "innocent" }
[nanny.environ]
MY_TOKEN = "hush8"
URL = "amqp://u:hush9@h/"
PLAIN = { credential = "innocent" }
[nanny.env]
X_PASSWORD = "hushA"
"""


def compiled(directory: Path, toml: str, **around: Any) -> Compiled:
    """Compile instance `w` from *toml*, with a secret in environment and credentials."""
    (directory / "w.toml").write_text(toml)
    (directory / "innocent").write_text("hushB")
    environ = {"CREDENTIALS_DIRECTORY": str(directory), "GITHUB_TOKEN": "hushC", "HOME": "/root"}
    return compile_plan(Request("w", directory), Surroundings(environ, MACHINE, **around))


def plan_json(result: Compiled) -> str:
    return explain.dump(explain.plan_document(result))


def explain_json(result: Compiled) -> str:
    return explain.dump(explain.explain_document(result))


@pytest.mark.parametrize("render", [explain.plan_text, plan_json, explain.explain_text, explain_json])
def test_no_secret_is_shown_anywhere(render: Any, tmp_path: Path) -> None:
    result = compiled(tmp_path, SECRETIVE)
    assert result.plan.environ["GITHUB_TOKEN"] == "hushC"
    assert result.plan.late_environ["PLAIN"] == "hushB"
    assert "hush" not in render(result)
    assert "********" in render(result)


def test_a_secret_argument_of_a_command_is_masked(tmp_path: Path) -> None:
    result = compiled(tmp_path, '[worker]\ncommand = ["w", "--token", "hush1", "--password=hush2", "-x"]\n')
    assert 'command = ["w", "--token", "********", "--password=********", "-x"]' in explain.plan_text(result)
    assert "hush" not in explain_json(result)


def test_the_plan_knows_the_names_of_all_secrets(tmp_path: Path) -> None:
    secrets = compiled(tmp_path, SECRETIVE).plan.secrets
    assert secrets == ["GITHUB_TOKEN", "MY_TOKEN", "PLAIN", "X_PASSWORD", "worker.kwargs.name"]


def test_the_plan_is_toml_with_exact_bytes_that_nannyd_reads_again(tmp_path: Path) -> None:
    toml = (
        '[worker]\ncommand = ["true"]\nnice = 5\n'
        '[memory]\nlimit = "1.5G"\nswap = "1M"\n[restart]\ndelay = 0.35\n'
    )
    text = explain.plan_text(compiled(tmp_path, toml))
    assert 'limit = "1610612736B"  # 1.5 GiB, memory.limit of' in text
    assert "terminate = 0.95  # 1530082099 bytes, 1.4 GiB" in text
    assert tomllib.loads(text)["memory"]["swap"] == "1048576B"
    again = compiled(tmp_path, text)
    assert again.plan.memory.thresholds == compiled(tmp_path, toml).plan.memory.thresholds
    assert explain.plan_text(again).replace(f"memory.limit of {tmp_path}", "") == text.replace(
        f"memory.limit of {tmp_path}", ""
    )


def test_the_plans_json_has_the_documented_keys(tmp_path: Path) -> None:
    plan = explain.plan_document(compiled(tmp_path, SECRETIVE))
    assert list(plan) == [
        "name", "source", "unit", "notes", "settings", "memory", "environment", "late-environment", "log",
    ]  # fmt: skip
    assert plan["memory"] == {
        "limit": (4 << 30) - (32 << 20),
        "warn": 3409130291,
        "terminate": 4048342220,
        "max": (4 << 30) - (32 << 20),
        "swap": 0,
        "where": "auto: memory.max of /a.slice",
    }
    assert plan["settings"]["worker"]["stop-timeout"] == 30
    assert plan["late-environment"] == {
        "MY_TOKEN": "********",
        "PLAIN": "********",
        "URL": "amqp://u:********@h/",
    }


def test_numbers_that_json_does_not_have_are_written_as_text(tmp_path: Path) -> None:
    toml = '[worker]\nclass = "m:C"\n[worker.kwargs]\na = nan\nb = inf\n'

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    shown = json.loads(plan_json(compiled(tmp_path, toml)), parse_constant=refuse)
    assert shown["settings"]["worker"]["kwargs"] == {"a": "nan", "b": "inf"}


def test_every_value_and_variable_is_explained_with_its_origin(tmp_path: Path) -> None:
    explained = explain.explain_document(compiled(tmp_path, SECRETIVE))
    settings = {entry["name"]: entry for entry in explained["settings"]}
    environment = {entry["name"]: entry for entry in explained["environment"]}
    file = f"{tmp_path}/w.toml"
    assert settings["worker.class"] == {
        "name": "worker.class",
        "value": "m:C",
        "origin": file,
        "overrides": [],
    }
    assert settings["restart.mode"]["origin"] == "default"
    assert settings["nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"]["origin"] == "default"
    assert environment["HOME"] == {
        "name": "HOME", "value": "/root", "origin": "inherited", "when": "exec", "secret": False,
    }  # fmt: skip
    assert environment["PLAIN"]["origin"] == f"{file}, credential innocent"
    assert (environment["MY_TOKEN"]["when"], environment["X_PASSWORD"]["when"]) == ("import", "exec")
    assert environment["NOTIFY_SOCKET"] == {
        "name": "NOTIFY_SOCKET", "value": None, "origin": "nannyd", "when": "start", "secret": False,
    }  # fmt: skip


def test_what_is_set_at_start_is_said_to_be(tmp_path: Path) -> None:
    text = explain.explain_text(compiled(tmp_path, '[worker]\ncommand = ["true"]\nwatchdog = 5\n'))
    for name in ("NOTIFY_SOCKET", "NANNYD_INSTANCE", "NANNYD_LOCAL_DIRECTORY", "WATCHDOG_USEC"):
        assert f"{name}=(set at start)" in text
    assert "JOURNAL_STREAM" not in text


def test_what_a_unit_does_not_tell_is_named(tmp_path: Path) -> None:
    result = compiled(
        tmp_path,
        '[worker]\ncommand = ["true"]\n',
        source=Source.UNIT,
        unit="nannyd@w.service",
        notes=("nannyd@w.service: EnvironmentFile=/x cannot be read",),
    )
    assert explain.explain_text(result).splitlines()[:3] == [
        "# w, as nannyd@w.service would be started",
        "# note: nannyd@w.service: EnvironmentFile=/x cannot be read",
        f"# note: {explain._NOT_KNOWN}",
    ]


def test_a_credential_of_a_unit_that_cannot_be_read_is_a_note_and_no_problem(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('worker.command = ["true"]\nnanny.env.A = { credential = "a" }\n')
    around = Surroundings({}, MACHINE, Source.UNIT, "nannyd@w.service")
    assert compile_plan(Request("w", tmp_path), around).notes == [
        "credential a of nannyd@w.service could not be read; its value is not checked"
    ]


@pytest.mark.parametrize(
    ("value", "path", "shown"),
    [
        ("lots", ("memory", "limit"), "'lots'"),
        ("hush", ("nanny", "env", "API_KEY"), "********"),
        (["x", "--password=hush"], (), '["x", "--password=********"]'),
        ({"secret": "hush", "a": 1}, (), '{"secret": "********", "a": 1}'),
        (True, (), "true"),
        ("x" * 100, (), "'" + "x" * 78 + "…"),
        ("PASSWORD=hush", (), "'PASSWORD=********'"),
    ],
)
def test_messages_show_values_but_no_secrets(value: object, path: tuple[str, ...], shown: str) -> None:
    assert show(value, path) == shown
