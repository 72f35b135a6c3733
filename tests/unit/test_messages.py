"""What is read of calls and written of replies."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.supervisor.messages import (
    MESSAGE_MAX,
    CallError,
    Kind,
    Message,
    Nonsense,
    arguments,
    interface_not_found,
    read_call,
    write,
)


def test_a_call_needs_only_a_method() -> None:
    assert read_call(b'{"method":"a.b.C"}') == Message("a.b.C", {}, more=False, oneway=False, upgrade=False)


def test_null_is_as_good_as_nothing() -> None:
    raw = b'{"method":"a.b.C","parameters":null,"more":null,"oneway":null,"upgrade":null}'
    assert read_call(raw) == read_call(b'{"method":"a.b.C"}')


def test_everything_of_a_call_is_read() -> None:
    raw = b' {"method":"C","parameters":{"x":[1,{"y":"\\u00e9"}]},"more":true,"oneway":true,"upgrade":true}\n'
    expected = Message("C", {"x": [1, {"y": "é"}]}, more=True, oneway=True, upgrade=True)
    assert read_call(raw) == expected


def test_extensions_of_vendors_are_ignored() -> None:
    assert read_call(b'{"method":"C","org.example":{"x":1}}').method == "C"


NONSENSE = {
    "nothing": b"",
    "no json": b"GET / HTTP/1.1\r\n\r\n",
    "half": b'{"method":"C"',
    "more than one": b'{"method":"C"}{"method":"C"}',
    "a list": b'[{"method":"C"}]',
    "a string": b'"C"',
    "null": b"null",
    "no method": b"{}",
    "method is null": b'{"method":null}',
    "method is a number": b'{"method":1}',
    "parameters are a list": b'{"method":"C","parameters":[]}',
    "parameters are a string": b'{"method":"C","parameters":"x"}',
    "parameters are false": b'{"method":"C","parameters":false}',
    "more is a number": b'{"method":"C","more":1}',
    "more is a string": b'{"method":"C","more":"true"}',
    "oneway is a list": b'{"method":"C","oneway":[]}',
    "upgrade is zero": b'{"method":"C","upgrade":0}',
    "NaN": b'{"method":"C","parameters":{"x":NaN}}',
    "Infinity": b'{"method":"C","parameters":{"x":-Infinity}}',
    "21 digits": b'{"method":"C","parameters":{"x":' + b"1" * 21 + b"}}",
    "a million digits": b'{"method":"C","parameters":{"x":' + b"1" * 1_000_000 + b"}}",
    "method twice": b'{"method":"C","method":"D"}',
    "a parameter twice": b'{"method":"C","parameters":{"x":1,"x":1}}',
    "the same, written otherwise": b'{"method":"C","parameters":{"x":1,"\\u0078":1}}',
    "no UTF-8": b'{"method":"\xff"}',
    "a surrogate as UTF-8": b'{"method":"\xed\xa0\x80"}',
    "UTF-16": '{"method":"C"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"method":"C"}',
    "a control character": b'{"method":"a\nb"}',
    "lists in lists": b'{"method":"C","parameters":{"x":' + b"[" * 5_000,
    "closed lists in lists": b'{"method":"C","parameters":{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
    "objects in objects": b'{"a":' * 5_000,
    "too long": b'{"method":"' + b"C" * MESSAGE_MAX + b'"}',
}


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_call(raw: bytes) -> None:
    with pytest.raises(Nonsense):
        read_call(raw)


def test_surrogates_in_pairs_are_one_character() -> None:
    assert read_call(b'{"method":"\\ud83d\\ude00"}').method == "\U0001f600"


def test_a_long_text_is_read_whole() -> None:
    text = "Eine Zeile mit é, „Zeichen“ und ein paar Wörtern mehr\n" * 6_000 + "\n" * 8_000 + "x" * 500_000
    raw = json.dumps({"method": "C", "parameters": {"text": text}}, ensure_ascii=False).encode()
    assert len(raw) > MESSAGE_MAX * 0.8
    assert read_call(raw).parameters == {"text": text}


def whole_message(pattern: bytes) -> bytes:
    """Return a message of about the largest size that consists of *pattern*."""
    return b'{"method":"C","parameters":{"x":' + pattern * ((MESSAGE_MAX - 64) // len(pattern)) + b"}}"


def with_text(pattern: bytes, pieces: int) -> bytes:
    """Return one that has as much of *pattern* as is allowed, and the rest of it is a text."""
    found = pattern * (
        8 * pieces // sum(b",,,,,,,,[[[[[[[[[[[[[[[[{{{{{{{{{{{{{{{{\\".count(byte) for byte in pattern)
    )
    text = b"x" * (MESSAGE_MAX - 64 - len(found))
    return b'{"method":"C","parameters":{"x":[' + found + b'"' + text + b'"]}}'


DEAR = [
    b"[],",
    b"{},",
    b"0,",
    b'"",',
    b"[",
    b'{"":',
    b"9" * 4000 + b",",
    b" ",
    b'"\\n',
    b"1.1",
    b"\\u00e9",
    b"1e",
]


@pytest.mark.parametrize("pattern", DEAR, ids=lambda pattern: repr(pattern[:6]))
def test_nonsense_of_any_length_is_refused(pattern: bytes) -> None:
    with pytest.raises(Nonsense):  # in 1 ms; without the limits it would take 20 ms to minutes
        read_call(whole_message(pattern))


DEARER = [b"[],", b"0,", b"1.5,", b'"",', b'"' + b"\\n" * 50 + b'",', b'{"a":1},']


@pytest.mark.parametrize("pattern", DEARER, ids=repr)
def test_there_is_a_bound_to_the_pieces_of_a_call(pattern: bytes) -> None:
    read_call(with_text(pattern, 8_150))  # 4 ms
    with pytest.raises(Nonsense):
        read_call(with_text(pattern, 8_250))


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
PARTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("method", "parameters", "more", "oneway", "upgrade", "x"), ANY)
)


@given(PARTS)
def test_whatever_is_in_a_message_it_is_a_call_or_nonsense(parts: dict[str, Any]) -> None:
    raw = json.dumps(parts)
    try:
        message = read_call(raw.encode())
    except Nonsense:
        return
    expected = json.loads(raw)  # two halves of a character beside each other are one there
    assert expected["method"] == message.method
    assert (expected.get("parameters") or {}) == message.parameters


@given(st.binary(max_size=200))
def test_bytes_are_a_call_or_nonsense(raw: bytes) -> None:
    with pytest.raises(Nonsense):
        read_call(raw)


# Parameters


def refused(kind: Kind, **given: Any) -> str:
    """Return which parameter a method that takes `x` does not accept."""
    with pytest.raises(CallError) as caught:
        arguments({"x": kind}, given)
    assert caught.value.error == "org.varlink.service.InvalidParameter"
    name: str = caught.value.parameters["parameter"]
    return name


VALUES: tuple[Any, ...] = (
    *(0, 1, -(1 << 63), (1 << 63) - 1, 1 << 63, 0.5, 1.0, math.inf, math.nan),
    *(True, False, "", "x", "\U0001f600", "\ud83d", [], {}),
    *(["x", "y"], ["x", 1], ["\ud83d"], {"x": "y"}, {"x": 1}, {"x": None}, {"\ud83d": "x"}, {"x": "\ud83d"}),
)
_HALF = ({"\ud83d": "x"}, {"x": "\ud83d"})
GOOD = {
    "int": lambda value: type(value) is int and value != 1 << 63,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
    "bool": lambda value: type(value) is bool,
    "string": lambda value: type(value) is str and value != "\ud83d",
    "object": lambda value: type(value) is dict and value not in _HALF,
    "[]string": lambda value: value in ([], ["x", "y"]),
    "[string]string": lambda value: value in ({}, {"x": "y"}),
}


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("kind", Kind)
def test_each_kind_takes_its_values_and_no_others(kind: Kind, value: Any) -> None:
    if GOOD[kind.value.removeprefix("?")](value):
        expected = float(value) if "float" in kind.value else value
        assert arguments({"x": kind}, {"x": value}) == {"x": expected}
    else:
        assert refused(kind, x=value) == "x"


@pytest.mark.parametrize("given", [{}, {"x": None}], ids=["missing", "null"])
@pytest.mark.parametrize("kind", Kind)
def test_only_what_may_be_null_may_be_missing(kind: Kind, given: dict[str, Any]) -> None:
    if kind.value.startswith("?"):
        assert arguments({"x": kind}, given) == {"x": None}
    else:
        assert refused(kind, **given) == "x"


def test_a_number_without_a_point_becomes_a_float() -> None:
    assert type(arguments({"x": Kind.FLOAT}, {"x": 3})["x"]) is float


def test_an_unknown_parameter_is_named() -> None:
    assert refused(Kind.MAYBE_INT, y=1) == "y"
    assert refused(Kind.MAYBE_INT, x=1, y=None) == "y"


def test_names_that_somebody_made_up_come_back_short() -> None:
    assert len(refused(Kind.MAYBE_INT, **{"y" * 1000: 1})) == 255
    assert len(interface_not_found("i" * 1000).parameters["interface"]) == 255


# Replies


def test_numbers_that_json_does_not_have_become_null() -> None:
    written = write({"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}})
    assert written == b'{"a":[1.5,null,[null]],"b":{"c":null}}\0'


def test_a_path_that_is_no_text_becomes_text() -> None:
    path = b"/\xff/\xc3\xa9".decode(errors="surrogateescape")
    assert json.loads(write({"path": path, "too": "\ud800x"})[:-1]) == {"path": "/�/é", "too": "�x"}


@given(ANY)
def test_every_reply_is_json_that_strict_readers_take(value: Any) -> None:
    raw = write({"x": value})
    assert raw.count(b"\0") == 1
    read = json.loads(raw[:-1].decode(), parse_constant=lambda name: pytest.fail(name))
    json.dumps(read, ensure_ascii=False).encode()


def test_what_is_no_json_at_all_is_an_error() -> None:
    circle: dict[str, Any] = {}
    circle["x"] = circle
    with pytest.raises(RecursionError):
        write(circle)
    with pytest.raises(TypeError):
        write({"x": object()})
