"""Text for people: colours, columns, bars, times.  Pure, but for `Style.of_terminal()`.

Whatever an instance says goes through `clean()` before it is shown: an instance may be another user's, and
no control character of its reaches the terminal.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from nannyd.core.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RED, GREEN, YELLOW, BOLD, GREY = "31;1", "32;1", "33;1", "1", "90"
_WIDTH_WITHOUT_TERMINAL = 0
_NARROW, _USUAL = 20, 80


@dataclass(frozen=True, slots=True)
class Style:
    """What the output can show."""

    colour: bool = False
    utf8: bool = False
    terminal: bool = False
    width: int = _WIDTH_WITHOUT_TERMINAL
    """Columns of the terminal; 0: nobody counts them."""

    @classmethod
    def of_terminal(cls, stream: TextIO, environ: Mapping[str, str]) -> Style:
        """Return what *stream* can show, by systemd's rules (systemctl(1), ENVIRONMENT)."""
        terminal = stream.isatty()
        return cls(
            colour=_wants_colour(environ, terminal=terminal),
            utf8=_is_utf8(environ),
            terminal=terminal,
            width=_columns(stream, environ) if terminal else _WIDTH_WITHOUT_TERMINAL,
        )

    def paint(self, text: str, colour: str) -> str:
        """Return *text* in *colour* where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour and text and colour else text

    def dot(self, active_state: str) -> str:
        """Return the dot before a name, as systemctl-status(1) has it."""
        shapes = {"inactive": "○", "failed": "×", "activating": "●", "deactivating": "●", "reloading": "↻"}
        letters = {"inactive": "o", "failed": "x"}
        shape = shapes.get(active_state, "●") if self.utf8 else letters.get(active_state, "*")
        return self.paint(shape, STATE_COLOURS.get(active_state, ""))


STATE_COLOURS = {
    "active": GREEN,
    "reloading": GREEN,
    "failed": RED,
    "activating": YELLOW,
    "deactivating": YELLOW,
}


def _wants_colour(environ: Mapping[str, str], *, terminal: bool) -> bool:
    wish = environ.get("SYSTEMD_COLORS", "").lower()
    if wish in ("0", "no", "n", "false", "f", "off"):
        return False
    if wish:
        return True
    return terminal and environ.get("TERM", "dumb") != "dumb" and not environ.get("NO_COLOR")


def _is_utf8(environ: Mapping[str, str]) -> bool:
    """Say whether the locale is UTF-8; with none set it is taken for that, as systemd does."""
    for variable in ("LC_ALL", "LC_CTYPE", "LANG"):
        if value := environ.get(variable):
            return value.lower().replace("-", "").endswith(("utf8", "utf8@euro"))
    return True


def _columns(stream: TextIO, environ: Mapping[str, str]) -> int:
    given = environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given):
        return int(given)
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        columns = 0
    return max(columns, _NARROW) if columns else _USUAL  # a serial line does not know


# Levels of records

LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""syslog(3), by number."""


def level_of(text: str) -> int | None:
    """Return the number of a level, or None where *text* is none."""
    if text.isascii() and text.isdigit() and int(text) < len(LEVELS):
        return int(text)
    words = {word: number for number, word in enumerate(LEVELS)} | {"error": 3, "warn": 4}
    return words.get(text.lower())


# Strings of others


def clean(text: str) -> str:
    """Return *text* on one line, without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def clean_lines(text: str) -> list[str]:
    """Return the lines of *text*, each clean; a tab is some blanks."""
    return [clean(line.expandtabs()) for line in text.rstrip("\n").split("\n")]


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1] if character < "\x7f" else f"\\u{ord(character):04x}"


def dump_json(value: Any, *, indent: int | None = 2) -> str:
    """Return *value* as JSON, with a newline, in which no control character is left."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
        text = text.replace("\x7f", "\\u007f")
    return text + "\n"


# Widths


