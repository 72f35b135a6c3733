"""The command line of `dask worker`, for who starts workers by it: dask-jobqueue, dask-kubernetes, people.

    python -m nannyd.dask tcp://10.0.0.1:8786 --nthreads 4 --memory-limit 8GB --name alice

becomes `nannyd run alice --dask.scheduler=… …`, in the same process; with `--nworkers N` it starts N of them
(`several`).  An instance is called after its worker; where one of that name runs, it has a number, too
(`claim`), so that the same command may run twice on one host.  nannyd's own settings (`--memory.swap=1GiB`)
may stand among the options.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import sys
from typing import TYPE_CHECKING

from nannyd import __version__
from nannyd.core.units import NAME_MAX, name_problem
from nannyd.dask import amounts
from nannyd.dask.claim import claim
from nannyd.dask.several import Several

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTING = re.compile(r"--(worker|memory|restart|nanny|agent|dask)\.[^=]+(=.*)?", re.DOTALL)

_SAME = {
    "worker_class": "dask.worker-class",
    "host": "dask.host",
    "interface": "dask.interface",
    "protocol": "dask.protocol",
    "listen_address": "dask.listen-address",
    "contact_address": "dask.contact-address",
    "dashboard_address": "dask.dashboard-address",
    "death_timeout": "dask.death-timeout",
    "lifetime": "dask.worker.lifetime",
    "lifetime_stagger": "dask.worker.lifetime_stagger",
    "scheduler_sni": "dask.worker.scheduler_sni",
}
"""Options whose text is that of a setting."""

_PATHS = {
    "scheduler_file": "dask.scheduler-file",
    "local_directory": "worker.local-directory",
    "tls_ca_file": "dask.tls.ca",
    "tls_cert": "dask.tls.cert",
    "tls_key": "dask.tls.key",
}
_TRUTHS = {"dashboard": "dask.dashboard", "lifetime_restart": "dask.worker.lifetime_restart"}


def main(arguments: Sequence[str]) -> int:
    """Do what *arguments* ask for; return only where nannyd has not taken this process."""
    parser = _parser()
    options, more = _parse(parser, arguments)
    try:
        found = instances(options, more)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"argument --local-directory: {error.filename}: {error.strerror}")
    commands, claims = [], []
    for wanted, settings in found:
        name, descriptor = claim(wanted, os.environ)
        commands.append([sys.executable, "-P", "-m", "nannyd", "run", name, *settings])
        claims += [] if descriptor is None else [descriptor]
    if len(commands) == 1 and not options.pid_file:
        for descriptor in claims:
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, commands[0])  # noqa: S606 (no shell is meant)
    several = Several(commands, options.pid_file)
    try:
        several.write_pid()
    except OSError as error:
        parser.error(f"argument --pid-file: {error.filename}: {error.strerror}")
    return several.run()


# Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nannyd.dask",
        description="A worker of a Dask cluster, kept by nannyd.  The options are those of `dask worker`.",
        usage="%(prog)s [scheduler] [options] [--SECTION.KEY=VALUE ...]",
        allow_abbrev=False,
    )
    for name in (
        *_SAME,
        *_PATHS,
        "worker_port",
        "nanny_port",
        "name",
        "resources",
        "memory_limit",
        "pid_file",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}")
    parser.add_argument("--nworkers", help="how many workers: a number, -1 for as many as CPUs, or auto")
    parser.add_argument("--nthreads", type=int, default=0, help="threads of each")
    for name in _TRUTHS:
        parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction)
    parser.add_argument("--nanny", action=argparse.BooleanOptionalAction, default=True)
    for name in ("preload", "preload-nanny", "env"):
        parser.add_argument(f"--{name}", action="append", default=[])
    for name in ("config-dir", "log-format", "log-level"):
        parser.add_argument(f"--{name}", help="as nannyd run has it")
    parser.add_argument("--dashboard-prefix", help=argparse.SUPPRESS)  # Dask itself does nothing with it
    parser.add_argument("--version", action="version", version=f"nannyd {__version__}")
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and nannyd's own settings as arguments."""
    settings = [argument for argument in arguments if _SETTING.fullmatch(argument)]
    for setting in settings:
        if "=" not in setting:
            parser.error(f"argument {setting}: expected one value; write {setting}=VALUE")
    options, argv = parser.parse_known_args([word for word in arguments if word not in settings])
    options.scheduler = argv.pop(0) if argv and not argv[0].startswith("-") else None
    argv = [word for word in argv if word != "--"]
    if argv and not options.preload:
        parser.error(f"unrecognized arguments: {' '.join(argv)}")
    if not options.nanny:
        parser.error("nannyd is the nanny; --no-nanny is for `dask worker` itself")
    options.preload_argv = argv
    return options, settings


