r"""systemd's own texts: environment files, and variables in a command line.

Pure.  `parse` follows the state machine of systemd's env-file.c, rule by rule (systemd.exec(5),
EnvironmentFile=): lines that begin with `#` or `;` are comments; whitespace around a value falls; a
backslash keeps the next character, and joins lines at the end of one; quotes may begin and end within a
value, and inside double quotes a backslash keeps only `"`, `\`, `` ` `` and `$`.  No variable is expanded.
"""

from __future__ import annotations

import enum
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SPACE = " \t\n\r"
_NEWLINE = "\n\r"
_KEPT_IN_QUOTES = '"\\`$'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _State(enum.Enum):
    BEFORE_KEY = enum.auto()
    KEY = enum.auto()
    BEFORE_VALUE = enum.auto()
    VALUE = enum.auto()
    ESCAPE = enum.auto()
    SINGLE = enum.auto()
    DOUBLE = enum.auto()
    DOUBLE_ESCAPE = enum.auto()
    COMMENT = enum.auto()


@dataclass(slots=True)
class _Parser:
    state: _State = _State.BEFORE_KEY
    key: str = ""
    value: str = ""
    kept: int = 0
    """Characters of the value that were quoted or escaped: they are no whitespace to strip."""
    found: dict[str, str] = field(default_factory=dict)

    def feed(self, char: str) -> None:
        """Take one character."""
        match self.state:
            case _State.BEFORE_KEY:
                self._before_key(char)
            case _State.KEY:
                self._key(char)
            case _State.BEFORE_VALUE | _State.VALUE:
                self._value(char)
            case _State.ESCAPE:
                self.state = _State.VALUE
                if char not in _NEWLINE:
                    self._keep(char)
            case _State.SINGLE:
                self._quoted(char, "'")
            case _State.DOUBLE:
                self._quoted(char, '"')
            case _State.DOUBLE_ESCAPE:
                self.state = _State.DOUBLE
                if char in _KEPT_IN_QUOTES:
                    self._keep(char)
                elif char != "\n":
                    self._keep("\\" + char)
            case _State.COMMENT:
                if char in _NEWLINE:
                    self.state = _State.BEFORE_KEY

    def end(self) -> dict[str, str]:
        """Return what was found; an unclosed quote ends with the text."""
        if self.state not in (_State.BEFORE_KEY, _State.KEY, _State.COMMENT):
            self._push()
        return self.found

    def _before_key(self, char: str) -> None:
        if char in "#;":
            self.state = _State.COMMENT
        elif char not in _SPACE:
            self.state, self.key = _State.KEY, char

    def _key(self, char: str) -> None:
        if char in _NEWLINE:
            self.state = _State.BEFORE_KEY
        elif char == "=":
            self.state, self.value, self.kept = _State.BEFORE_VALUE, "", 0
        else:
            self.key += char

    def _value(self, char: str) -> None:
        before = self.state is _State.BEFORE_VALUE
        if char in _NEWLINE:
            self._push()
        elif char == "\\":
            self.state = _State.ESCAPE
        elif before and char in "'\"":
            self.state = _State.SINGLE if char == "'" else _State.DOUBLE
        elif not (before and char in _SPACE):
            self.state = _State.VALUE
            self.value += char

    def _quoted(self, char: str, quote: str) -> None:
        if char == quote:
            self.state = _State.BEFORE_VALUE
        elif char == "\\" and quote == '"':
            self.state = _State.DOUBLE_ESCAPE
        else:
            self._keep(char)

    def _keep(self, text: str) -> None:
        self.value += text
        self.kept = len(self.value)

    def _push(self) -> None:
        value = self.value[: self.kept] + self.value[self.kept :].rstrip(_SPACE)
        if _NAME.fullmatch(key := self.key.rstrip(_SPACE)) is not None:
            self.found[key] = value
        self.state, self.key, self.value, self.kept = _State.BEFORE_KEY, "", "", 0


def parse(text: str) -> dict[str, str]:
    """Return the variables of an environment file; lines that are no assignment are left out."""
    parser = _Parser()
    for char in text:
        parser.feed(char)
    return parser.end()


_WORD = re.compile(r"\$([A-Za-z_]\w*)")
_IN_WORD = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)\}")


def expand(arguments: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """Return *arguments* of an ExecStart= with variables as systemd puts them in.

    `${FOO}` is replaced within a word; `$FOO` as a word of its own is split at whitespace into any number
    of words; `$$` is a dollar sign (systemd.service(5), "Command lines").
    """
    result: list[str] = []
    for argument in arguments:
        if match := _WORD.fullmatch(argument):
            result.extend(_words(variables.get(match[1], "")))
        else:
            result.append(_IN_WORD.sub(lambda m: variables.get(m[1], "") if m[1] else "$", argument))
    return result


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an unclosed quote
        return text.split()
