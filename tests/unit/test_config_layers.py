"""Which layer wins, and what is remembered of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nannyd.config import layers
from nannyd.config.compile import Compiled, Request, Surroundings, compile_plan
from nannyd.config.machine import Machine
from nannyd.config.settings import Settings, every_setting
from nannyd.config.tree import Layer, Leaf, Origin, find, merge, plain
from nannyd.core.environ import EXPORTED
from nannyd.core.memory import Bound
from nannyd.core.plan import LogFormat, Ready, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MACHINE = Machine((Bound("the host's MemTotal", 8 << 30),), 4.0)
COMMAND = {"worker": {"command": ["true"]}}


def compiled(directory: Path, environ: Mapping[str, str] | None = None, **request: Any) -> Compiled:
    """Compile instance `w` of *directory*."""
    return compile_plan(Request("w", directory, **request), Surroundings(environ or {}, MACHINE))


def write(directory: Path, **files: str) -> None:
    """Write files; `w_10` is w.toml.d/10.toml."""
    for name, text in files.items():
        stem, _, drop_in = name.partition("_")
        path = directory / (f"{stem}.toml.d/{drop_in}.toml" if drop_in else f"{stem}.toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def origin_of(result: Compiled, *path: str) -> tuple[str, list[str]]:
    """Return the origin at *path* and what it overrides."""
    leaf = find(result.tree, path)
    assert leaf is not None
    return str(leaf.origin), [str(origin) for origin in leaf.overridden]


def test_layers_win_in_the_documented_order_and_each_is_remembered(tmp_path: Path) -> None:
    nice = "worker.nice = "
    write(tmp_path, nannyd=f"{nice}1", nannyd_b=f"{nice}3", nannyd_a=f"{nice}2", w=f"{nice}4", w_x=f"{nice}5")
    result = compiled(
        tmp_path, {"NANNYD_WORKER__NICE": "6"}, options=[("--worker.nice", "7")], command=["true"]
    )
    assert result.plan.worker.nice == 7
    assert origin_of(result, "worker", "nice") == (
        "--worker.nice",
        [
            f"{tmp_path}/nannyd.toml",
            f"{tmp_path}/nannyd.toml.d/a.toml",
            f"{tmp_path}/nannyd.toml.d/b.toml",
            f"{tmp_path}/w.toml",
            f"{tmp_path}/w.toml.d/x.toml",
            "NANNYD_WORKER__NICE",
        ],
    )


def test_another_instances_files_and_hidden_or_other_files_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, w='worker.command = ["true"]', v="worker.nice = 1")
    (tmp_path / "w.toml.d").mkdir()
    (tmp_path / "w.toml.d" / ".hidden.toml").write_text("broken")
    (tmp_path / "w.toml.d" / "old.toml.dpkg-old").write_text("broken")
    assert compiled(tmp_path).plan.worker.nice is None


def test_tables_merge_by_key_and_lists_replace(tmp_path: Path) -> None:
    write(
        tmp_path,
        nannyd='[nanny]\nunset = ["A", "B"]\nenviron = { X = "1", Y = "1" }\n',
        w='worker.command = ["true"]\n[nanny]\nunset = ["C"]\nenviron = { Y = "2", Z = 3 }\n',
    )
    nanny = compiled(tmp_path).settings.nanny
    assert nanny.unset == ["C"]
    assert nanny.environ == {"X": "1", "Y": "2", "Z": "3"}


def test_keyword_arguments_merge_however_deep_but_a_credential_is_one_value(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    write(
        tmp_path,
        nannyd='worker.kwargs = { a = { b = 1, c = 2 }, key = { credential = "other" } }',
        w='worker = { class = "m:C", kwargs = { a = { c = 3 }, key = { credential = "secret" } } }',
    )
    result = compiled(tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert result.plan.worker.python is not None
    assert result.plan.worker.python.kwargs == {"a": {"b": 1, "c": 3}, "key": "hush"}
    assert "worker.kwargs.key" in result.plan.secrets


def test_false_drops_an_entry_of_a_lower_layer_also_the_built_in_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        nannyd='nanny.environ.FOO = "x"',
        w='worker.command = ["true"]\nnanny.environ.FOO = false\n'
        "nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_ = false",
    )
    environ = compiled(tmp_path).plan.environ
    assert "FOO" not in environ
    assert "MALLOC_TRIM_THRESHOLD_" not in environ
    assert compiled(tmp_path, {"FOO": "inherited"}).plan.environ["FOO"] == "inherited"


def test_a_higher_layers_command_replaces_a_class_with_its_arguments(tmp_path: Path) -> None:
    write(tmp_path, w='worker = { class = "m:C", kwargs = { a = 1 }, preload = ["x"], nice = 3 }')
    result = compiled(tmp_path, command=["sleep", "1"])
    assert result.plan.worker.python is None
    assert result.plan.worker.nice == 3
    assert origin_of(result, "worker", "command") == ("--", [f"{tmp_path}/w.toml"])


def test_a_higher_layers_class_replaces_a_command(tmp_path: Path) -> None:
    write(tmp_path, nannyd='worker.command = ["true"]', w='worker.class = "m:C"')
    result = compiled(tmp_path)
    assert result.plan.worker.python is not None
    assert result.plan.worker.ready is Ready.NOTIFY
    assert result.settings.worker.command is None


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("NANNYD_MEMORY__SWAP", "1G", "memory.swap", 1 << 30),
        ("nannyd_memory__swap", "1G", "memory.swap", 1 << 30),
        ("NANNYD_WORKER__OOM_SCORE_ADJ", "500", "worker.oom_score_adj", 500),
        ("NANNYD_WORKER__COMMAND", '["a", "b"]', "worker.command", ["a", "b"]),
        ("NANNYD_NANNY__UNSET", '["A"]', "nanny.unset", ["A"]),
        ("NANNYD_NANNY__ENVIRON__Foo", "1.50", "nanny.environ", {"Foo": "1.50"}),
        ("NANNYD_NANNY__ENVIRON__FOO__BAR", "true", "nanny.environ", {"FOO__BAR": "true"}),
        ("NANNYD_NANNY__ENVIRON___FOO", '{"a": 1}', "nanny.environ", {"_FOO": '{"a": 1}'}),
        ("NANNYD_NANNY__ENV", '{"A": "b", "C": 1}', "nanny.env", {"A": "b", "C": "1"}),
        ("NANNYD_RESTART", '{"mode": "no", "growth": 3}', "restart.growth", 3.0),
        ("NANNYD_WORKER__UMASK", "27", "worker.umask", 0o27),
        ("NANNYD_MEMORY__WARN", "false", "memory.warn", None),
        ("NANNYD_MEMORY__WARN", "75%", "memory.warn", 0.75),
        ("NANNYD_WORKER__STOP_SIGNAL", "rtmin+3", "worker.stop_signal", 37),
        ("NANNYD_WORKER__WATCHDOG", "none", "worker.watchdog", None),
    ],
)
def test_a_variable_sets_what_its_name_says(
    variable: str, value: str, path: str, expected: object, tmp_path: Path
) -> None:
    command = None if path == "worker.command" else ["true"]
    result: Any = compiled(tmp_path, {variable: value}, command=command).settings
    for attribute in path.split("."):
        result = getattr(result, attribute)
    assert result == expected


def test_keyword_arguments_of_variables_and_options_are_json_where_they_are(tmp_path: Path) -> None:
    write(tmp_path, w='worker.class = "m:C"')
    environ = {"NANNYD_WORKER__KWARGS__PORT": "8786", "NANNYD_WORKER__KWARGS__A__B": "[1]"}
    options = [("--worker.kwargs.host", "localhost"), ("--worker.kwargs.A.x", "null")]
    settings = compiled(tmp_path, environ, options=options).settings
    assert settings.worker.kwargs == {"port": 8786, "a": {"b": [1]}, "host": "localhost", "A": {"x": None}}


def test_the_last_of_an_option_that_is_repeated_wins(tmp_path: Path) -> None:
    options = [("--worker.nice", "1"), ("--worker.nice", "2")]
    assert compiled(tmp_path, options=options, command=["true"]).plan.worker.nice == 2


def test_variables_that_are_no_settings_are_let_be(tmp_path: Path) -> None:
    environ = {**dict.fromkeys(EXPORTED, "x"), "NANNYD_LOG_FORMAT": "json", "NANNYD_LOG_LEVEL": "debug"}
    plan = compiled(tmp_path, environ, command=["true"]).plan
    assert (plan.log_format, plan.log_level) == (LogFormat.JSON, "debug")
    assert not [name for name in plan.environ if name.startswith("NANNYD")]
    assert compiled(tmp_path, environ, command=["true"], log_level="error").plan.log_level == "error"


def test_every_setting_has_its_own_variable_option_and_description() -> None:
    settings = every_setting()
    assert len({setting.variable for setting in settings}) == len(settings)
    for setting in settings:
        assert layers._variable_path(setting.variable) == (setting.section, setting.key)
        assert layers._option_path(setting.option) == (setting.section, setting.key)
        assert setting.description.endswith((".", ". "))


def test_the_json_schema_describes_every_setting() -> None:
    definitions = Settings.model_json_schema(by_alias=True)["$defs"]
    described = {
        f"{name.lower()}.{key}"
        for name, section in definitions.items()
        for key, value in section.get("properties", {}).items()
        if value.get("description")
    }
    assert described == {setting.name for setting in every_setting()}


def test_defaults_are_those_of_the_issue(tmp_path: Path) -> None:
    plan = compiled(tmp_path, command=["true"]).plan
    assert plan.worker.stop_timeout == 30
    assert plan.worker.start_timeout is None
    assert plan.worker.stop_signal == 15
    assert plan.worker.ready is Ready.EXEC
    assert plan.memory.thresholds.limit == (8 << 30) - (32 << 20)
    assert plan.memory.swap == 0
    assert plan.environ == {"MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONHASHSEED": "6640"}


@pytest.mark.parametrize(
    ("limit", "threads", "expected", "where"),
    [
        ("auto", None, (8 << 30) - (32 << 20), "auto: the host's MemTotal"),
        ("auto", 1, (2 << 30) - (32 << 20), "auto: the host's MemTotal, for 1 threads of 4 CPUs"),
        ("0.5", 1, 4 << 30, "0.5 of the host's MemTotal, --memory.limit"),
        ("50%", None, 4 << 30, "0.5 of the host's MemTotal, --memory.limit"),
        ("1.0", None, 8 << 30, "1 of the host's MemTotal, --memory.limit"),
        ("2GiB", None, 2 << 30, "--memory.limit"),
        ("none", None, None, "none, --memory.limit"),
        ("0", None, None, "none, --memory.limit"),
    ],
)
def test_the_limit_becomes_bytes_and_says_where_it_is_from(
    limit: str, threads: int | None, expected: int | None, where: str, tmp_path: Path
) -> None:
    options = [("--memory.limit", limit), *([("--worker.threads", str(threads))] if threads else [])]
    memory = compiled(tmp_path, options=options, command=["true"]).plan.memory
    assert (memory.thresholds.limit, memory.where) == (expected, where)
    assert memory.thresholds.terminate == (None if expected is None else int(expected * 0.95))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [('["--a", "b"]', [["--a", "b"], ["--a", "b"]]), ('[["1"], []]', [["1"], []]), ("[]", [[], []])],
)
def test_preload_arguments_are_for_every_preload_or_for_each(
    argv: str, expected: list[list[str]], tmp_path: Path
) -> None:
    write(tmp_path, w=f'[worker]\nclass = "m:C"\npreload = ["x", "y"]\npreload-argv = {argv}\n')
    python = compiled(tmp_path).plan.worker.python
    assert python is not None
    assert python.preload_argv == expected


def test_a_plan_survives_its_way_through_json(tmp_path: Path) -> None:
    write(tmp_path, w='[worker]\nclass = "m:C"\nargs = [1, "x", { a = [] }]\n[nanny]\nenviron.A = "ü"\n')
    plan = compiled(tmp_path, {"B": "\udcff"}).plan
    assert from_json(to_json(plan)) == plan


_KEYS = st.sampled_from(["A", "B", "C"])
_ENTRIES = st.dictionaries(_KEYS, st.one_of(st.text(max_size=3), st.just(value=False)), max_size=3)


@settings(deadline=None)
@given(st.lists(_ENTRIES, max_size=5))
def test_the_highest_layer_that_speaks_of_an_entry_has_the_say(tables: list[dict[str, Any]]) -> None:
    stack = [Layer(Origin(f"/{i}"), {"nanny": {"environ": table}}) for i, table in enumerate(tables)]
    tree = merge(stack)
    last = {key: value for table in tables for key, value in table.items()}
    expected = {key: value for key, value in last.items() if value is not False}
    assert plain(tree).get("nanny", {}).get("environ", {}) == expected
    for key in expected:
        leaf = find(tree, ("nanny", "environ", key))
        speakers = [f"/{i}" for i, table in enumerate(tables) if key in table]
        assert isinstance(leaf, Leaf)
        assert [*map(str, leaf.overridden), str(leaf.origin)] == speakers


def test_merging_leaves_the_layers_as_they_were() -> None:
    values: dict[str, Any] = {"nanny": {"environ": {"A": False}}, "worker": {"kwargs": {"x": {"y": 1}}}}
    before = repr(values)
    merge([Layer(Origin("/a"), COMMAND), Layer(Origin("/b"), values)])
    assert repr(values) == before
