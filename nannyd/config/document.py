"""What is written about the settings, made from the model: it cannot say anything else than what is.

    python -m nannyd.config.document configuration     the reference /etc/nannyd/nannyd.toml
    python -m nannyd.config.document fill TEMPLATE     a man page or completion: its @WORD@ lines filled in

A line of a template that is nothing but `@SETTINGS-MDOC@` or another word of `PARTS` is replaced.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.config.compile import LOG_LEVELS
from nannyd.config.explain import toml, toml_key
from nannyd.config.kinds import Kind, Limit, signal_name
from nannyd.config.options import COMMANDS
from nannyd.config.settings import BUILT_IN, SECTIONS, Setting, catalogue, every_setting
from nannyd.core.plan import LogFormat
from nannyd.core.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

EXAMPLES: dict[str, Any] = {
    "worker.command": ["/usr/bin/redis-server", "--port", "6400"],
    "worker.class": "shop.worker:Worker",
    "worker.kwargs": {"queue": "orders"},
    "worker.ready": "notify",
    "nanny.env": {"LANG": "C.UTF-8"},
    "nanny.environ": {"OMP_NUM_THREADS": "1"},
    "restart.immediate": 1,
    "dask.scheduler": "tcp://10.0.0.1:8786",
    "dask.worker-class": "distributed.Worker",
    "dask.name": "worker-1",
    "dask.resources": {"GPU": 2},
    "dask.listen-address": "tcp://0.0.0.0:9000",
    "dask.contact-address": "tcp://192.0.2.7:9000",
    "dask.validate": True,
    "dask.worker": {"lifetime": "1 day", "lifetime-stagger": "1 hour"},
    "dask.config": {"distributed.worker.memory.spill": 0.6},
    "dask.tls": {"ca": "/etc/dask/tls/ca.pem"},
}
"""Of settings that have no default to show."""

USER_COMMANDS = {
    **{name: text for name, text in COMMANDS.items() if name != "compile"},
    "reload": "make a running instance read its configuration again, and wait for the verdict",
}
SETTLED_COMMANDS = [name for name in USER_COMMANDS if name != "reload"]
"""Those that take settings."""

WIDTH = 100

_HEAD = """\
Settings of all instances of nannyd@.service.  An instance's own stand in /etc/nannyd/NAME.toml.

