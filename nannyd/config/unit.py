"""The surroundings of an instance that systemd runs, for `check`, `plan` and `explain`.

What counts is the unit's environment, never the shell's of whoever asks.  It is taken from the running main
process (/proc/PID/environ, cmdline, cgroup); where that is not running or not readable, it is put together
from the unit's properties as systemd itself does it (systemd.exec(5), "Environment variables in spawned
processes"): the manager's own < PassEnvironment= < Environment= < EnvironmentFile=, less UnsetEnvironment=.

What cannot be read is named in a note.  Nothing is guessed, and no call waits longer than a few seconds.
Properties are asked for with busctl, because its JSON is exact where `systemctl show` quotes and joins.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.config import envfile
from nannyd.config.compile import Request, Source, Surroundings
from nannyd.config.layers import CONFIG_DIR
from nannyd.config.machine import Machine, read_machine
from nannyd.config.owner import owner_named, owner_of_process
from nannyd.core.memory import Bound
from nannyd.core.paths import SYSTEMD_IS_HERE
from nannyd.core.units import name_problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT = 5.0
_DESTINATION = "org.freedesktop.systemd1"
_OBJECT = "/org/freedesktop/systemd1"
_INFINITY = (1 << 64) - 1

_UNIT_PROPERTIES = ("LoadState", "ActiveState")
_SERVICE_PROPERTIES = (
    "MainPID",
    "ControlGroup",
    "Slice",
    "MemoryMax",
    "MemoryHigh",
    "LimitASSoft",
    "LimitDATASoft",
    "CPUQuotaPerSecUSec",
    "ExecStart",
    "Environment",
    "EnvironmentFiles",
    "PassEnvironment",
    "UnsetEnvironment",
    "User",
    "Group",
)

Properties = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that a manager has loaded."""

    name: str
    scope: str
    """`--system` or `--user`."""
    properties: Properties


@dataclass(slots=True)
class _Notes:
    unit: str
    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.lines.append(f"{self.unit}: {text}")


def in_unit(request: Request) -> tuple[Request, Surroundings] | None:
    """Return *request* as its unit would make it, and the unit's surroundings.

    None: systemd does not run here, or has no such unit.
    """
    if not SYSTEMD_IS_HERE.exists() or name_problem(request.name) is not None:
        return None
    unit = find(request.name)
    if unit is None:
        return None
    notes = _Notes(unit.name)
    pid = int(unit.properties["MainPID"])
    running = _of_process(pid, notes) if pid else None
    if running is None:
        layers = _layers(unit, notes)
        environ, arguments, machine = _of_properties(unit, layers)
    else:
        layers = _layers(unit, _Notes(unit.name))  # what cannot be read here is known from the process
        environ, arguments, machine = running
    source = Source.UNIT if running is None else Source.PROCESS
    origins = origins_of(environ, layers)
    owner = owner_of_process(pid) if running is not None else None
    if owner is None and unit.scope == "--system":
        owner = owner_named(unit.properties["User"], unit.properties["Group"])
    around = Surroundings(environ, machine, source, unit.name, tuple(notes.lines), origins, owner)
    return add_arguments(request, arguments), around


def add_arguments(request: Request, arguments: Sequence[str] | None) -> Request:
    """Return *request* on top of the unit's own command line, as far as that is one of `nannyd run`."""
    if not arguments or arguments[0] != "run":
        return request
    from nannyd.config.options import parse

    try:
        own = parse("run", arguments[1:]).request
    except SystemExit:
        return request
    return replace(
        request,
        config_dir=request.config_dir or own.config_dir,
        options=[*own.options, *request.options],
        env=[*own.env, *request.env],
        command=own.command if request.command is None else request.command,
        log_format=request.log_format or own.log_format,
        log_level=request.log_level or own.log_level,
    )


# The manager


def find(name: str) -> Unit | None:
    """Return the unit of instance *name*; a user's manager, too, has one of every name: the template."""
    unit_name = f"nannyd@{name}.service"  # never escaped: the unit says %i
    found: list[Unit] = []
    for scope in ("--system",) if os.geteuid() == 0 else ("--user", "--system"):
        path = f"{_OBJECT}/unit/{escape_path(unit_name)}"
        properties = _properties(scope, path, "Unit", _UNIT_PROPERTIES)
        if properties is None or properties["LoadState"] != "loaded":
            continue
        more = _properties(scope, path, "Service", _SERVICE_PROPERTIES)
        if more is not None:
            found.append(Unit(unit_name, scope, {**properties, **more}))
    return chosen(found, name)


