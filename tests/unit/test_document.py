"""The reference configuration, the manuals and the completions say what the model says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bash_completion import completer

from nannyd.config import document
from nannyd.config.compile import LOG_LEVELS
from nannyd.config.layers import collect
from nannyd.config.settings import BUILT_IN, SECTIONS, Setting, every_setting
from nannyd.config.tree import merge
from nannyd.config.validate import validate
from nannyd.core.errors import ExitCode
from nannyd.supervisor import notices
from nannyd.supervisor.notices import Notice

if TYPE_CHECKING:
    from collections.abc import Mapping

TOP = Path(__file__).parents[2]
NOTICES = [notice for notice in vars(notices).values() if isinstance(notice, Notice)]
SETTINGS = [pytest.param(setting, id=setting.name) for setting in every_setting()]


# Values


@pytest.mark.parametrize("setting", SETTINGS)
def test_default_as_it_is_written_means_the_default(setting: Setting) -> None:
    text, kind = document.default(setting), document.kind(setting)
    if text is None:
        assert setting.default in (None, {})
        return
    value = tomllib.loads(f"x = {text}")["x"]
    if kind is None:
        assert value == BUILT_IN.get(setting.section, {}).get(setting.key, setting.default)
    else:
        assert kind.parse(value) == setting.default


def problems(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    (tmp_path / "nannyd.toml").write_text(text)
    found = collect("x", tmp_path, environ or {})
    _, wrong = validate(merge(found.layers), "x")
    return [str(problem) for problem in found.problems + wrong if "command" not in str(problem)]


def uncommented(setting: Setting) -> str:
    """Return the reference configuration with the lines of one setting brought to life."""
    text, count = re.subn(
        rf"^#\[{re.escape(setting.name)}\]\n#(?=[\w\"])" if setting.is_table else rf"^#(?={setting.key} = )",
        f"[{setting.name}]\n" if setting.is_table else "",
        _section(setting.section),
        flags=re.MULTILINE,
    )
    assert count == 1
    return text


def _section(name: str) -> str:
    text = document.configuration()
    start = text.index(f"\n[{name}]\n") + 1
    following = text.find("\n[", start)
    return text[start:] if following < 0 else text[start:following]


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_line_of_the_reference_can_be_brought_to_life(tmp_path: Path, setting: Setting) -> None:
    needs = {}
    if setting.section == "dask" and not setting.key.startswith("scheduler"):
        needs["NANNYD_DASK__SCHEDULER"] = "tcp://x:1"
    if setting.key == "contact-address":
        needs["NANNYD_DASK__LISTEN_ADDRESS"] = "tcp://:9000"
    assert problems(tmp_path, uncommented(setting), needs) == []


def test_reference_configuration_sets_nothing() -> None:
    assert tomllib.loads(document.configuration()) == {section: {} for section in SECTIONS}


def test_reference_configuration_has_lines_of_readable_length() -> None:
    assert max(map(len, document.configuration().splitlines())) <= document.WIDTH


@pytest.mark.parametrize("name", ["celery", "dask", "gunicorn", "python", "redis"])
def test_example_has_no_mistake(tmp_path: Path, name: str) -> None:
    assert problems(tmp_path, (TOP / f"packaging/examples/{name}.toml").read_text()) == []


def test_vendor_file_sets_nothing() -> None:
    assert tomllib.loads((TOP / "packaging/nannyd.vendor.toml").read_text()) == {}


# Manuals


def test_manual_of_the_settings_has_each_with_its_meaning_and_default() -> None:
    page = document.fill((TOP / "docs/man/nannyd.toml.5.in").read_text())
    for setting in every_setting():
        key = setting.key.replace("-", "\\-")
        assert f"\n.It Ic {key}\n" in page
    assert 'Default: \\f(CR"30s"\\fP' in page


def test_template_with_a_word_that_nobody_knows_is_refused() -> None:
    with pytest.raises(KeyError, match="SETTING"):
        document.fill("a\n@SETTING@\n")


@pytest.fixture(scope="module")
def manual() -> str:
    """Return nannyd(8) without what roff needs."""
    text = (TOP / "docs/man/nannyd.8").read_text()
    return text.replace("\\-", "-").replace(" Ns = Ns Ar", "=")


def test_manual_has_every_exit_status(manual: str) -> None:
    part = manual.partition(".Sh EXIT STATUS")[2].partition(".Sh")[0]
    assert [int(number) for number in re.findall(r"^\.It (\d+)$", part, re.MULTILINE)] == sorted(ExitCode)


def test_manual_has_every_event_of_the_log(manual: str) -> None:
    part = manual.partition(".It Li NANNYD_EVENT=")[2].partition(".It")[0]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*(?= [,.])", part)) == {notice.event for notice in NOTICES}


def test_manual_has_every_command_and_option(manual: str) -> None:
    for command in document.USER_COMMANDS:
        assert re.search(rf"^\.It Cm {command} Ar NAME", manual, re.MULTILINE)
    for option in ("config-dir", "env", "log-format", "log-level", "foreground", "json"):
        assert f".It Fl Fl {option}" in manual
    assert f"Cm {' | '.join(LOG_LEVELS)}" in manual


# Completions


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that completes a command line in bash, `bash("nannyd", "ru")`."""
    directory = tmp_path_factory.mktemp("bash")
    script = directory / "nannyd.bash"
    script.write_text(document.fill((TOP / "packaging/completions/nannyd.bash.in").read_text()))
    return completer(script, directory)


def test_bash_completes_commands_and_instances(bash: Any) -> None:
    assert bash("nannyd", "") == [*document.USER_COMMANDS, "--help", "--version"]
    assert {"web", "worker1"} <= set(bash("nannyd", "run", ""))
    assert "nannyd" not in bash("nannyd", "run", "")
    assert bash("nannyd", "reload", "wor") == ["worker1"]


def test_bash_completes_every_setting(bash: Any) -> None:
    offered = bash("nannyd", "run", "web", "--")
    assert {option.rstrip("=.") for option in offered} >= {setting.option for setting in every_setting()}
    assert "--nanny.environ." in offered
    assert bash("nannyd", "run", "web", "--memory.l") == ["--memory.limit="]
    assert "--json" in bash("nannyd", "plan", "web", "--")
    assert "--json" not in offered


def test_bash_completes_the_words_of_a_choice(bash: Any) -> None:
    assert bash("nannyd", "run", "web", "--memory.mode=") == ["auto", "cgroup", "poll"]
    assert bash("nannyd", "run", "web", "--memory.mode=po") == ["poll"]
    assert bash("nannyd", "run", "web", "--log-level", "w") == ["warning"]


def test_bash_leaves_the_command_of_the_worker_alone(bash: Any) -> None:
    assert bash("nannyd", "run", "web", "--", "--mem") == []


@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_other_completions_have_every_setting_and_command(shell: str) -> None:
    text = document.fill((TOP / f"packaging/completions/nannyd.{shell}.in").read_text())
    for word in [*document.USER_COMMANDS, *(setting.name for setting in every_setting())]:
        assert word in text
    assert not re.search(r"^@.*@$", text, re.MULTILINE)
