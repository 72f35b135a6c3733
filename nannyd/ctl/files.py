"""Which instances stand in files: of the configuration, of states, and units that are masked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.paths import Scope
from nannyd.core.units import name_problem
from nannyd.ctl import units

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def configuration(scope: Scope, environ: Mapping[str, str]) -> Path:
    """Return the directory of the configuration files."""
    if scope is Scope.SYSTEM:
        return Path("/etc/nannyd")
    return _home(environ, "XDG_CONFIG_HOME", ".config") / "nannyd"


def configured(scope: Scope, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the configuration files."""
    return names_of(path.name for path in _listed(configuration(scope, environ)))


def config_dir(name: str, scope: Scope, environ: Mapping[str, str]) -> list[str]:
    """Return the option by which nannyd in the foreground finds what the user has configured."""
    if scope is Scope.USER and name in configured(scope, environ):
        return [f"--config-dir={configuration(scope, environ)}"]
    return []


def names_of(files: Iterable[str]) -> list[str]:
    """Return the instances that files of configuration mean."""
    names = {file.removesuffix(".d").removesuffix(".toml") for file in files if ".toml" in file}
    return [name for name in names if name_problem(name) is None]


def masked(scope: Scope, environ: Mapping[str, str]) -> list[str]:
    """Return the instances whose units the administrator or the user has masked."""
    directories = [Path("/etc/systemd/system"), Path("/run/systemd/system")]
    if scope is Scope.USER:
        directories = [_home(environ, "XDG_CONFIG_HOME", ".config") / "systemd/user"]
    paths = [path for directory in directories for path in _listed(directory)]
    return [name for path in paths if (name := units.instance(path.name)) is not None and _is_mask(path)]


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _is_mask(path: Path) -> bool:
    try:
        return str(path.readlink()) == "/dev/null"
    except OSError:
        return False


def state_directory(name: str, scope: Scope, environ: Mapping[str, str]) -> Path:
    """Return where an instance of the system, or of ours, keeps its state."""
    if scope is Scope.SYSTEM:
        return Path("/var/lib/nannyd") / name
    return _home(environ, "XDG_STATE_HOME", ".local/state") / "nannyd" / name


def _home(environ: Mapping[str, str], variable: str, usual: str) -> Path:
    given = environ.get(variable)
    return Path(given) if given else Path(environ.get("HOME", "/")) / usual
