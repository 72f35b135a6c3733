"""`plan` and `explain`: what is in force, and where each value comes from.

Nothing secret leaves here: values whose name looks secret, credentials, secret-looking arguments and the
passwords of URLs are masked, in text and in JSON alike.  A credential is masked whatever its name.

JSON of `plan`, with bytes and seconds as numbers and null for "none" or "inherited":

    {"name", "source", "unit", "notes": [text], "settings": {section: {key: value}},
     "memory": {"limit", "warn", "terminate", "max", "swap", "where"},
     "environment": {name: value}, "late-environment": {name: value}, "log": {"format", "level"}}

`source` is "shell", "process" (the unit's main process), "unit" (its properties and files) or "self" (what
a running instance itself answers).

JSON of `explain`:

    {"name", "source", "unit", "notes",
     "settings": [{"name", "value", "origin", "overrides": [origin]}],
     "environment": [{"name", "value", "origin", "when": "exec" | "import" | "start", "secret": bool}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from nannyd.config import dotted
from nannyd.config import tree as trees
from nannyd.config.compile import Source
from nannyd.config.kinds import Limit, signal_name
from nannyd.config.settings import Setting, catalogue, every_setting
from nannyd.config.texts import Credential
from nannyd.config.wording import masked
from nannyd.core.environ import HEADING, MASK, looks_secret, mask_url
from nannyd.core.units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from nannyd.config.compile import Compiled
    from nannyd.core.environ import Variable

_DURATIONS = frozenset(
    {
        "start-timeout",
        "stop-timeout",
        "watchdog",
        "delay",
        "max-delay",
        "reset-after",
        "start-limit-interval",
        "idle-timeout",
        "death-timeout",
        "drain-timeout",
    }
)
_INHERITED = frozenset({"working-directory", "umask", "nice"})
_NOT_KNOWN = "what systemd itself adds at the start (HOME, USER, INVOCATION_ID, *_DIRECTORY …) is not known"
AT_START = "(set at start)"
"""Stands for the value of a variable that nannyd knows only when it spawns the worker."""


# Values


def effective(compiled: Compiled) -> dict[str, dict[str, Any]]:
    """Return the settings in force as plain values: seconds, bytes, words; secrets masked."""
    plan = compiled.plan
    sections: dict[str, dict[str, Any]] = {}
    for section, settings in catalogue().items():
        model = getattr(compiled.settings, section)
        if model is not None:
            sections[section] = {
                key: _plain(setting, getattr(model, setting.attribute)) for key, setting in settings.items()
            }
    worker = sections["worker"]
    worker["ready"] = plan.worker.ready.value
    worker["python"] = worker["python"] or sys.executable
    sections["memory"]["limit"] = plan.memory.thresholds.limit
    sections["restart"].update(mode=plan.restart.mode.value, immediate=plan.restart.immediate)
    if plan.dask is not None:
        server = plan.dask.server
        sections["dask"].update(name=server["name"], nthreads=server["nthreads"])
    return sections


def _plain(setting: Setting, value: Any) -> Any:
    if setting.keys:  # none of them is a secret: the key is a file
        items = {key: getattr(value, key.replace("-", "_")) for key in setting.keys}
        return {key: _without_credentials(item) for key, item in items.items() if item is not None}
    if setting.table.dotted:
        value = dotted.flat(value)
    if setting.is_table:
        return {key: MASK if looks_secret(key) else _without_credentials(item) for key, item in value.items()}
    if isinstance(value, Limit):
        return None
    if setting.key == "stop-signal":
        return signal_name(value)
    if setting.key == "umask" and value is not None:
        return f"{value:04o}"
    return _without_credentials(value)


def _without_credentials(value: Any) -> Any:
    if isinstance(value, Credential):
        return MASK
    if isinstance(value, dict):
        return {
            key: MASK if looks_secret(str(key)) else _without_credentials(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_credentials(item) for item in masked(value)]
    return masked(value)


def _thresholds(compiled: Compiled) -> dict[str, Any]:
    memory = compiled.plan.memory
    return {**dataclasses.asdict(memory.thresholds), "swap": memory.swap, "where": memory.where}


# plan


def plan_document(compiled: Compiled) -> dict[str, Any]:
    """Return the plan in the form that the head of this file gives."""
    shown = [(variable, _shown(variable)) for variable in compiled.variables]
    return {
        **_head(compiled),
        "settings": effective(compiled),
        "memory": _thresholds(compiled),
        "environment": {v.name: value for v, value in shown if not v.late},
        "late-environment": {v.name: value for v, value in shown if v.late},
        "log": {"format": compiled.plan.log_format.value, "level": compiled.plan.log_level},
    }


def plan_text(compiled: Compiled) -> str:
    """Return the effective settings as TOML, with exact bytes."""
    lines = _notes(compiled)
    for section, values in effective(compiled).items():
        lines.append(f"[{section}]")
        tables = []
        for key, value in values.items():
            if isinstance(value, dict):
                tables.append((key, value))
            elif not (value == [] or (value is None and key in ("command", "class", "python"))):
                lines.append(_line(compiled, section, key, value))
        lines.append("")
        for key, table in tables:
            if table:
                lines += [f"[{section}.{key}]", *(_entry(k, v) for k, v in table.items()), ""]
    return "\n".join(lines)


def _entry(key: str, value: Any) -> str:
    line = f"{toml_key(key)} = {toml(value)}"
    return f"# {line}" if _has_null(value) else line  # which options and variables have, and TOML has not


def _has_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _line(compiled: Compiled, section: str, key: str, value: Any) -> str:
    text, comment = worded(compiled, section, key, value)
    if text is None:
        return f"# {key} is inherited" if key in _INHERITED else f"# {key} is not set"
    return f"{key} = {text}" + (f"  # {comment}" if comment else "")


def worded(compiled: Compiled, section: str, key: str, value: Any) -> tuple[str | None, str]:
    """Return a setting's *value* as TOML that nannyd would read again, and what else is to be said of it."""
    memory = compiled.plan.memory
    if (section, key) == ("agent", "memory-limit"):
        return ('"none"', "") if value is None else (f'"{value}B"', format_size(value))
    if section != "memory" or key == "mode":
        return None if value is None else toml(_duration(value) if key in _DURATIONS else value), ""
    if key == "limit":
        return (
            ('"none"', memory.where)
            if value is None
            else (f'"{value}B"', f"{format_size(value)}, {memory.where}")
        )
    if key == "swap":
        if not value:
            return ('"infinity"' if value is None else "0"), ""
        return f'"{value}B"', format_size(value)
    size = getattr(memory.thresholds, key)
    if value is None:
        return '"none"', ""
    return toml(value), "there is no limit" if size is None else f"{size} bytes, {format_size(size)}"


