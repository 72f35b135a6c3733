"""What is said over the control socket: calls, replies, errors (https://varlink.org/Method-Call).

Pure.  A call comes from anybody: reading one never takes more than a few milliseconds, and what is no
call is one `Nonsense`, whatever is wrong with it.
"""

from __future__ import annotations

import enum
import json
import math
import re
from dataclasses import dataclass
from typing import Any

MESSAGE_MAX = 1 << 20
"""Bytes of a call, without the NUL byte after it."""
_PIECES_MAX = 1 << 13
"""A megabyte of `[],` would take 50 ms to read, and no method wants lists.  So commas, brackets and braces
are counted, those in strings too; a text that is worth a record has less."""
_DIGITS_MAX = 20
"""Digits of an integer; 64 bits have less."""
_NAME_MAX = 255
"""Characters of a name that somebody made up, in the reply to him."""
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")

SERVICE = "org.varlink.service"


class Nonsense(ValueError):  # noqa: N818 - it says what the message is
    """What was received is no call; there is no use in talking on."""


class CallError(Exception):
    """A typed error reply."""

    def __init__(self, error: str, /, **parameters: Any) -> None:
        """*error* is the full name, with the interface."""
        super().__init__(error)
        self.error = error
        self.parameters = parameters


class Kind(enum.Enum):
    """Type of a parameter, written as in the interface's description; `?` may be null, or missing."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STRING = "string"
    OBJECT = "object"
    MAYBE_INT = "?int"
    MAYBE_FLOAT = "?float"
    MAYBE_BOOL = "?bool"
    MAYBE_STRING = "?string"
    MAYBE_OBJECT = "?object"
    STRINGS = "[]string"
    MAYBE_TABLE = "?[string]string"


@dataclass(frozen=True, slots=True)
class Message:
    """A call as it was received."""

    method: str
    parameters: dict[str, Any]
    more: bool
    oneway: bool
    upgrade: bool


# --- Calls --------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what others may understand in another way than we: a name that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Nonsense
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise Nonsense
    return int(digits)


def _constant(name: str) -> Any:
    raise Nonsense(name)  # NaN and Infinity are no JSON


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


def _pieces(raw: bytes) -> int:
    """Return how much there is to read, in commas; what takes longer than they counts for more."""
    return raw.count(b",") + 2 * (raw.count(b"[") + raw.count(b"{")) + raw.count(b"\\") // 8


def read_call(raw: bytes) -> Message:
    """Read a message without its NUL byte.  Raises Nonsense."""
    if len(raw) > MESSAGE_MAX or _pieces(raw) > _PIECES_MAX:
        raise Nonsense
    try:
        found = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Nonsense from error
    if type(found) is not dict:
        raise Nonsense
    method, parameters = found.get("method"), found.get("parameters")
    if parameters is None:
        parameters = {}
    if type(method) is not str or type(parameters) is not dict:
        raise Nonsense
    return Message(method, parameters, _flag(found, "more"), _flag(found, "oneway"), _flag(found, "upgrade"))


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if value is None:
        return False
    if type(value) is not bool:
        raise Nonsense
    return value


def arguments(takes: dict[str, Kind], given: dict[str, Any]) -> dict[str, Any]:
    """Return the value of every parameter that a method *takes*.  Raises CallError."""
    if given.keys() - takes.keys():
        raise invalid_parameter(next(name for name in given if name not in takes))
    return {name: _argument(name, kind, given.get(name)) for name, kind in takes.items()}


def _argument(name: str, kind: Kind, value: Any) -> Any:
    match kind:
        case _ if value is None and kind.value.startswith("?"):
            return None
        case Kind.INT | Kind.MAYBE_INT if type(value) is int and -(1 << 63) <= value < 1 << 63:
            return value
        case Kind.FLOAT | Kind.MAYBE_FLOAT if type(value) in (int, float) and math.isfinite(value):
            return float(value)
        case Kind.BOOL | Kind.MAYBE_BOOL if type(value) is bool:
            return value
        case Kind.STRING | Kind.MAYBE_STRING if _is_text(value):
            return value
        case Kind.OBJECT | Kind.MAYBE_OBJECT if type(value) is dict and not _has_surrogates(
            _ENCODER.encode(value)
        ):
            return value
        case Kind.STRINGS if type(value) is list and all(map(_is_text, value)):
            return value
        case Kind.MAYBE_TABLE if type(value) is dict and all(map(_is_text, (*value, *value.values()))):
            return value
    raise invalid_parameter(name)


def _is_text(value: Any) -> bool:
    return type(value) is str and not _has_surrogates(value)


def _has_surrogates(text: str) -> bool:
    """Say whether *text* is none: JSON's escapes can write half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- Replies ------------------------------------------------------------------------------------------

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def write(message: dict[str, Any]) -> bytes:
    """Return *message* as it is sent.  Raises ValueError, TypeError, RecursionError: it cannot be."""
    try:
        text = _ENCODER.encode(message)
    except ValueError:
        text = _ENCODER.encode(_finite(message))
    try:
        return text.encode() + b"\0"
    except UnicodeEncodeError:  # a path, as os.fsdecode() gives them
        return _LONE_SURROGATES.sub("\ufffd", text).encode() + b"\0"


def _finite(value: Any) -> Any:
    """Return *value* with null in the place of every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def invalid_parameter(name: str) -> CallError:
    """Return the error for a parameter that is unknown, missing or of the wrong type."""
    return CallError(f"{SERVICE}.InvalidParameter", parameter=name[:_NAME_MAX])


def interface_not_found(name: str) -> CallError:
    """Return the error for an interface that is not here."""
    return CallError(f"{SERVICE}.InterfaceNotFound", interface=name[:_NAME_MAX])


def method_not_found(name: str) -> CallError:
    """Return the error for a method that its interface does not have."""
    return CallError(f"{SERVICE}.MethodNotFound", method=name[:_NAME_MAX])


def method_not_implemented(name: str) -> CallError:
    """Return the error for a method that cannot be called so."""
    return CallError(f"{SERVICE}.MethodNotImplemented", method=name[:_NAME_MAX])


def expected_more() -> CallError:
    """Return the error for a method that answers more than once, called without `more`."""
    return CallError(f"{SERVICE}.ExpectedMore")
