"""Where settings come from, low to high: default, files, variables, options.

    built-in default
    /usr/lib/nannyd/nannyd.toml
    CONFIG_DIR/nannyd.toml, then CONFIG_DIR/nannyd.toml.d/*.toml by name
    CONFIG_DIR/NAME.toml, then CONFIG_DIR/NAME.toml.d/*.toml by name
    NANNYD_SECTION__KEY variables, with pydantic-settings' conventions: case does not matter, dashes are
        underscores, lists and tables are JSON, a key of a table follows after two more underscores
    --SECTION.KEY=VALUE options, --env K=V, and `-- COMMAND…`

Missing files are fine.  What cannot be read, is no TOML, or has a name nobody knows is a problem in every
layer; values are judged only where they win (`validate`).  Nothing here stops at the first problem.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.config.dotted import nested
from nannyd.config.settings import BUILT_IN, DELIMITER, PREFIX, SECTIONS, Setting, catalogue, every_setting
from nannyd.config.tree import DEFAULT, Layer, Origin
from nannyd.config.wording import nearest, show
from nannyd.core.environ import EXPORTED
from nannyd.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

VENDOR_FILE = Path("/usr/lib/nannyd/nannyd.toml")
CONFIG_DIR = Path("/etc/nannyd")
ENVIRONMENT = "environment"
COMMAND_LINE = "command line"

LOG_VARIABLES = ("NANNYD_LOG_FORMAT", "NANNYD_LOG_LEVEL")

_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class _BadTextError(Exception):
    """The text of a variable or option cannot be taken; the message says why."""


@dataclass(slots=True)
class Found:
    """The layers, low to high, and what is wrong in them."""

    layers: list[Layer] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    is_whole: bool = True
    """No file is left out because it cannot be read."""

    def add(self, origin: Origin, values: dict[str, Any]) -> None:
        """Add a layer without what is unknown in it."""
        self.layers.append(Layer(origin, _known(values, origin, self.problems)))

    def complain(self, where: str, key: str, message: str) -> None:
        """Remember a problem."""
        self.problems.append(Problem(where, key, message))

    def leave_out(self, where: str, message: str) -> None:
        """Remember a file or directory that cannot be read."""
        self.complain(where, "", message)
        self.is_whole = False


def collect(
    name: str,
    config_dir: Path | None,
    environ: Mapping[str, str],
    options: Sequence[tuple[str, str]] = (),
    env: Sequence[tuple[str, str]] = (),
    command: list[str] | None = None,
) -> Found:
    """Return all layers of instance *name*.  *config_dir* None: the usual one, which may be missing."""
    found = Found([Layer(DEFAULT, BUILT_IN)])
    if config_dir is not None and not config_dir.is_dir():
        write = f"write the directory that holds {name}.toml"
        found.complain(COMMAND_LINE, "--config-dir", f"{show(str(config_dir))} is not a directory; {write}")
    else:
        for path in _files(name, (config_dir or CONFIG_DIR).absolute(), found):
            _read_file(path, found)
    read_variables(environ, found)
    for option, text in options:
        _read_option(option, text, found)
    for variable, text in env:
        found.add(Origin(COMMAND_LINE, "--env"), {"nanny": {"env": {variable: text}}})
    if command is not None:
        found.add(Origin(COMMAND_LINE, "--"), {"worker": {"command": command}})
    return found


# Files


def _files(name: str, config_dir: Path, found: Found) -> list[Path]:
    paths = [VENDOR_FILE]
    for stem in ("nannyd", name):
        paths.append(config_dir / f"{stem}.toml")
        paths.extend(_drop_ins(config_dir / f"{stem}.toml.d", found))
    return paths


def _drop_ins(directory: Path, found: Found) -> list[Path]:
    try:
        names = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        found.leave_out(str(directory), f"cannot be read ({error.strerror})")
        return []
    return [directory / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read_file(path: Path, found: Found) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        found.leave_out(str(path), f"cannot be read ({error.strerror})")
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found.leave_out(f"{path}:{line}", "is not UTF-8 text; write it in UTF-8")
        return
    try:
        values = tomllib.loads(text)
    except RecursionError:
        found.leave_out(str(path), "is not TOML that can be read: tables or lists are nested too deep")
    except ValueError as error:
        line, message = _toml_error(text, str(error))
        found.leave_out(f"{path}:{line}", f"is not TOML: {message}")
    else:
        for key in _too_big(values):
            found.complain(str(path), key, "has a number that does not fit into 64 bits; write a smaller one")
        found.add(Origin(str(path)), values)


def _too_big(value: Any, key: str = "") -> list[str]:
    """Take numbers of more than 64 bits, which TOML does not promise and Python may not print, out of tables.

    Return the keys of those tables' entries.
    """
    if not isinstance(value, dict):
        return []
    found = []
    for name in list(value):
        path = f"{key}.{name}" if key else name
        if _has_too_big(value[name]):
            found.append(path)
            del value[name]
        else:
            found += _too_big(value[name], path)
    return found


def _has_too_big(value: Any) -> bool:
    if isinstance(value, list):
        # A table within a list is judged as a whole.
        return any(_has_too_big(item) or _too_big(item) for item in value)
    return isinstance(value, int) and abs(value) >= 1 << 63


def _toml_error(text: str, message: str) -> tuple[int, str]:
    """Return the line and the bare message of tomllib's *message*."""
    match = _LINE.search(message)
    line = int(match[1]) if match is not None and match[1] else text.count("\n") + (not text.endswith("\n"))
    message = _LINE.sub("", message)
    return line, message[:1].lower() + message[1:]


