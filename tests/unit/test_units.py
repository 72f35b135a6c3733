"""Sizes, durations and names as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nannyd.core.units import format_duration, format_size, name_problem, parse_duration, parse_size

BINARY = {"K": 10, "M": 20, "G": 30, "T": 40}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("1.5 GB", 1_500_000_000),
        ("1kB", 1000),
        ("1K", 1024),
        ("4096B", 4096),
        ("2T", 2 << 40),
        ("0", 0),
        (" 1M ", 1 << 20),
    ],
)
def test_a_size_is_binary_without_b_and_with_ib_and_decimal_with_b(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["1", "4096", "", "lots", "-1M", "1iB", "1e3M", "M", "1 G B", "0x10M", "1,5G"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text) or "^$"):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(0, 1 << 62))
def test_bytes_survive_exactly(size: int) -> None:
    assert parse_size(f"{size}B") == size


@settings(deadline=None)
@given(st.integers(1, 1 << 20), st.sampled_from("KMGT"), st.sampled_from(["", "iB", "ib", " iB"]))
def test_binary_units_are_powers_of_1024(count: int, unit: str, suffix: str) -> None:
    assert parse_size(f"{count}{unit}{suffix}".replace(" ", "")) == count << BINARY[unit]


@settings(deadline=None)
@given(st.integers(1, 1 << 20), st.sampled_from("KMGT"))
def test_decimal_units_are_powers_of_1000(count: int, unit: str) -> None:
    assert parse_size(f"{count} {unit}B") == count * 10 ** (3 * BINARY[unit] // 10)


@settings(deadline=None)
@given(st.integers(1, 1 << 60))
def test_a_formatted_size_is_within_its_last_digit(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5s", 1.5), ("500ms", 0.5), ("5min 20s", 320), ("2h", 7200), ("1d", 86400), ("3 m", 180)],
)
def test_a_duration_is_seconds_without_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "5 parsecs", "5s!", "infinity", "1.2.3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text) or "^$"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(1, 59_999))
def test_a_short_duration_survives_to_the_millisecond(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.0006)


@settings(deadline=None)
@given(st.integers(60, 10**7))
def test_a_long_duration_keeps_its_two_largest_units(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize("name", ["worker1", "w", "a-b_c.d:e@f", "x" * 64, "ünïcode", "nannyd2", r"a\x2db"])
def test_a_good_name_is_taken(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "is empty"),
        ("x" * 65, "at most 64 bytes"),
        ("ü" * 33, "at most 64 bytes"),
        ("nannyd", "is reserved"),
        ("..", "begins with '.'"),
        (".hidden", "begins with '.'"),
        ("-x", "begins with '-'"),
        ("a/b", "a character that cannot stand in a name"),
        ("a b", "a character that cannot stand in a name"),
        ("a\nb", "a character that cannot stand in a name"),
        ("a\0b", "a character that cannot stand in a name"),
        ("a\udc80", "a character that cannot stand in a name"),
    ],
)
def test_a_name_that_could_leave_its_directory_is_refused(name: str, part: str) -> None:
    assert part in (name_problem(name) or "")


@settings(deadline=None)
@given(st.text(max_size=80))
def test_a_name_that_is_taken_is_one_component_of_a_path(name: str) -> None:
    if name_problem(name) is None:
        assert "/" not in name
        assert "\0" not in name
        assert name not in (".", "..")
