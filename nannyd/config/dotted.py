"""The keys of Dask's configuration: `a.b.c`, or tables in tables, which are the same.

In `logging` there are names of loggers, dots and all, or what `logging.config.dictConfig` takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOGGING = "logging"
_SCHEMA = ("version", "formatters", "filters", "handlers", "loggers", "root")
"""Keys of `dictConfig`: a table there stays as it is."""


def parts(key: str) -> list[str]:
    """Return what *key* leads through."""
    return key.split(".", 1 if key.startswith(f"{_LOGGING}.") else -1)


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        is_whole = above == _LOGGING and key in _SCHEMA
        result.update(
            flat(value, name) if isinstance(value, dict) and value and not is_whole else {name: value}
        )
    return result


def nested(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return *table* with a table for each part of a dotted key."""
    result: dict[str, Any] = {}
    for key, value in flat(table).items():
        *above, last = parts(key)
        inner = result
        for name in above:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        if value != {} or not isinstance(inner.get(last), dict):
            inner[last] = value
    return result