Every setting is shown with its default, or with an example where it has none.  Later files win:
/usr/lib/nannyd/nannyd.toml, this one, nannyd.toml.d/*.toml, NAME.toml, NAME.toml.d/*.toml; then
variables NANNYD_SECTION__KEY and options --SECTION.KEY=VALUE.

"nannyd check NAME" finds mistakes, "nannyd explain NAME" shows what is in force, and why.
The manual: nannyd.toml(5)."""


# Values


def kind(setting: Setting) -> Kind | None:
    """Return the kind of the setting's values; None for a table."""
    field = SECTIONS[setting.section].model_fields[setting.attribute]
    return next((item for item in field.metadata if isinstance(item, Kind)), None)


def default(setting: Setting) -> str | None:
    """Return the default as TOML; None where nothing that can be written means it."""
    value, of = setting.default, kind(setting)
    if setting.is_table or of is None:
        table = BUILT_IN.get(setting.section, {}).get(setting.key, value)
        return toml(table) if table else None
    if isinstance(value, Limit):
        return '"auto"'
    if value is None:
        has_example = setting.name in EXAMPLES or _path_example(of) is not None
        return '"none"' if _takes_none(of) and not has_example else None
    if setting.key == "stop-signal":
        return toml(signal_name(value))
    if setting.name == "agent.memory-limit":
        return toml(format_size(value).replace(".0 ", ""))
    if "duration" in of.what and value:
        return toml(format_duration(value))
    return toml(value)


def example(setting: Setting) -> str:
    """Return a value that could be written, as TOML."""
    of = kind(setting)
    value = EXAMPLES.get(setting.name, None if of is None else _path_example(of))
    return toml({"NAME": "value"} if value is None and setting.is_table else value)


def _takes_none(of: Kind) -> bool:
    try:
        return of.parse("none") is None
    except Exception:  # noqa: BLE001 - whatever it says of a wrong value
        return False


def _path_example(of: Kind) -> str | None:
    match = re.fullmatch(r"for example (/\S+)", of.write)
    return match[1] if match is not None else None


def values(setting: Setting) -> str:
    """Return in words what may be written, or nothing where the description says it."""
    of = kind(setting)
    if of is None or of.write.startswith("for example") or of.write in setting.description:
        return ""
    return f"Write {of.write}."


def choices(setting: Setting) -> list[str]:
    """Return the words that may be written, where there are but a few."""
    of = kind(setting)
    return list(of.schema.get("enum", [])) if of is not None else []


# The reference configuration


def configuration() -> str:
    """Return the file of all settings, each commented out, with its meaning and default."""
    lines = [*_comment(_HEAD), ""]
    for section, settings in catalogue().items():
        lines += ["", *_comment(SECTIONS[section].__doc__ or ""), f"[{section}]", ""]
        tables = [setting for setting in settings.values() if setting.is_table]
        for setting in settings.values():
            if not setting.is_table:
                value = default(setting)
                lines += [*_meaning(setting, value), f"#{setting.key} = {value or example(setting)}", ""]
        for setting in tables:
            value = default(setting)
            lines += [*_meaning(setting, value), f"#[{setting.name}]"]
            for key, item in _table(value or example(setting)).items():
                lines.append(f"#{toml_key(key)} = {toml(item)}")
            lines.append("")
    return "\n".join(lines)


def _table(text: str) -> dict[str, Any]:
    """Return the table that *text*, an inline table of TOML, means."""
    table: dict[str, Any] = tomllib.loads(f"table = {text}")["table"]
    return table


def _meaning(setting: Setting, value: str | None) -> list[str]:
    said = [setting.description, values(setting), "" if value else "For example:"]
    return _comment("\n".join(filter(None, said)).replace("`", ""))


def _comment(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in text.strip().split("\n"):
        lines += textwrap.wrap(paragraph, WIDTH - 2, break_on_hyphens=False) or [""]
    return [f"# {line}".rstrip() for line in lines]


# Manual pages, in mdoc(7)


def _mdoc_settings() -> Iterable[str]:
    for section, settings in catalogue().items():
        yield f".Ss [{section}]"
        yield _roff(SECTIONS[section].__doc__ or "")
        yield ".Bl -tag -width 4n"
        for setting in settings.values():
            yield from _mdoc_item(setting)
        yield ".El"


def _mdoc_item(setting: Setting) -> Iterable[str]:
    yield f".It Ic {_roff(setting.key)}"
    yield _roff(setting.description)
    if said := values(setting):
        yield _roff(said)
    if (value := default(setting)) is not None:
        yield ".br"
        yield f"Default: {_literal(value)}"
    elif not setting.is_table:
        yield ".br"
        yield f"Example: {_literal(example(setting))}"


def _literal(text: str) -> str:
    return f"\\f(CR{_roff(text)}\\fP"


def _roff(text: str) -> str:
    """Return *text* as one line that roff prints as it is."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return "\\&" + line if line[:1] in (".", "'") else line


# Completions


def _fixed_options() -> dict[str, list[str]]:
    """Return the options that are no settings and take a value, with the words that it may be."""
    return {
        "--config-dir": [],
        "--env": [],
        "--log-format": [word.value for word in LogFormat],
        "--log-level": list(LOG_LEVELS),
    }


def _bash() -> Iterable[str]:
    yield f"_nannyd_commands='{' '.join(USER_COMMANDS)}'"
    options = [
        f"{setting.option}." if setting.is_table else f"{setting.option}=" for setting in every_setting()
    ]
    fixed = [f"{option}=" for option in _fixed_options()]
    yield f"_nannyd_options='{' '.join([*fixed, *options])}'"
    yield "_nannyd_values() {"
    yield "    case $1 in"
    words = {**_fixed_options(), **{setting.option: choices(setting) for setting in every_setting()}}
    for option, known in words.items():
        if known:
            yield f"        {option}) echo '{' '.join(known)}' ;;"
    yield "    esac"
    yield "}"


def _zsh_commands() -> Iterable[str]:
    for name, text in USER_COMMANDS.items():
        yield f"    '{name}:{_quoted(text)}'"


def _zsh_settings() -> Iterable[str]:
    for setting in every_setting():
        text = re.sub(r"([\[\]])", r"\\\1", _first_sentence(setting))
        words = choices(setting)
        action = f"({' '.join(words)})" if words else " "
        name = f"{setting.option}." if setting.is_table else f"{setting.option}="
        end = "-[" if setting.is_table else "["
        yield f"    '*{name}{end}{_quoted(text)}]:value:{action}'"


def _fish() -> Iterable[str]:
    for name, text in USER_COMMANDS.items():
        yield f"complete -c nannyd -n __fish_use_subcommand -x -a {name} -d '{_fish_quoted(text)}'"
    settled = f"'__fish_seen_subcommand_from {' '.join(SETTLED_COMMANDS)}'"
    for option, words in _fixed_options().items():
        given = f"-x -a '{' '.join(words)}'" if words else "-r" if option == "--config-dir" else "-x"
        yield f"complete -c nannyd -n {settled} -l {option.removeprefix('--')} {given}"
    for setting in every_setting():
        words = choices(setting)
        given = f"-x -a '{' '.join(words)}'" if words else "-x"
        text = _fish_quoted(_first_sentence(setting))
        yield f"complete -c nannyd -n {settled} -l {setting.name} {given} -d '{text}'"


def _first_sentence(setting: Setting) -> str:
    return re.split(r"[.;:] ", setting.description)[0].rstrip(".").replace("`", "")


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''").replace(":", "\\:")


def _fish_quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


# Templates

PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "SETTINGS-MDOC": _mdoc_settings,
    "BASH": _bash,
    "ZSH-COMMANDS": _zsh_commands,
    "ZSH-SETTINGS": _zsh_settings,
    "FISH": _fish,
}


def fill(template: str) -> str:
    """Return *template* with its `@WORD@` lines filled in.  Raises KeyError for a word nobody knows."""
    lines: list[str] = []
    for line in template.splitlines():
        match = re.fullmatch(r"@([A-Z-]+)@", line)
        lines += [line] if match is None else PARTS[match[1]]()
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Print what *arguments* ask for."""
    match arguments:
        case ["configuration"]:
            sys.stdout.write(configuration())
        case ["fill", path]:
            sys.stdout.write(fill(Path(path).read_text()))
        case _:
            sys.stderr.write(f"{__doc__}")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