def chosen(units: Sequence[Unit], name: str) -> Unit | None:
    """Return the unit that is meant: that which runs, or has failed, or is configured; else the first."""

    def claim(unit: Unit) -> int:
        if unit.properties["MainPID"]:
            return 3
        return 2 if unit.properties["ActiveState"] != "inactive" else int(_is_configured(unit, name))

    return max(units, key=claim, default=None)


def _is_configured(unit: Unit, name: str) -> bool:
    """Say whether there is a file of instance *name* where the unit has its configuration."""
    request = add_arguments(Request(name), _arguments(unit, {}))
    directory = request.config_dir or CONFIG_DIR
    return any(os.access(directory / file, os.F_OK) for file in (f"{name}.toml", f"{name}.toml.d"))


def escape_path(name: str) -> str:
    """Return *name* as a part of a D-Bus object path (sd_bus_path_encode(3))."""
    return "".join(
        c if c.isalnum() and c.isascii() else "".join(f"_{b:02x}" for b in c.encode()) for c in name
    )


def _properties(scope: str, path: str, interface: str, names: Sequence[str]) -> Properties | None:
    """Return properties of an object of the manager, or None where they cannot be had."""
    command = ["busctl", scope, "--json=short", "get-property", _DESTINATION, path]
    try:
        answer = subprocess.run(
            [*command, f"{_DESTINATION}.{interface}", *names],
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        values = [json.loads(line)["data"] for line in answer.stdout.splitlines()]
        return dict(zip(names, values, strict=True))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None


# A running main process

_Found = tuple[dict[str, str], list[str] | None, Machine]


def _of_process(pid: int, notes: _Notes) -> _Found | None:
    process = Path("/proc") / str(pid)
    try:
        environ = parse_environ((process / "environ").read_bytes())
        cmdline = (process / "cmdline").read_bytes()
    except OSError as error:
        notes.add(
            f"process {pid} cannot be read ({error.strerror}); its environment is that of the unit's files"
        )
        return None
    arguments = recover_arguments([os.fsdecode(word) for word in cmdline.split(b"\0")[:-1]])
    if arguments is None:
        notes.add(f"process {pid} is not nannyd; its command line is not used")
    return environ, arguments, read_machine(pid=pid)


def parse_environ(content: bytes) -> dict[str, str]:
    """Return the variables of /proc/PID/environ."""
    entries = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in entries}


def recover_arguments(cmdline: Sequence[str]) -> list[str] | None:
    """Return nannyd's own arguments from the command line of its process, or None if it is another's.

    Before `execve` it is `… nannyd run NAME …`; after it, `python -I -m nannyd.supervisor … -- run NAME …`.
    """
    words = list(cmdline)
    for position, word in enumerate(words[: words.index("--") if "--" in words else None]):
        if word == "nannyd.supervisor" and words[position - 1] == "-m":
            rest = words[position + 1 :]
            return rest[rest.index("--") + 1 :] if "--" in rest else None
        if word.rpartition("/")[2] == "nannyd":
            return words[position + 1 :]
        if word.endswith("nannyd/__main__.py"):
            return words[position + 1 :]
    return None


# The unit's properties


def _of_properties(unit: Unit, layers: Sequence[Layer]) -> _Found:
    properties = unit.properties
    environ: dict[str, str] = {}
    for layer in layers:
        environ.update(layer.variables)
    environ = without(environ, properties["UnsetEnvironment"])
    return environ, _arguments(unit, environ), with_limits(read_machine(cgroup=_slice_cgroup(unit)), unit)


def _arguments(unit: Unit, environ: Mapping[str, str]) -> list[str] | None:
    """Return nannyd's own arguments in the unit's ExecStart=."""
    if not unit.properties["ExecStart"]:
        return None
    argv = [str(word) for word in unit.properties["ExecStart"][0][1]]
    return recover_arguments(envfile.expand(argv, environ))


