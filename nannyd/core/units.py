"""Sizes, durations and names as people write them, and back.

A size without a unit is refused: `1` could be a byte or the whole memory.  `K M G T` and `KiB…` are
powers of 1024, as in systemd; `kB MB GB TB` are powers of 1000, as in Dask.  Durations are systemd's
(systemd.time(7)): seconds where no unit is given.
"""

from __future__ import annotations

import re

_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<suffix>iB|B|)", re.IGNORECASE)
_SECONDS = {
    "us": 1e-6, "µs": 1e-6, "usec": 1e-6,
    "ms": 1e-3, "msec": 1e-3,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
}  # fmt: skip
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)", re.IGNORECASE)

NAME_MAX = 64


def parse_size(text: str) -> int:
    """Return the bytes that *text* means: `512M`, `4GiB`, `1.5 GB`, `4096B`.

    Raises ValueError for anything else, also for a number without a unit (other than 0).
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (not match["unit"] and not match["suffix"] and float(match["number"]) != 0):
        raise ValueError(text)
    unit, suffix = match["unit"].upper(), match["suffix"].lower()
    if suffix == "ib" and not unit:
        raise ValueError(text)
    scale = _DECIMAL[unit] if suffix == "b" and unit else _BINARY[unit]
    whole, _, part = match["number"].partition(".")
    return int(whole + part) * scale // int(10 ** len(part))  # exact, where a float would not be


def format_size(size: float) -> str:
    """Return *size* bytes for people: `512 B`, `2.1 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or (unit == "B" and size < 1024):
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_duration(text: str) -> float:
    """Return the seconds that *text* means: `30`, `1.5s`, `5min 20s`, `500ms`.

    Raises ValueError for anything else.
    """
    text, position, seconds = text.strip(), 0, 0.0
    while position < len(text) or position == 0:
        match = _SPAN.match(text, position)
        if match is None or match[2].lower() not in {*_SECONDS, ""}:
            raise ValueError(text)
        seconds += float(match[1]) * _SECONDS.get(match[2].lower(), 1.0)
        position = match.end()
        while text[position : position + 1].isspace():
            position += 1
    return seconds


def format_duration(seconds: float) -> str:
    """Return *seconds* as systemd prints a time span: `350ms`, `1min 30s`, `2h 5min`."""
    seconds = round(seconds, 3)  # what is 59.9999 after a subtraction is a minute
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    parts, rest = [], round(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def name_problem(name: str) -> str | None:
    """Say what is wrong with an instance's name, or None.

    The name is used as it is, never unescaped, for files, directories and sockets; so it may not be
    able to leave its directory (`/`, `.`, `..`) or to look like an option or a hidden file.
    """
    if not name:
        return "the name of an instance is empty; write for example worker1"
    if len(name.encode(errors="surrogateescape")) > NAME_MAX:
        return f"the name of an instance has at most {NAME_MAX} bytes; {name[:16]!r}… is longer"
    if name == "nannyd":
        return "'nannyd' is reserved: its file would be the common nannyd.toml; choose another name"
    if name.startswith((".", "-")):
        return f"{name!r} begins with {name[0]!r}; begin the name of an instance with a letter or digit"
    if "/" in name or not name.isprintable() or any(c.isspace() for c in name):
        return f"{name!r} has a character that cannot stand in a name; use letters, digits and : - _ . \\ @"
    return None
