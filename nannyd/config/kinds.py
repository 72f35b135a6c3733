"""The kinds of values that settings have: what people may write, and what is said of anything else.

Here: the kind itself, numbers, sizes, durations and words; texts, lists and tables are in `texts`.

A `Kind` stands in the annotation of a setting.  It turns a value from TOML, or the text of a variable or
an option, into what the plan holds; one that does not fit is answered in nannyd's words:

    VALUE is not a size; write 512M, 4GiB, 0.5 or none

The value itself is added later, by the one place that knows whether it may be shown.
"""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import PydanticCustomError, core_schema

from nannyd.core import units

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

ERROR_TYPE = "nannyd"
"""The error type by which our own sentences are told from pydantic's."""

_NONE_WORDS = ("none", "infinity")
_OFF_WORDS = ("none", "false", "off")


class WrongValueError(Exception):
    """A value is not of its kind; *text* says why, *value* is the part that is wrong."""

    def __init__(self, value: Any, text: str) -> None:
        """Remember what is wrong."""
        super().__init__(text)
        self.value = value
        self.text = text


@dataclass(frozen=True)
class Kind:
    """A parser with the words for what it does not take."""

    parse: Callable[[Any], Any]
    what: str
    write: str
    schema: dict[str, Any] = field(default_factory=dict)
    is_json: bool = False
    """The text of a variable or option is JSON: the value is a list."""

    def validate(self, value: Any) -> Any:
        """Return the parsed *value*; raise pydantic's custom error in our words."""
        try:
            return self.parse(value)
        except WrongValueError as error:
            context = {"value": error.value, "text": error.text}
        except (ValueError, TypeError, OverflowError):
            context = {"value": value, "text": f"is not {self.what}; write {self.write}"}
        raise PydanticCustomError(ERROR_TYPE, "wrong value", context)

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Make pydantic call `validate` and nothing else."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, _: core_schema.CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return what the JSON schema says of such a value."""
        return dict(self.schema)


# Numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    if isinstance(value, str):
        value = float(value)
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError
    return float(value)


def integer(least: int, most: int | None, what: str, write: str, *, none: bool = False) -> Kind:
    """Return the kind of whole numbers from *least* to *most*."""

    def parse(value: Any) -> int | None:
        if none and isinstance(value, str) and value.lower() in _NONE_WORDS:
            return None
        if isinstance(value, str):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
        if value < least or (most is not None and value > most):
            raise ValueError
        return value

    bounds = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return Kind(parse, what, write, {"type": "integer", **bounds})


def number(least: float, what: str, write: str) -> Kind:
    """Return the kind of numbers from *least* on."""

    def parse(value: Any) -> float:
        if (result := _number(value)) < least:
            raise ValueError
        return result

    return Kind(parse, what, write, {"type": "number", "minimum": least})


def _share(value: Any) -> float:
    """Return the fraction from 0 to 1 that *value* means, `50%` included."""
    if isinstance(value, str) and value.strip().endswith("%"):
        result = _number(value.strip()[:-1]) / 100
    else:
        result = _number(value)
    if not 0 <= result <= 1:
        raise ValueError
    return result


def share(what: str, write: str) -> Kind:
    """Return the kind of fractions from 0 to 1."""
    return Kind(_share, what, write, {"type": ["number", "string"]})


def _threshold(value: Any) -> float | None:
    if value is False or (isinstance(value, str) and value.lower() in _OFF_WORDS):
        return None
    return _share(value) or None


threshold = Kind(
    _threshold,
    "a fraction of the limit",
    "0.8, 80% or none",
    {"type": ["number", "string", "boolean"], "examples": [0.8, "80%", "none", False]},
)
"""A fraction of the memory limit; None (from 0, false, none): off."""


# Sizes


def _bare(value: Any) -> int | None:
    """Return *value* as a whole number without a unit, or None."""
    text = str(value).strip()
    return int(text) if not isinstance(value, bool | float) and re.fullmatch(r"\d+", text) else None


def _refuse_bare(value: Any, count: int, *, share: bool) -> NoReturn:
    if count == 1 and share:
        write = "1GiB, 1.0 or 100%"
    elif count <= 100 and share:
        write = f"{count}GiB or {count}%"
    elif count < 1024:
        write = f"{count}MiB or {count}GiB"
    else:
        write = f"{count}B or {count}KiB"
    raise WrongValueError(value, f"is ambiguous; write {write}")


@dataclass(frozen=True, slots=True)
class Limit:
    """`memory.limit` as it was written; exactly one field is set, or none of them: no limit."""

    auto: bool = False
    size: int | None = None
    share: float | None = None