def with_limits(machine: Machine, unit: Unit) -> Machine:
    """Return *machine* as it will be within the limits of *unit*."""

    def limit(name: str) -> int | None:
        value = int(unit.properties[name])
        return None if value == _INFINITY else value

    bounds = [
        Bound(f"{name.removesuffix('Soft')}= of {unit.name}", size, shared=name.startswith("Memory"))
        for name in ("MemoryMax", "MemoryHigh", "LimitASSoft", "LimitDATASoft")
        if (size := limit(name)) is not None
    ]
    quota = limit("CPUQuotaPerSecUSec")
    cpus = machine.cpus if quota is None else min(machine.cpus, quota / 1e6)
    return Machine((*machine.bounds, *bounds), cpus)


@dataclass(frozen=True, slots=True)
class Layer:
    """Variables, and where they stand."""

    origin: str
    variables: Mapping[str, str]


def _layers(unit: Unit, notes: _Notes) -> list[Layer]:
    """Return what the unit's environment is made of, the later the stronger."""
    properties = unit.properties
    manager = _properties(unit.scope, _OBJECT, "Manager", ("Environment",))
    if manager is None:
        notes.add("the environment of the service manager cannot be read")
    own = assignments(manager["Environment"] if manager is not None else ())
    layers = [
        Layer("the service manager's environment", own),
        Layer(f"PassEnvironment= of {unit.name}", _passed(unit, notes)),
        Layer(f"Environment= of {unit.name}", assignments(properties["Environment"])),
    ]
    for path, may_be_missing in properties["EnvironmentFiles"]:
        layers += _read_files(Path(path), notes, may_be_missing=bool(may_be_missing))
    return layers


def origins_of(environ: Mapping[str, str], layers: Sequence[Layer]) -> dict[str, str]:
    """Return where each variable of *environ* comes from: the last of *layers* that sets it to its value."""
    return {
        name: layer.origin
        for layer in layers
        for name, value in layer.variables.items()
        if environ.get(name) == value
    }


def assignments(lines: Sequence[str]) -> dict[str, str]:
    """Return `NAME=VALUE` lines as a table."""
    return dict(line.split("=", 1) for line in lines if "=" in line)


def without(environ: Mapping[str, str], unset: Sequence[str]) -> dict[str, str]:
    """Return *environ* after UnsetEnvironment=: a name removes a variable, an assignment that exact value."""
    return {
        name: value for name, value in environ.items() if name not in unset and f"{name}={value}" not in unset
    }


def _passed(unit: Unit, notes: _Notes) -> dict[str, str]:
    names = unit.properties["PassEnvironment"]
    if not names or unit.scope == "--user":  # the user manager passes all it has anyway
        return {}
    try:
        environ = parse_environ(Path("/proc/1/environ").read_bytes())
    except OSError as error:
        notes.add(f"PassEnvironment={' '.join(names)} cannot be followed ({error.strerror})")
        return {}
    return {name: environ[name] for name in names if name in environ}


def _read_files(path: Path, notes: _Notes, *, may_be_missing: bool) -> list[Layer]:
    """Return the variables of an EnvironmentFile=, which may be a pattern."""
    paths = [path]
    if re.search(r"[*?\[]", str(path)):
        paths = sorted(Path("/").glob(str(path).lstrip("/")))
    layers: list[Layer] = []
    for file in paths:
        try:
            layers.append(Layer(str(file), envfile.parse(file.read_text())))
        except FileNotFoundError:
            if not may_be_missing:
                notes.add(f"EnvironmentFile={file} is missing, the unit would not start")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            notes.add(f"EnvironmentFile={file} cannot be read ({reason}); its variables are not known")
    return layers


def _slice_cgroup(unit: Unit) -> str:
    """Return the cgroup that the unit's own will be made in."""
    if unit.properties["ControlGroup"]:
        return str(unit.properties["ControlGroup"])
    prefix = ""
    if unit.scope == "--user":
        manager = _properties(unit.scope, _OBJECT, "Manager", ("ControlGroup",))
        prefix = str(manager["ControlGroup"]).removesuffix("/init.scope") if manager is not None else ""
    return prefix + slice_path(str(unit.properties["Slice"]))


def slice_path(name: str) -> str:
    """Return the cgroup of a slice: `a-b.slice` lies within `a.slice` (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem in ("", "-"):
        return "/"
    words = stem.split("-")
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))
