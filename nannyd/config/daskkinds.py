"""The kinds of values of `[dask]`: addresses, ports, names (see `kinds`)."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from nannyd.config.kinds import Kind, WrongValueError, number

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]*)(?::(\d+))?/?")
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")
_LARGEST_PORT = 65535
_LEVELS = ("debug", "info", "warning", "error", "critical")
_OFF = ("none", "false", "off", "no")
_ON = ("true", "on", "yes")


# Addresses


def _place(value: str, scheme: str, rest: str) -> tuple[str, int | None]:
    """Return host and port; raise in words for what is neither."""
    if match := _PLACE.fullmatch(rest):
        port = None if match[2] is None else int(match[2])
        if port is not None and port > _LARGEST_PORT:
            raise WrongValueError(value, f"has a port above {_LARGEST_PORT}; write {scheme}://HOST:PORT")
        return match[1], port
    host, _, port_text = rest.rpartition(":")
    if host.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+", host) and port_text.isdecimal():
        raise WrongValueError(value, f"has no brackets; write {scheme}://[{host}]:{port_text}")
    raise ValueError


def address(example: str, *, listens: bool = False) -> Kind:
    """Return the kind of addresses as Dask writes them; one that *listens* need not name a host."""

    def parse(value: Any) -> str | None:
        if not isinstance(value, str):
            raise TypeError
        if value.lower() == "none":
            return None
        match = _ADDRESS.fullmatch(value)
        if match is None:
            if _PLACE.fullmatch(value) and ":" in value and "/" not in value:
                raise WrongValueError(value, f"has no scheme; write tcp://{value}")
            raise ValueError
        host, port = _place(value, match[1], match[2])
        if match[1] == "inproc":
            raise WrongValueError(value, f"is of one process; write for example {example}")
        if not host and not listens:
            raise WrongValueError(value, f"has no host; write for example {example}")
        if port is None or (port == 0 and not listens):
            raise WrongValueError(
                value, f"has no port; write {match[1]}://{host}:{example.rpartition(':')[2]}"
            )
        return value

    return Kind(parse, "an address", f"for example {example}", {"type": "string"})


# Ports


def _port(value: Any) -> int:
    if isinstance(value, str):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_PORT:
        raise ValueError
    return value


def _ports(value: Any) -> int | str | list[int] | None:
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "none":
            return None
        if text.startswith("["):
            value = json.loads(text)
        elif ":" in text:
            first, last = (_port(part) for part in text.split(":"))
            if last < first:
                raise WrongValueError(value, f"ends before it begins; write {last}:{first}")
            return f"{first}:{last}" if first < last else first
    if isinstance(value, list):
        if not value:
            raise ValueError
        return [_port(item) for item in value]
    return _port(value)


ports = Kind(
    _ports,
    "a port",
    '8788, a range "8788:8798", a list of ports or none',
    {"type": ["integer", "string", "array"], "examples": [8788, "8788:8798", [8788, 8790]]},
)
"""A port, a range of ports, or a list of them, as Dask takes them; 0 and none: whatever is free."""


# Words and numbers


def _truth(value: Any) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    if text is True or text in _ON:
        return True
    if text is False or text in _OFF:
        return False
    raise ValueError


truth = Kind(_truth, "a yes or no", "true or false", {"type": "boolean"})


def _word(value: Any) -> str | None:
    if not isinstance(value, str) or not value or not value.isprintable() or any(c.isspace() for c in value):
        raise ValueError
    return None if value.lower() == "none" else value


def word(what: str, example: str) -> Kind:
    """Return the kind of texts without a space."""
    return Kind(_word, what, f"for example {example}", {"type": "string"})


def _host(value: Any) -> str | None:
    text = _word(value)
    if text is not None and text.count(":") > 1 and not text.startswith("["):
        raise WrongValueError(value, f"has no brackets; write [{text}]")
    return text


host = Kind(_host, "a host", "for example 10.0.0.7", {"type": "string"})


def _name(value: Any) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError
    return int(value) if re.fullmatch(r"0|-?[1-9][0-9]*", value) else value


name = Kind(_name, "a name", "for example worker-1", {"type": ["string", "integer"]})
"""The name of a worker; one of digits is a number, as in `dask worker --name`."""


def _class(value: Any) -> str:
    if not isinstance(value, str) or _CLASS.fullmatch(value) is None:
        raise ValueError
    return value


worker_class = Kind(
    _class, "a class", "package.module.Class or package.module:Class",
    {"type": "string", "pattern": _CLASS.pattern},
)  # fmt: skip


def _level(value: Any) -> int | None:
    text = value.strip().lower() if isinstance(value, str) else value
    if text is False or text in _OFF:
        return None
    if isinstance(text, str) and text in _LEVELS:
        return int(logging.getLevelNamesMapping()[text.upper()])
    level = int(text) if isinstance(text, str) else text
    if not isinstance(level, int) or isinstance(level, bool) or not 0 < level <= logging.CRITICAL:
        raise ValueError
    return level


level = Kind(
    _level, "a level of Python's logging", "for example warning, 30 or none",
    {"type": ["string", "integer"]},
)  # fmt: skip

amount = number(0, "a number", "for example 2 or 10e9")


def _tls_version(value: Any) -> float | None:
    if isinstance(value, str) and value.lower() == "none":
        return None
    if str(value) not in ("1.2", "1.3"):
        raise ValueError
    return float(value)


tls_version = Kind(_tls_version, "a version of TLS that Dask knows", "1.2 or 1.3", {"type": "number"})
