"""The manual of nannyctl and its completions say what the command does."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctl_samples as samples
import pytest
from bash_completion import completer

from nannyd.core.paths import in_tmp
from nannyd.ctl import listing, status
from nannyd.ctl.main import VERBS, _parser, _with_boot
from nannyd.ctl.render import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = Path(__file__).parents[2]
COMPLETIONS = TOP / "packaging/completions"
OPTIONS = [action.option_strings for action in _parser()._actions if action.option_strings]


def spelled(option: str) -> str:
    """Return an option of a verb as it is written on the command line."""
    return f"--{option.replace('_', '-')}"


@pytest.fixture(scope="module")
def manual() -> str:
    """Return nannyctl(1) without what roff needs."""
    return (TOP / "docs/man/nannyctl.1").read_text().replace("\\-", "-")


def test_manual_has_every_verb_and_option(manual: str) -> None:
    for verb in VERBS:
        assert re.search(rf"^\.It Cm {verb} (Op )?Ar NAME", manual, re.MULTILINE)
    part = manual.partition(".Ss Options")[2].partition(".Sh")[0]
    items = " ".join(re.findall(r"^\.It (Fl .*)$", part, re.MULTILINE))
    for strings in OPTIONS:
        for string in strings:
            assert f"Fl {string.replace('--', 'Fl ').replace('-', '', string[1] != '-')} " in f"{items} "


def test_manual_has_every_member_of_the_json(manual: str) -> None:
    part = manual.partition(".Sh JSON")[2].partition(".Sh")[0]
    words = set(re.findall(r"[A-Za-z]+", part))
    assert set(listing.describe(samples.running())) <= words
    assert set(status._described(status.Report(samples.running()))) <= words


def test_manual_has_every_level(manual: str) -> None:
    assert f"Cm {' , '.join(LEVELS)} ," in manual


@pytest.mark.parametrize("name", ["_nannyctl", "nannyctl.fish", "nannyctl.bash"])
def test_completions_have_every_verb_with_its_options(name: str) -> None:
    text = (COMPLETIONS / name).read_text().replace("-l ", "--")
    for verb, known in VERBS.items():
        assert re.search(rf"\b{verb}\b", text)
        assert name == "nannyctl.bash" or known.help in text
    for strings in OPTIONS:
        assert strings[-1] in text
    assert " ".join(LEVELS) in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("w -b", "w --boot="),
        ("-b w", "--boot= w"),
        ("-b -1 w", "--boot=-1 w"),
        ("-b-1 w", "--boot=-1 w"),
        ("--boot 3 w", "--boot=3 w"),
        ("--boot=-1 w", "--boot=-1 w"),
        ("w -b all -f", "w --boot=all -f"),
        (f"-b {'0a' * 16}+2", f"--boot={'0a' * 16}+2"),
        ("-b -f w", "--boot= -f w"),
    ],
)
def test_the_word_after_boot_is_its_value_where_it_can_be_one(words: str, meant: str) -> None:
    assert _with_boot(words.split()) == meant.split()


# bash


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    return completer(COMPLETIONS / "nannyctl.bash", tmp_path_factory.mktemp("bash"))


def test_bash_completes_verbs_and_instances(bash: Any) -> None:
    assert bash("nannyctl", "") == sorted(VERBS)
    assert bash("nannyctl", "--json", "sta") == ["start", "status"]
    assert {"web", "worker1"} <= set(bash("nannyctl", "status", ""))
    assert "nannyd" not in bash("nannyctl", "status", "")
    assert bash("nannyctl", "restart", "web", "wor") == ["worker1"]


def test_bash_completes_the_instances_of_other_users_for_root(bash: Any) -> None:
    uid = pwd.getpwnam("nobody").pw_uid
    base = in_tmp(uid)
    (base / "hers").mkdir(parents=True)
    try:
        os.chown(base, uid, -1)
        assert bash("nannyctl", "status", "nobody/") == ["nobody/hers"]
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("verb", VERBS)
def test_bash_completes_the_options_of_each_verb_and_no_others(bash: Any, verb: str) -> None:
    common = {"--all", "--json", "--system", "--user", "--help", "--version"}
    offered = set(bash("nannyctl", verb, "-"))
    assert offered == common | {spelled(option) for option in VERBS[verb].options}


def test_bash_completes_levels(bash: Any) -> None:
    assert bash("nannyctl", "logs", "-p", "e") == ["emerg", "err"]
    assert bash("nannyctl", "logs", "--priority=warn") == ["warning"]
    assert bash("nannyctl", "logs", "--priority=") == sorted(LEVELS)
    assert bash("nannyctl", "log-level", "we") == ["web"]
    assert bash("nannyctl", "log-level", "web", "d") == ["debug"]
    assert bash("nannyctl", "restart", "--reason", "w") == []