# Names


def _known(values: dict[str, Any], origin: Origin, problems: list[Problem]) -> dict[str, Any]:
    """Return *values* without what has no place in the model; each such thing is a problem."""

    def complain(key: str, message: str) -> None:
        problems.append(Problem(origin.where, origin.key or key, message))

    result: dict[str, Any] = {}
    for section, table in values.items():
        settings = catalogue().get(section)
        if settings is None:
            complain(section, _unknown(section))
        elif not isinstance(table, dict):
            complain(section, f"{show(table)} is not a table; write [{section}]")
        else:
            result[section] = {}
            for key, value in table.items():
                name = f"{section}.{key}"
                if key not in settings:
                    complain(name, _unknown(name))
                elif settings[key].is_table and not isinstance(value, dict):
                    complain(name, f"{show(value, (section, key))} is not a table; write [{name}]")
                else:
                    result[section][key] = _entries(settings[key], value, complain)
    return result


def _entries(setting: Setting, value: Any, complain: Callable[[str, str], None]) -> Any:
    """Return *value*, a table without what is unknown in it, and its dotted keys as tables."""
    if setting.keys:
        for key in sorted(set(value) - set(setting.keys)):
            guess = nearest(key, setting.keys)
            known = f"did you mean {setting.name}.{guess}?" if guess else f"write {', '.join(setting.keys)}"
            complain(f"{setting.name}.{key}", f"is not a setting; {known}")
        return {key: value[key] for key in setting.keys if key in value}
    return nested(value) if setting.table.dotted else value


def _unknown(name: str) -> str:
    """Say that *name* is no setting, and which it might have been meant to be."""
    section, _, key = name.partition(".")
    if not key:
        at_home = [setting.name for setting in every_setting() if setting.key == section]
        guess = nearest(section, SECTIONS) or (at_home[0] if at_home else None)
        others = f"the tables are {', '.join(SECTIONS)}"
    else:
        meant = guess_setting(section, key)
        guess = meant.name if meant is not None else None
        others = f"[{section}] has {', '.join(catalogue()[section])}"
    return "is not a setting; " + (f"did you mean {guess}?" if guess else others)