def _limit(value: Any) -> Limit:
    text = value.strip().lower() if isinstance(value, str) else value
    if text is False or text in _OFF_WORDS or text == "infinity":
        return Limit()
    if text == "auto":
        return Limit(auto=True)
    count = _bare(text)
    if count is not None:
        # 0 is no limit in Dask, too
        return Limit() if count == 0 else _refuse_bare(value, count, share=True)
    if isinstance(text, str) and not re.fullmatch(r"[\d.]+%?", text):
        size = units.parse_size(text)
        if size == 0:
            raise ValueError
        return Limit(size=size)
    result = _share(text)
    return Limit(share=result) if result else Limit()


limit = Kind(
    _limit,
    "a size",
    "auto, 512M, 4GiB, 0.5 or none",
    {"type": ["string", "number", "boolean"], "examples": ["auto", "4GiB", 0.5, "50%", "none"]},
)


def _swap(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().lower() in ("infinity", "max"):
        return None
    count = _bare(value)
    if count:
        _refuse_bare(value, count, share=False)
    if count == 0:
        return 0
    if not isinstance(value, str):
        raise TypeError
    return units.parse_size(value)


swap = Kind(_swap, "a size", "0, 512M, 4GiB or infinity", {"type": ["string", "integer"]})
"""Bytes; None: as much as there is.  `none` is refused: it could mean either end."""


def _size_or_none(value: Any) -> int | None:
    if value is False or (isinstance(value, str) and value.strip().lower() in (*_OFF_WORDS, *_NONE_WORDS)):
        return None
    count = _bare(value)
    if count == 0:
        return None
    if count is not None:
        _refuse_bare(value, count, share=False)
    if not isinstance(value, str):
        raise TypeError
    return units.parse_size(value)


size_or_none = Kind(_size_or_none, "a size", "512M, 1GiB or none", {"type": ["string", "integer"]})


# Durations


def duration(what: str, write: str, *, none: bool = False, zero: bool = False) -> Kind:
    """Return the kind of durations, in seconds; with *none* also none at all, with *zero* also 0."""

    def parse(value: Any) -> float | None:
        word = value.strip().lower() if isinstance(value, str) else value
        if none and (word is False or word in (*_OFF_WORDS, *_NONE_WORDS) or word == math.inf):
            return None
        seconds = units.parse_duration(word) if isinstance(word, str) else _number(word)
        if seconds < 0 or not math.isfinite(seconds) or (seconds == 0 and not zero):
            raise ValueError
        return seconds

    return Kind(parse, what, write, {"type": ["number", "string"], "examples": [30, "5min"]})


# Words


def choice(words: type[enum.StrEnum], what: str, *, none: bool = False) -> Kind:
    """Return the kind of the words of an enumeration."""
    names = [word.value for word in words]
    listed = ", ".join(names[:-1]) + f" or {names[-1]}"

    def parse(value: Any) -> enum.StrEnum | None:
        # TOML and YAML habits: `mode = false` would be "no"
        return None if none and value is None else words(value)

    return Kind(parse, what, listed, {"enum": names})


def _signal(value: Any) -> int:
    text = str(value).strip().upper()
    if isinstance(value, bool):
        raise TypeError
    if text.isdecimal():
        result = int(text)
    elif match := re.fullmatch(r"(?:SIG)?(RTMIN|RTMAX)(?:([+-])(\d+))?", text):
        base = signal.SIGRTMIN if match[1] == "RTMIN" else signal.SIGRTMAX
        result = base + int(f"{match[2] or '+'}{match[3] or 0}")
    else:
        result = signal.Signals["SIG" + text.removeprefix("SIG")].value
    if result not in signal.valid_signals():
        raise ValueError
    return int(result)


def _signal_or_value_error(value: Any) -> int:
    try:
        return _signal(value)
    except KeyError as error:
        raise ValueError from error


stop_signal = Kind(
    _signal_or_value_error, "a signal", "SIGTERM, SIGINT or another name from signal(7)", {"type": "string"}
)


def signal_name(number: int) -> str:
    """Return the name of a signal, `SIGRTMIN+3` for one that has none of its own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _umask(value: Any) -> int | None:
    if isinstance(value, str):
        if value.lower() in _NONE_WORDS:
            return None
        value = int(value, 8)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777:
        raise ValueError
    return value


umask = Kind(_umask, "a umask", '"0027" or 0o027', {"type": ["string", "integer"]})