def width_of(text: str) -> int:
    """Return the columns that *text* takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def ellipsize(text: str, width: int, *, utf8: bool) -> str:
    """Return *text* in at most *width* columns, with its end left out where it is longer."""
    if width_of(text) <= width:
        return text
    end = "…" if utf8 else "..."
    room = max(0, width - len(end))
    while width_of(text[:room]) > max(0, width - len(end)):
        room -= 1
    return (text[:room] + end)[: max(0, width)]


def shorten(text: str, width: int, *, utf8: bool) -> str:
    """Return *text*, which may have colours, in at most *width* columns."""
    parts = re.split("(\x1b\\[[0-9;]*m)", text)
    if sum(width_of(part) for part in parts[::2]) <= width:
        return text
    end = "…" if utf8 else "..."
    room = width - len(end)
    for index in range(0, len(parts), 2):
        wide = width_of(parts[index])
        if wide > room:
            # What is left out ends here; what follows are colours, which still must end.
            cut = ellipsize(parts[index] + end, room + len(end), utf8=utf8)
            return "".join([*parts[:index], cut, *parts[index + 1 :: 2]])
        room -= wide
    return text


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return *text* filled up to *width* columns."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


# Figures


def bar(share: float, width: int, *, utf8: bool) -> str:
    """Return a bar of *width* columns, filled by *share* (0 to 1, more is full)."""
    share = min(1.0, max(0.0, share))
    if not utf8:
        full = round(share * (width - 2))
        return f"[{'#' * full}{'-' * (width - 2 - full)}]"
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "") + "░" * (width - full - bool(rest))


def sparkline(values: Sequence[float | None], top: float, *, utf8: bool) -> str:
    """Return a column for each of *values*, as high as its share of *top*; None is a gap."""
    steps = "▁▂▃▄▅▆▇█" if utf8 else "_.:-=+*#"
    if top <= 0:
        return " " * len(values)
    return "".join(" " if value is None else steps[min(7, max(0, int(value / top * 8)))] for value in values)


def size(value: int | None) -> str:
    """Return a size, or `-` where it is not known."""
    return "-" if value is None else format_size(value)


def used_of(used: int | None, limit: int | None) -> str:
    """Return `2.1/4.0 GiB`, with as few units as suffice."""
    if used is None:
        return "-" if limit is None else f"-/{format_size(limit)}"
    text = format_size(used)
    if limit is None:
        return text
    limit_text = format_size(limit)
    if text.split()[1] == limit_text.split()[1]:
        text = text.split()[0]
    return f"{text}/{limit_text}"


def span(seconds: float) -> str:
    """Return a time span in whole seconds, as systemd words it."""
    return format_duration(float(max(0, int(seconds)))) if seconds >= 1 else "0s"


def instant(at: float) -> str:
    """Return an instant as systemctl shows it, `Mon 2026-11-23 04:09:30 UTC`; it may be any number."""
    try:
        return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(at))
    except (ValueError, OverflowError, OSError):
        return "?"


def since(at: float, now: float) -> str:
    """Return `Mon 2026-11-23 04:09:30 UTC; 7s ago`."""
    # Instants are reckoned back from two clocks: a moment ahead is now.
    ago = f"{span(max(0.0, now - at))} ago" if at <= now + 1 else f"{span(at - now)} left"
    return f"{instant(at)}; {ago}"


def log_instant(at: float) -> str:
    """Return an instant as journalctl shows it, `Nov 23 04:09:30`."""
    try:
        return time.strftime("%b %d %H:%M:%S", time.localtime(at))
    except (ValueError, OverflowError, OSError):
        return "?"


def clock(at: float) -> str:
    """Return the time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def priority_colour(priority: int) -> str:
    """Return the colour of a record, as journalctl has it."""
    if priority <= 3:
        return RED
    return YELLOW if priority == 4 else BOLD if priority == 5 else GREY if priority >= 7 else ""