def guess_setting(section: str, key: str) -> Setting | None:
    """Return the setting that was probably meant: of that name elsewhere, or of a name like it there."""
    elsewhere = [setting for setting in every_setting() if setting.key == key.replace("_", "-")]
    if elsewhere:
        return next((setting for setting in elsewhere if setting.section == section), elsewhere[0])
    settings = catalogue().get(nearest(section, SECTIONS) or "", {})
    near = nearest(key, settings)
    return settings[near] if near is not None else None


# Variables


def read_variables(environ: Mapping[str, str], found: Found) -> None:
    """Add a layer for each `NANNYD_*` variable."""
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX) or variable in EXPORTED or variable in LOG_VARIABLES:
            continue
        values = _place(_variable_path(variable), environ[variable], Origin(ENVIRONMENT, variable), found)
        if values is None:
            guess = nearest(variable, [*(s.variable for s in every_setting()), *LOG_VARIABLES], 0.75)
            meant = guess_setting(*_variable_path(f"{variable}{DELIMITER}")[:2])
            found.complain(
                ENVIRONMENT,
                variable,
                f"is not a variable of nannyd; {_hint(meant.variable if meant is not None else guess)}",
            )


def _variable_path(variable: str) -> tuple[str, ...]:
    """Return the keys that *variable* leads to; the key of an environment table stays as written."""
    section, *rest = variable[len(PREFIX) :].split(DELIMITER, 1)
    section = section.lower()
    if not rest:
        return (section,)
    key, *free = rest[0].split(DELIMITER, 1)
    key = key.lower().replace("_", "-")
    setting = catalogue().get(section, {}).get(key)
    if not free:
        return section, key
    if setting is not None and (setting.is_variables or setting.table.cased):
        return section, key, free[0]
    entry = free[0].lower().split(DELIMITER)
    if setting is not None and setting.keys:
        entry = [word.replace("_", "-") for word in entry]
    return section, key, *entry


# Options


def _read_option(option: str, text: str, found: Found) -> None:
    values = _place(_option_path(option), text, Origin(COMMAND_LINE, option), found)
    if values is None:
        meant = guess_setting(*option.removeprefix("--").split(".")[:2])
        hint = _hint(None if meant is None else meant.option)
        found.complain(COMMAND_LINE, option, f"is not an option; {hint}")


def _hint(guess: str | None) -> str:
    return f"did you mean {guess}?" if guess else "the settings are listed by nannyd run --help"


def _option_path(option: str) -> tuple[str, ...]:
    section, _, rest = option.removeprefix("--").partition(".")
    key, *free = rest.split(".", 1)
    setting = catalogue().get(section, {}).get(key)
    if not free:
        return section, key
    if setting is not None and (setting.is_variables or setting.table.cased):
        return section, key, free[0]
    return section, key, *free[0].split(".")


# Texts of variables and options


def _place(path: tuple[str, ...], text: str, origin: Origin, found: Found) -> dict[str, Any] | None:
    """Add the layer that *text* at *path* means, and return it; None: there is no such setting."""
    settings = catalogue().get(path[0])
    if settings is None or (len(path) > 1 and path[1] not in settings):
        return None
    setting = settings[path[1]] if len(path) > 1 else None
    if setting is not None and len(path) > 2 and not setting.is_table:
        return None
    try:
        value = _decode(setting, path, text)
    except _BadTextError as error:
        found.complain(origin.where, origin.key, str(error))
        return {}
    for key in reversed(path):
        value = {key: value}
    result: dict[str, Any] = value
    found.add(origin, result)
    return result


def _decode(setting: Setting | None, path: tuple[str, ...], text: str) -> Any:
    if setting is None or (setting.is_table and len(path) == 2):
        return _json(text, dict, 'a table in JSON, for example {"name": "value"}')
    if len(path) == 2:
        return _json(text, list, 'a list in JSON, for example ["a", "b"]') if setting.is_json else text
    if setting.is_variables or setting.keys:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json(text: str, type_: type, what: str) -> Any:
    # The text is not shown: a whole table may hold a secret under any key.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, type_):
        raise _BadTextError(f"the value is not JSON of the right kind; write {what}")
    return value