def _duration(seconds: float) -> str | float:
    """Return *seconds* as systemd writes them, or the number where that would lose something."""
    text = format_duration(seconds)
    return text if abs(parse_duration(text) - seconds) < 1e-9 and seconds else seconds


def toml_key(name: str) -> str:
    """Return *name* as a key of TOML, in quotes where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def toml(value: Any) -> str:
    """Return *value* as TOML; JSON's strings are TOML's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


# explain


def explain_document(compiled: Compiled) -> dict[str, Any]:
    """Return everything with its origin, in the form that the head of this file gives."""
    settings = [
        {"name": name, "value": value, "origin": origin, "overrides": overrides}
        for name, value, origin, overrides in _settings(compiled)
    ]
    environment = [
        {"name": v.name, "value": _shown(v), "origin": v.origin, "when": _when(v), "secret": _is_secret(v)}
        for v in compiled.variables
        if v.name not in _at_start(compiled)
    ]
    environment += [
        {"name": name, "value": None, "origin": "nannyd", "when": "start", "secret": False}
        for name in _at_start(compiled)
    ]
    environment.sort(key=lambda entry: str(entry["name"]))
    return {**_head(compiled), "settings": settings, "environment": environment}


def explain_text(compiled: Compiled) -> str:
    """Return a line for each setting and variable: value and origin."""
    rows = [
        (f"{name} = {_text(compiled, name, value)}", _origin_words(origin, overrides))
        for name, value, origin, overrides in _settings(compiled)
    ]
    late = {v.name for v in compiled.variables if v.late}
    variables = [
        (v.name, f"{v.name}={_escaped(_shown(v))}", v.origin + _late_words(v, late))
        for v in compiled.variables
        if v.name not in _at_start(compiled)
    ]
    variables += [(name, f"{name}={AT_START}", "nannyd") for name in _at_start(compiled)]
    environment = [(text, origin) for _, text, origin in sorted(variables)]
    lines = [*_notes(compiled), "# settings", *_columns(rows), ""]
    return "\n".join([*lines, HEADING + "\n".join(_columns(environment))]) + "\n"


