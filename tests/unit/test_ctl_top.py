"""What `nannyctl top` shows, and what of the journal is shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ctl_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.core.paths import Scope
from nannyd.ctl import journal, topview
from nannyd.ctl.render import Style, width_of
from nannyd.ctl.topview import Log, Mode, Sight, View, key_of

if TYPE_CHECKING:
    from nannyd.ctl.instances import Instance

STYLE = Style(colour=True, utf8=True, terminal=True, width=100)


def some() -> list[Instance]:
    def using(name: str, mib: int, limit: int, restarts: int, since: float) -> Instance:
        return samples.running(
            name,
            memory=samples.memory(workingSet=mib * samples.MIB, limit=limit * samples.MIB),
            restarts=restarts,
            worker=samples.worker(startedAt=samples.micro(since)),
        )

    return [
        using("a", 100, 1000, 5, 10),
        using("b", 50, 100, 0, 3000),
        samples.down("c", active_state="failed", result="exit-code", exec_status=78),
        using("d", 70, 200, 1, 500),
    ]


def view(**changes: Any) -> View:
    known = some()
    cpu = {key_of(known[0]): 0.02, key_of(known[3]): 1.5}
    return View(sight=Sight(known, cpu, samples.NOW), **changes)


def shown(of: View, width: int = 100, height: int = 12) -> list[str]:
    lines = topview.lines(of, Style(utf8=True, terminal=True, width=width), height)
    return ["".join(cell.text for cell in line) for line in lines]


@pytest.mark.parametrize(
    ("order", "names", "inverted"),
    [
        ("m", "adbc", "bdac"),
        ("s", "bdac", "adbc"),
        ("c", "dabc", "adbc"),
        ("u", "bdac", "adbc"),
        ("t", "adbc", "bdac"),
        ("n", "abcd", "dcba"),
    ],
)
def test_what_has_no_value_is_last_in_either_direction(order: str, names: str, inverted: str) -> None:
    for way, wanted in ((False, names), (True, inverted)):
        found = topview.arranged(view(order=order, inverted=way))
        assert "".join(one.name for one in found) == wanted


def test_every_order_has_its_key_in_the_help_and_none_has_another_meaning() -> None:
    keys = set(topview.ORDERS)
    help_text = "\n".join(shown(view(mode=Mode.HELP), height=30))
    assert all(f"  {key}  by " in help_text for key in keys)
    assert not keys & set("irklq?")


def test_lines_of_the_list() -> None:
    of = view(selected=("d", Scope.SYSTEM))
    seen = shown(of)
    assert seen[0].startswith("nannyctl top - ")
    assert seen[0].endswith(", 4 instances, 3 running, 1 needs a look, by memory")
    assert [line[2:3] for line in seen[3:7]] == ["a", "d", "b", "c"]
    assert seen[4].startswith("  d     running     834  150%")
    assert seen[6].startswith("× c     failed")
    assert len(seen) == 12
    selected = topview.lines(of, STYLE, 12)[4]
    assert {cell.colour.split(";")[0] for cell in selected} == {topview.SELECTED}
    assert sum(width_of(cell.text) for cell in selected) == 100


def test_selection_moves_and_stays_on_the_list_and_is_always_shown() -> None:
    of = view()
    for steps in (1, 1, 1, 1, -2, -9, 9, -1):
        topview.move(of, steps)
        chosen = topview.selection(of)
        assert chosen is not None
        for height in (5, 6, 9):
            assert any(line[2:3] == chosen.name for line in shown(of, height=height)), (steps, height)
    assert of.selected == ("b", Scope.SYSTEM)
    assert of.sight is not None
    of.sight.instances[:] = of.sight.instances[:1]
    chosen = topview.selection(of)
    assert chosen is not None
    assert chosen.name == "a"


@pytest.mark.parametrize("mode", Mode)
def test_no_screen_is_too_small(mode: Mode) -> None:
    of = view(mode=mode, question="Restart the worker of a?")
    for width in range(60):
        for height in range(12):
            seen = shown(of, width, height)
            assert len(seen) == (height if width else 0)
            assert all(width_of(line) <= width for line in seen)


def test_log_of_another_instance_is_not_shown() -> None:
    of = view(mode=Mode.LOG, selected=("a", Scope.SYSTEM))
    assert of.sight is not None
    for log_of, wanted in ((("b", Scope.SYSTEM), ""), (("a", Scope.SYSTEM), "x 29")):
        log = Log(log_of, [f"x {n}" for n in range(30)], "no journal is kept here")
        of.sight = Sight(of.sight.instances, {}, samples.NOW, log)
        assert shown(of)[-2] == wanted
    assert shown(of)[0] == "nannyctl top - nannyd's own last records of a: no journal is kept here"


def test_nothing_an_instance_says_is_obeyed_by_the_terminal() -> None:
    evil = samples.running("a", state="auto-restart", sentence="\x1b[2J\x9b\u202ehi\r\n", worker=None)
    of = View(sight=Sight([evil], {}, samples.NOW))
    assert all(line.isprintable() for line in shown(of))
    assert "\\u001b[2J\\u009b\\u202ehi" in shown(of, width=150)[3]


# The journal


def entry(**fields: Any) -> bytes:
    return json.dumps({"__REALTIME_TIMESTAMP": "1795413373604043", "PRIORITY": "4", **fields}).encode()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hello", "hello"),
        ([104, 105, 0, 255], "hi\x00\ufffd"),
        (None, "(a very long line)"),
        (["a", "b"], "(several lines)"),
    ],
)
def test_message_of_an_entry_whatever_form_it_has(message: Any, text: str) -> None:
    line = journal.parse(entry(MESSAGE=message, SYSLOG_IDENTIFIER="w", _PID="7"))
    assert line == journal.Line(1795413373.604043, 4, "w[7]", text)


def test_entry_is_shown_as_journalctl_shows_it_and_obeyed_by_no_terminal() -> None:
    line = journal.parse(entry(MESSAGE="one\n\x1b[2Jtwo", _COMM="\x9bsh", SYSLOG_PID="3"))
    assert line is not None
    first, second = journal.worded(line, Style(utf8=True))
    assert first.endswith(" \\u009bsh[3]: one")
    assert second.strip() == "\\u001b[2Jtwo"


@given(st.one_of(st.binary(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_what_is_no_entry_is_passed_over(text: bytes | str) -> None:
    assert journal.parse(text if isinstance(text, bytes) else text.encode()) is None
