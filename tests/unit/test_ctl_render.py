"""What `nannyctl` writes for people."""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.ctl import render
from nannyd.ctl.render import Style

ANY_TEXT = st.text(st.characters(exclude_categories=()))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


@given(ANY_TEXT)
def test_no_text_of_others_moves_the_cursor_or_starts_a_line(text: str) -> None:
    assert render.clean(text).isprintable()
    assert all(line.isprintable() for line in render.clean_lines(text))


def test_what_is_printable_stays_as_it_is() -> None:
    assert render.clean("größer – 大") == "größer – 大"
    assert render.clean("a\x1b[31mb\x07\x9b\n") == "a\\u001b[31mb\\u0007\\u009b\\n"


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner)))
def test_json_has_no_control_characters_and_means_the_same(value: Any) -> None:
    text = render.dump_json(value)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert json.loads(text) == json.loads(json.dumps(value))


@given(ANY_TEXT.map(render.clean), st.integers(0, 60), st.booleans())
def test_no_line_is_wider_than_it_may_be(text: str, width: int, utf8: bool) -> None:  # noqa: FBT001
    assert render.width_of(render.ellipsize(text, width, utf8=utf8)) <= width


@given(st.lists(st.tuples(st.text("abc 大", max_size=9), st.booleans())), st.integers(4, 30), st.booleans())
def test_a_coloured_line_is_shortened_and_its_colours_end(
    parts: list[tuple[str, bool]],
    width: int,
    utf8: bool,  # noqa: FBT001
) -> None:
    style = Style(colour=True)
    line = "".join(style.paint(text, render.RED) if red else text for text, red in parts)
    short = render.shorten(line, width, utf8=utf8)
    assert render.width_of(re.sub("\x1b\\[[0-9;]*m", "", short)) <= width
    assert short.count("\x1b[0m") == short.count("\x1b[") / 2
    if render.width_of(re.sub("\x1b\\[[0-9;]*m", "", line)) <= width:
        assert short == line


@pytest.mark.parametrize(
    ("text", "width", "utf8", "short"),
    [
        ("memory", 6, True, "memory"),
        ("memory", 5, True, "memo…"),
        ("memory", 5, False, "me..."),
        ("大大大", 5, True, "大大…"),
        ("大大大", 4, True, "大…"),
    ],
)
def test_the_end_is_left_out(text: str, width: int, utf8: bool, short: str) -> None:  # noqa: FBT001
    assert render.ellipsize(text, width, utf8=utf8) == short


@given(st.floats(allow_nan=False), st.integers(3, 40), st.booleans())
def test_a_bar_has_its_width(share: float, width: int, utf8: bool) -> None:  # noqa: FBT001
    assert len(render.bar(share, width, utf8=utf8)) == width


def test_bars_show_eighths() -> None:
    assert render.bar(0.5, 4, utf8=True) == "██░░"
    assert render.bar(0.4, 4, utf8=True) == "█▋░░"
    assert render.bar(0.5, 6, utf8=False) == "[##--]"
    assert render.bar(7, 4, utf8=True) == "████"


def test_a_sparkline_has_a_column_for_each_value() -> None:
    assert render.sparkline([0, 50, None, 100, 200], 100, utf8=True) == "▁▅ ██"
    assert render.sparkline([0, 50, None, 100, 200], 100, utf8=False) == "_= ##"
    assert render.sparkline([0], 0, utf8=True) == " "


@pytest.mark.parametrize(
    ("used", "limit", "text"),
    [
        (100 << 20, 400 << 20, "100.0/400.0 MiB"),
        (100 << 20, 4 << 30, "100.0 MiB/4.0 GiB"),
        (100 << 20, None, "100.0 MiB"),
        (None, 4 << 30, "-/4.0 GiB"),
        (None, None, "-"),
    ],
)
def test_memory_is_told_with_its_limit(used: int | None, limit: int | None, text: str) -> None:
    assert render.used_of(used, limit) == text


@given(st.floats(allow_nan=False) | st.integers(-(1 << 63), 1 << 63))
def test_any_instant_has_some_text(at: float) -> None:
    assert render.instant(at).isprintable()
    assert render.log_instant(at).isprintable()


def test_instants_are_told_as_systemctl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert render.since(1_763_874_917.0, 1_763_874_924.5) == "Sun 2025-11-23 05:15:17 UTC; 7s ago"
    assert render.since(1_763_874_917.0, 1_763_874_916.5) == "Sun 2025-11-23 05:15:17 UTC; 0s ago"
    assert render.since(1_763_874_917.0, 1_763_874_912.0) == "Sun 2025-11-23 05:15:17 UTC; 5s left"
    assert render.log_instant(1_763_874_917.0) == "Nov 23 05:15:17"


@pytest.mark.parametrize(
    ("environ", "colour"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "SYSTEMD_COLORS": "0"}, False),
        ({"TERM": "dumb", "SYSTEMD_COLORS": "1"}, True),
        ({"NO_COLOR": "1", "SYSTEMD_COLORS": "256"}, True),
    ],
)
def test_colours_follow_the_environment_on_a_terminal(environ: dict[str, str], colour: bool) -> None:  # noqa: FBT001
    assert Style.of_terminal(Terminal(), environ).colour is colour


def test_no_terminal_no_colours_and_no_width() -> None:
    assert Style.of_terminal(io.StringIO(), {"TERM": "xterm"}) == Style(utf8=True)
    assert Style.of_terminal(io.StringIO(), {"TERM": "xterm", "SYSTEMD_COLORS": "yes"}).colour


@pytest.mark.parametrize(
    ("environ", "utf8"),
    [
        ({}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "de_DE@euro"}, False),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8", "LC_ALL": ""}, True),
    ],
)
def test_bars_and_dots_follow_the_locale(environ: dict[str, str], utf8: bool) -> None:  # noqa: FBT001
    assert Style.of_terminal(io.StringIO(), environ).utf8 is utf8