def _text(compiled: Compiled, name: str, value: Any) -> str:
    section, key, *_ = name.split(".")
    text, _ = worded(compiled, section, key, value)
    return "none" if text is None else text


def _settings(compiled: Compiled) -> list[tuple[str, Any, str, list[str]]]:
    """Return name, value, origin and overridden origins of every setting, tables by entry."""
    values = effective(compiled)
    result: list[tuple[str, Any, str, list[str]]] = []
    for setting in every_setting():
        if setting.section not in values:
            continue
        value = values[setting.section][setting.key]
        if not setting.is_table:
            result.append(_with_origin(compiled, (setting.section, setting.key), value))
            continue
        for key, item in value.items():
            path = dotted.parts(key) if setting.table.dotted else [key]
            result.append(_with_origin(compiled, (setting.section, setting.key, *path), item))
    return result


def _with_origin(compiled: Compiled, path: tuple[str, ...], value: Any) -> tuple[str, Any, str, list[str]]:
    leaf = trees.find(compiled.tree, path)
    if leaf is None:
        return ".".join(path), value, str(trees.DEFAULT), []
    return ".".join(path), value, str(leaf.origin), [str(origin) for origin in leaf.overridden]


def _origin_words(origin: str, overrides: list[str]) -> str:
    return origin if not overrides else f"{origin} (over {', '.join(reversed(overrides))})"


def _late_words(variable: Variable, late: set[str]) -> str:
    if variable.late:
        return ", before the first import"
    return ", until the first import" if variable.name in late else ""


def _when(variable: Variable) -> str:
    return "import" if variable.late else "exec"


def _at_start(compiled: Compiled) -> list[str]:
    """Return the variables that nannyd sets when it spawns the worker."""
    names = ["NANNYD_INSTANCE", "NANNYD_LOCAL_DIRECTORY", "NOTIFY_SOCKET"]
    if compiled.plan.worker.watchdog is not None:
        names.append("WATCHDOG_USEC")
    inherited = {variable.name for variable in compiled.variables}
    rewritten = ("JOURNAL_STREAM", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE")
    return sorted([*names, *(name for name in rewritten if name in inherited)])


# Both


def _head(compiled: Compiled) -> dict[str, Any]:
    return {
        "name": compiled.plan.name,
        "source": compiled.source.value,
        "unit": compiled.unit,
        "notes": compiled.notes if compiled.source is not Source.UNIT else [*compiled.notes, _NOT_KNOWN],
    }


def _notes(compiled: Compiled) -> list[str]:
    head = _head(compiled)
    of = {
        Source.SHELL: "in the environment of this shell",
        Source.SELF: "as it is in force",
        Source.PROCESS: f"as {compiled.unit} runs",
        Source.UNIT: f"as {compiled.unit} would be started",
    }[compiled.source]
    return [f"# {compiled.plan.name}, {of}", *(f"# note: {note}" for note in head["notes"]), ""]


def _is_secret(variable: Variable) -> bool:
    return variable.secret or looks_secret(variable.name)


def _shown(variable: Variable) -> str:
    return MASK if _is_secret(variable) else mask_url(variable.value)


def _escaped(text: str) -> str:
    """Return *text* on one line."""
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = min(48, max((len(left) for left, _ in rows), default=0))
    return [f"{left:<{width}}  # {right}" for left, right in rows]


def dump(document: dict[str, Any]) -> str:
    """Return a *document* as JSON for people and programs; numbers that JSON does not have are text."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
