"""What a worker's error becomes in one line."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.core.wire import ERROR_MAX, format_error, parse_error, summarize_error

if TYPE_CHECKING:
    from collections.abc import Callable


class Cancelled(Exception):  # noqa: N818 (the name says nothing: that is the point)
    """An error whose name does not end in Error."""


def _plain() -> None:
    raise ValueError("no shard 7")


def _many_lines() -> None:
    raise ValueError("no shard 7\nTypeError: is what somebody wrote\n\nand more")


def _bare_exception() -> None:
    raise Exception("no shard 7")


def _without_words() -> None:
    raise KeyboardInterrupt


def _chained() -> None:
    try:
        _plain()
    except ValueError as error:
        raise Exception("cannot start") from error


def _in_the_course_of_another() -> None:
    try:
        _plain()
    except ValueError:
        raise Cancelled("an error\nin three\nlines")  # noqa: B904 (that it came in the course of another is meant)


def _noted() -> None:
    error = RuntimeError("no shard 7")
    error.add_note("Hint: try shard 8")
    raise error


def _syntax() -> None:
    compile("f(", "user.py", "exec")


def _group() -> None:
    errors: list[Exception] = []
    for cause in (_chained, _many_lines):
        try:
            cause()
        except Exception as error:  # noqa: BLE001
            errors.append(error)
    raise ExceptionGroup("unhandled errors in a TaskGroup", errors)


def _group_of_what_was_not_raised() -> None:
    raise ExceptionGroup("two", [ValueError("a"), ExceptionGroup("in it", [Cancelled("b\nc")])])


@pytest.mark.parametrize(
    ("fails", "summary"),
    [
        (_plain, "ValueError: no shard 7"),
        (_many_lines, "ValueError: no shard 7"),
        (_bare_exception, "Exception: no shard 7"),
        (_without_words, "KeyboardInterrupt"),
        (_chained, "Exception: cannot start"),
        (_noted, "RuntimeError: no shard 7"),
        (_syntax, "SyntaxError: '(' was never closed"),
        (_group, "ValueError: no shard 7"),
    ],
)
def test_the_error_of_a_traceback_is_named(fails: Callable[[], None], summary: str) -> None:
    assert summarize_error(_traceback_of(fails), 300) == summary


def test_an_error_is_known_by_its_place_and_not_by_its_name() -> None:
    assert summarize_error(_traceback_of(_in_the_course_of_another), 300) == f"{__name__}.Cancelled: an error"
    assert summarize_error(_traceback_of(_group_of_what_was_not_raised), 300) == f"{__name__}.Cancelled: b"


def _traceback_of(fails: Callable[[], None]) -> str:
    try:
        fails()
    except BaseException:  # noqa: BLE001 - KeyboardInterrupt is one of them
        return traceback.format_exc()
    raise AssertionError("it did not fail")


def test_a_traceback_without_its_beginning_still_names_the_error() -> None:
    text = _traceback_of(_many_lines)
    assert summarize_error(text[60:], 300) == "ValueError: no shard 7"


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("", ""),
        (" \n\t\n", ""),
        ("cannot reach the scheduler", "cannot reach the scheduler"),
        ("cannot reach the scheduler\ngiving up after 3 attempts\n", "giving up after 3 attempts"),
        ("OSError: [Errno 5] Input/output error\nin shard 7", "OSError: [Errno 5] Input/output error"),
        ("12 of 13 lost", "12 of 13 lost"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("a\tb\rc", r"a\tb\rc"),
        ("\x1b[31mred\x1b[0m\x00\x7f", r"\x1b[31mred\x1b[0m\x00\x7f"),
        ("line\u2028separator, \u202eright to left", r"line\u2028separator, \u202eright to left"),
        ("half of it: \udc80", r"half of it: \udc80"),
        ("Fehler: Größe 7 €", "Fehler: Größe 7 €"),
    ],
)
def test_what_is_no_traceback_is_told_in_one_line(text: str, summary: str) -> None:
    assert summarize_error(text, 300) == summary


def test_a_summary_is_cut() -> None:
    assert summarize_error("ValueError: " + "x" * 1000, 20) == "ValueError: xxxxxxxx"


@given(st.text(), st.integers(0, 400))
def test_a_summary_is_always_fit_for_a_line_of_a_log(text: str, longest: int) -> None:
    summary = summarize_error(text, longest)
    assert len(summary) <= longest
    assert summary.isprintable()


@given(st.text())
def test_an_error_arrives_as_it_was(text: str) -> None:
    value = format_error(text)
    assert "\n" not in value
    assert parse_error(value) == text[-ERROR_MAX:]
