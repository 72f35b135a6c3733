"""More kinds of values: texts, paths, lists of them, and the free values of tables (see `kinds`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, time
from typing import Any

from nannyd.config.kinds import Kind, WrongValueError
from nannyd.core.environ import OURS


@dataclass(frozen=True, slots=True)
class Credential:
    """A value that stands in a file of `$CREDENTIALS_DIRECTORY` (systemd.exec(5), LoadCredential=)."""

    name: str


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if "\0" in value:
        raise WrongValueError(value, "has a NUL character; leave it out")
    return value


def _path(value: Any) -> str | None:
    text = _text(value)
    if text.lower() == "none":
        return None
    if not text.startswith("/"):
        raise ValueError
    return text


def path(example: str) -> Kind:
    """Return the kind of absolute paths."""
    return Kind(_path, "an absolute path", f"for example {example}", {"type": "string"})


def path_or_credential(example: str) -> Kind:
    """Return the kind of absolute paths, and of credentials that stand for their files."""

    def parse(value: Any) -> str | Credential | None:
        return credential(value) or _path(value)

    write = f'for example {example} or {{ credential = "name" }}'
    return Kind(parse, "an absolute path", write, {"type": ["string", "object"]})


_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _class(value: Any) -> str:
    if _CLASS.fullmatch(_text(value)) is None:
        raise ValueError
    return str(value)


class_name = Kind(_class, "a class", "package.module:Class", {"type": "string", "pattern": _CLASS.pattern})


# Lists


def _element(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    shown = "" if isinstance(value, dict | list) else f', for example "{str(value).lower()}"'
    raise WrongValueError(value, f"is not a string; write it in quotes{shown}")


def strings(what: str, write: str, *, least: int = 0) -> Kind:
    """Return the kind of lists of at least *least* strings."""

    def parse(value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) < least:
            raise TypeError
        return [_element(element) for element in value]

    return Kind(parse, what, write, {"type": "array", "items": {"type": "string"}}, is_json=True)


def _command(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise TypeError
    elements = [_element(element) for element in value]
    if not elements[0]:
        raise ValueError
    return elements


command = Kind(
    _command,
    "a command",
    'a list of strings, for example ["/usr/bin/worker", "--fast"]',
    {"type": "array", "items": {"type": "string"}, "minItems": 1},
    is_json=True,
)


def _preload_argv(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    if any(isinstance(element, list) for element in value):
        if not all(isinstance(element, list) for element in value):
            raise TypeError
        return [[_element(word) for word in element] for element in value]
    return [_element(element) for element in value]


preload_argv = Kind(
    _preload_argv,
    "a list of arguments",
    '["--option"] for every preload, or [["--first"], ["--second"]] for each its own',
    {"type": "array"},
    is_json=True,
)


# Free values


def credential(value: Any) -> Credential | None:
    """Return the credential that a table `{ credential = "name" }` means, or None for another value."""
    if not isinstance(value, dict) or set(value) != {"credential"}:
        return None
    name = value["credential"]
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", ".."):
        raise WrongValueError(name, "is not the name of a credential; write a file's name without a slash")
    return Credential(name)


def _free(value: Any) -> Any:
    """Return *value*, with `Credential` for what means one, if JSON can carry it to the worker."""
    if isinstance(value, dict):
        return credential(value) or {key: _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    if isinstance(value, date | time):
        raise WrongValueError(value, "is a date or time; write it as a string")
    return value


def _free_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    result: list[Any] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and credential(value) is not None:
        raise WrongValueError(value["credential"], "cannot be a credential here; write it in [worker.kwargs]")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else _free(value)


free = Kind(_free, "a value", "a string, number, list or table")
free_list = Kind(_free_list, "a list", 'for example ["a", 2]', {"type": "array"}, is_json=True)


def _variable_name(value: Any) -> str:
    if not isinstance(value, str) or not value or "=" in value or "\0" in value:
        raise ValueError
    if value in OURS:
        raise WrongValueError(value, "is set by nannyd itself; choose another name")
    return value


variable_name = Kind(_variable_name, "the name of a variable", "letters, digits and _", {"type": "string"})


def _variable_value(value: Any) -> str | Credential:
    if isinstance(value, dict) and (found := credential(value)) is not None:
        return found
    if value is True:
        raise WrongValueError(value, 'is not a string; write a string, for example "true" or "1"')
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value)


variable_value = Kind(
    _variable_value,
    "a string",
    'a string, a number, false or { credential = "name" }',
    {"type": ["string", "number", "boolean", "object"]},
)
"""The value of a variable.  False never arrives here: it drops the entry when layers are merged."""


def _unset(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    for name in value:
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise WrongValueError(name, "is not the name of a variable; write letters, digits and _")
    return value


unset = Kind(
    _unset,
    "a list of names",
    'for example ["LS_COLORS"]',
    {"type": "array", "items": {"type": "string"}},
    is_json=True,
)


# Plugins


_PLUGIN_KEYS = ("class", "name", "kwargs")


def _plugin(value: Any) -> dict[str, Any]:
    """Return `{"target", "name", "kwargs"}` of a class, an entry point, or a table of them."""
    table = value if isinstance(value, dict) else {"class": value}
    for key in table:
        if key not in _PLUGIN_KEYS:
            raise WrongValueError(key, f"is not a key of a plugin; write {', '.join(_PLUGIN_KEYS)}")
    target, name, kwargs = table.get("class"), table.get("name"), table.get("kwargs", {})
    if not isinstance(target, str) or not target or (":" in target and _CLASS.fullmatch(target) is None):
        message = 'is not a plugin; write "package.module:Class" or { class = "…", name = "…", kwargs = {} }'
        raise WrongValueError(value, message)
    if name is not None and (not isinstance(name, str) or not name.isprintable() or not name):
        raise WrongValueError(name, "is not the name of a plugin; write some letters")
    if not isinstance(kwargs, dict):
        raise WrongValueError(kwargs, "is not a table of arguments; write kwargs = { key = value }")
    arguments = {key: _free(item) for key, item in kwargs.items()}
    return {"target": _text(target), "name": name, "kwargs": arguments}


def _plugins(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError
    plugins = [_plugin(element) for element in value]
    names = [plugin["name"] for plugin in plugins if plugin["name"] is not None]
    for name in names:
        if names.count(name) > 1:
            raise WrongValueError(name, "is the name of several plugins; give each a name of its own")
    return plugins


plugins = Kind(
    _plugins,
    "a list of plugins",
    '["package.module:Class"] or [{ class = "…", name = "…", kwargs = {} }]',
    {"type": "array", "items": {"type": ["string", "object"]}},
    is_json=True,
)