# Instances


def instances(options: argparse.Namespace, more: list[str]) -> list[tuple[str, list[str]]]:
    """Return name and arguments of each instance.  Raises ValueError for what cannot be understood."""
    count, nthreads = amounts.processes(options.nworkers, options.nthreads, _cpus)
    if count > 1 and options.listen_address:
        raise ValueError(
            "one --listen-address is not enough for several workers; write --worker-port and --host"
        )
    common = [*_common(options), *(["--dask.nthreads", str(nthreads)] if nthreads else [])]
    result = []
    for number, ports in enumerate(amounts.apportion(options.worker_port, options.nanny_port, count)):
        end = f"-{number}" if count > 1 else ""
        # Unique in the cluster, and the same in each life; Dask's own would be the address.
        name = (options.name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}") + end
        own = ["--dask.name", name]
        for key, text in zip(("worker-port", "port"), ports, strict=True):
            own += [] if text is None else [f"--dask.{key}", text]
        result.append((instance_name((options.name or "dask-worker") + end), [*common, *own, *more]))
    return result


def _cpus() -> int:
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def instance_name(name: str) -> str:
    """Return the name of an instance for a worker's *name*."""
    plain = re.sub(r"[^A-Za-z0-9:_.@-]", "-", name)[:NAME_MAX].lstrip(".-")
    return "dask-worker" if name_problem(plain) is not None else plain


def _common(options: argparse.Namespace) -> list[str]:
    """Return what all instances have in common."""
    found: dict[str, str] = {}
    given = {name: value for name, value in vars(options).items() if value not in (None, "", [])}
    found |= {setting: given[name] for name, setting in _SAME.items() if name in given}
    if "dask.protocol" in found:
        found["dask.protocol"] = found["dask.protocol"].removesuffix("://")  # as dask-jobqueue writes it
    found |= {setting: os.path.abspath(given[name]) for name, setting in _PATHS.items() if name in given}  # noqa: PTH100
    found |= {setting: str(given[name]).lower() for name, setting in _TRUTHS.items() if name in given}
    if "lifetime" in given:  # nannyd's own default is to go on; a batch job is to end in time
        found["dask.on-lifetime"] = "restart" if _goes_on(options) else "end"
    if "dask.tls.cert" in found:
        found.setdefault("dask.tls.key", found["dask.tls.cert"])  # Dask takes a file with both
    if "worker.local-directory" in found:
        os.makedirs(found["worker.local-directory"], exist_ok=True)  # noqa: PTH103
    if options.scheduler:
        found["dask.scheduler"] = _address(options.scheduler)
    if "memory_limit" in given:
        found["memory.limit"] = amounts.memory_limit(options.memory_limit)
    for name, amount in amounts.resources(given.get("resources", "")).items():
        found[f"dask.resources.{name}"] = repr(amount)
    lists = {
        "worker.preload": options.preload,
        "worker.preload-argv": options.preload_argv,
        "nanny.preload": [_file(name) for name in options.preload_nanny],
    }
    found |= {setting: json.dumps(value) for setting, value in lists.items() if value}
    result = [word for setting, text in found.items() for word in (f"--{setting}", text)]
    for name in ("config_dir", "log_format", "log_level"):
        result += [f"--{name.replace('_', '-')}", given[name]] if name in given else []
    return [*result, *(word for assignment in options.env for word in ("--env", assignment))]


def _file(name: str) -> str:
    """Return a preload that is a file by its path: the agent has another working directory."""
    return os.path.abspath(name) if name.endswith(".py") else name  # noqa: PTH100


def _goes_on(options: argparse.Namespace) -> bool:
    """Say whether a worker whose lifetime is over is followed by another."""
    if options.lifetime_restart is not None:
        return bool(options.lifetime_restart)
    from dask import config

    return bool(config.get("distributed.worker.lifetime.restart", False))


def _address(text: str) -> str:
    """Return *text* with the scheme that Dask gives to an address without one."""
    if "://" in text:
        return text
    from dask import config

    return f"{config.get('distributed.comm.default-scheme', 'tcp')}://{text}"
