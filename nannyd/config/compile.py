"""From everything that was configured to the plan, or to all problems at once.

The order: layers → merged tree → settings → environment and credentials → bytes → plan.  What goes into
it from outside (environment, machine, credentials) is given by a `Surroundings`: those of this process for
`nannyd run`, those of the unit for an instance that systemd runs (`unit`).
"""

from __future__ import annotations

import enum
import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.config import daskfiles
from nannyd.config import layers as sources
from nannyd.config import tree as trees
from nannyd.config.cluster import TARGET, Cluster
from nannyd.config.credentials import Credentials
from nannyd.config.daskfiles import Theirs
from nannyd.config.machine import Machine, read_machine
from nannyd.config.texts import Credential
from nannyd.config.tree import problem_at
from nannyd.config.validate import validate
from nannyd.config.wording import nearest
from nannyd.core import environ as environs
from nannyd.core.environ import Entry, Variable, looks_secret
from nannyd.core.errors import ConfigError, Problem
from nannyd.core.memory import AutoLimit, Thresholds, auto_limit
from nannyd.core.plan import (
    AgentPlan,
    LogFormat,
    MemoryPlan,
    Plan,
    Plugin,
    PythonWorker,
    Ready,
    WorkerPlan,
)
from nannyd.core.restart import RestartPolicy
from nannyd.core.units import format_size, name_problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nannyd.config.owner import Owner
    from nannyd.config.settings import Settings
    from nannyd.config.tree import Tree

LEAST_LIMIT = 16 << 20
"""Bytes; with less than this, no worker of any use can run."""

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Request:
    """What a command line asks for."""

    name: str
    config_dir: Path | None = None
    options: list[tuple[str, str]] = field(default_factory=list)
    """`--memory.limit` and its text, in order."""
    env: list[tuple[str, str]] = field(default_factory=list)
    command: list[str] | None = None
    log_format: str | None = None
    log_level: str | None = None
    arguments: list[str] = field(default_factory=list)
    """The command line as it was, after the program's name."""


class Source(enum.StrEnum):
    """Where the surroundings were taken from."""

    SHELL = "shell"
    """This process."""
    PROCESS = "process"
    """The running main process of the unit."""
    UNIT = "unit"
    """The properties and files of the unit."""
    SELF = "self"
    """The process that asks is the instance."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an instance finds where it runs."""

    environ: Mapping[str, str]
    machine: Machine
    source: Source = Source.SHELL
    unit: str | None = None
    notes: tuple[str, ...] = ()
    """What could not be read, in sentences."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where variables of `environ` come from, as far as that is known."""
    owner: Owner | None = None
    """Who the instance runs as; None: as we do."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The plan, and how it came about."""

    plan: Plan
    settings: Settings
    tree: Tree
    variables: list[Variable]
    notes: list[str]
    source: Source
    unit: str | None


def own_surroundings(environ: Mapping[str, str]) -> Surroundings:
    """Return the surroundings of this process."""
    return Surroundings(environ, read_machine())


def compile_plan(request: Request, around: Surroundings) -> Compiled:
    """Return the compiled plan.  Raises ConfigError with every problem there is."""
    name_wrong = name_problem(request.name)
    if name_wrong is not None:
        raise ConfigError([Problem(sources.COMMAND_LINE, "NAME", name_wrong)])
    found = sources.collect(
        request.name, request.config_dir, around.environ, request.options, request.env, request.command
    )
    problems = found.problems
    tree = trees.merge(found.layers)
    theirs = Theirs(is_whole=False)
    if "dask" in tree:
        theirs = daskfiles.read(tree, around.environ, around.owner)
        problems += theirs.problems
        tree = trees.merge([found.layers[0], *theirs.layers, *found.layers[1:]])
    home = (request.config_dir or sources.CONFIG_DIR).absolute() / f"{request.name}.toml"
    settings, wrong = validate(tree, str(home) if found.is_whole else None)
    problems += wrong
    quiet = settings.dask is not None and settings.dask.quiet
    log_format, log_level = _log(request, around.environ, problems, "warning" if quiet else "info")
    credentials = Credentials(around.environ.get("CREDENTIALS_DIRECTORY") or None, around.unit)
    builder = _Builder(request, around, settings, tree, credentials, problems, theirs)
    variables = builder.variables()
    plan = builder.plan(variables, log_format, log_level)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    notes = [*around.notes, *credentials.notes, *theirs.notes]
    return Compiled(plan, settings, tree, variables, notes, around.source, around.unit)


def _log(
    request: Request, environ: Mapping[str, str], problems: list[Problem], default_level: str
) -> tuple[LogFormat, str]:
    """Return format and level of nannyd's own records: option over variable over default."""
    formats, levels = [word.value for word in LogFormat], list(LOG_LEVELS)
    texts = []
    for option, variable, asked, words, default in (
        ("format", "NANNYD_LOG_FORMAT", request.log_format, formats, formats[0]),
        ("level", "NANNYD_LOG_LEVEL", request.log_level, levels, default_level),
    ):
        text = asked if asked is not None else environ.get(variable, default)
        if text.lower() not in words:
            guess = nearest(text, words)
            listed = ", ".join(words[:-1]) + f" or {words[-1]}"
            message = f"{text!r} is not a log {option}; write {guess or listed}"
            problems.append(Problem(sources.ENVIRONMENT, variable, message))
            text = words[0]
        texts.append(text.lower())
    return LogFormat(texts[0]), texts[1]


@dataclass(slots=True)
class _Builder:
    """Makes the parts of the plan; problems are collected on the way."""

    request: Request
    around: Surroundings
    settings: Settings
    tree: Tree
    credentials: Credentials
    problems: list[Problem]
    theirs: Theirs
    """Dask's own configuration."""

    @property
    def is_python(self) -> bool:
        """The worker is a class: one's own, or Dask's."""
        return self.settings.worker.class_ is not None or self.settings.dask is not None

    @property
    def cluster(self) -> Cluster | None:
        """What is made of `[dask]`, if there is one."""
        settings, cpus = self.settings, self.around.machine.cpus
        if settings.dask is None:
            return None
        return Cluster(self.request.name, settings.dask, settings, self.tree, cpus, self.theirs)

    # Environment

    def variables(self) -> list[Variable]:
        """Return the worker's variables with their origins."""
        nanny = self.settings.nanny
        return environs.compose(
            inherited=self.around.environ,
            environ=self._entries("environ", nanny.environ),
            pre_spawn=self._entries("pre-spawn-environ", nanny.pre_spawn_environ),
            arguments=self._entries("env", nanny.env),
            unset=nanny.unset,
            bootstrap=self.is_python,
            origins=self.around.origins,
        )

    def _entries(self, key: str, table: Mapping[str, str | Credential]) -> dict[str, Entry]:
        entries = {}
        for name, value in table.items():
            leaf = trees.find(self.tree, ("nanny", key, name))
            origin = str(leaf.origin) if leaf is not None else str(trees.DEFAULT)
            if isinstance(value, str):
                entries[name] = Entry(value, origin)
            else:
                text = self._credential(value, ("nanny", key, name))
                entries[name] = Entry(text, f"{origin}, credential {value.name}", secret=True)
        return entries

    def _credential(self, value: Credential, path: tuple[str, ...]) -> str:
        text, wrong = self.credentials.read(value.name)
        if wrong is not None:
            self.problems.append(problem_at(self.tree, path, f"credential {value.name!r} {wrong}"))
        return text

    def _resolved(self, value: Any, path: tuple[str, ...], secrets: list[str]) -> Any:
        """Return *value* with its credentials read; *secrets* gets the names of what is one."""
        if isinstance(value, dict):
            return {key: self._resolved(item, (*path, key), secrets) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item, path, secrets) for item in value]
        if isinstance(value, Credential):
            secrets.append(".".join(path))
            return self._credential(value, path)
        return value

    # The plan

    def plan(self, variables: list[Variable], log_format: LogFormat, log_level: str) -> Plan:
        """Return the plan; with problems, a useless one."""
        secrets = sorted({v.name for v in variables if v.secret or looks_secret(v.name)})
        memory = self._memory()
        python = self._python(secrets, memory) if self.is_python else None
        return Plan(
            name=self.request.name,
            worker=self._worker(python),
            memory=memory,
            restart=self._restart(),
            agent=self._agent(secrets),
            dask=None if self.cluster is None or python is None else self.cluster.plan(python.kwargs),
            environ={v.name: v.value for v in variables if not v.late},
            late_environ={v.name: v.value for v in variables if v.late},
            log_format=log_format,
            log_level=log_level,
            arguments=self.request.arguments,
            secrets=secrets,
        )

    def _worker(self, python: PythonWorker | None) -> WorkerPlan:
        worker = self.settings.worker
        return WorkerPlan(
            command=worker.command or [] if python is None else [worker.python or sys.executable],
            python=python,
            ready=worker.ready or (Ready.EXEC if python is None else Ready.NOTIFY),
            working_directory=worker.working_directory,
            local_directory=worker.local_directory,
            umask=worker.umask,
            nice=worker.nice,
            oom_score_adj=worker.oom_score_adj,
            start_timeout=worker.start_timeout,
            stop_signal=worker.stop_signal,
            stop_timeout=worker.stop_timeout,
            kill_mode=worker.kill_mode,
            watchdog=worker.watchdog,
        )

    def _python(self, secrets: list[str], memory: MemoryPlan) -> PythonWorker:
        worker = self.settings.worker
        if self.cluster is not None:
            security = self.cluster.security(self.credentials, self.problems)
            resolve = functools.partial(self._resolved, secrets=secrets)
            kwargs = self.cluster.kwargs(memory.thresholds.limit, security, resolve)
            # The preloads are Dask's own business, which calls their dask_setup for each Worker.
            return PythonWorker(TARGET, [], kwargs, [], [])
        return PythonWorker(
            target=worker.class_ or "",
            args=worker.args,
            kwargs=self._resolved(worker.kwargs, ("worker", "kwargs"), secrets),
            preload=worker.preload,
            preload_argv=_argv_for_each(worker.preload, worker.preload_argv),
        )

    def _agent(self, secrets: list[str]) -> AgentPlan:
        nanny, agent = self.settings.nanny, self.settings.agent
        plugins = self._resolved(nanny.plugins, ("nanny", "plugins"), secrets)
        return AgentPlan(
            python=self.settings.worker.python or sys.executable,
            preload=nanny.preload,
            preload_argv=_argv_for_each(nanny.preload, nanny.preload_argv),
            plugins=[Plugin(**plugin) for plugin in plugins],
            preload_failure=nanny.preload_failure,
            memory_limit=agent.memory_limit,
            idle_timeout=agent.idle_timeout,
        )

    def _restart(self) -> RestartPolicy:
        policy = {key: getattr(self.settings.restart, key) for key in RestartPolicy.__slots__}
        if self.cluster is not None:
            policy = self.cluster.restart(policy)
        return RestartPolicy(**{**policy, "immediate": policy["immediate"] or 0})

    def _memory(self) -> MemoryPlan:
        memory = self.settings.memory
        limit, where = self._limit()

        def share(fraction: float | None) -> int | None:
            return None if limit is None or fraction is None else int(limit * fraction)

        thresholds = Thresholds(limit, share(memory.warn), share(memory.terminate), share(memory.max))
        return MemoryPlan(memory.mode, thresholds, memory.swap, where)

    def _limit(self) -> tuple[int | None, str]:
        """Return the bytes of `memory.limit`, and where they come from in words."""
        limit, threads = self.settings.memory.limit, self.settings.worker.threads
        if threads is None and self.cluster is not None:
            threads = self.cluster.nthreads
        leaf = trees.find(self.tree, ("memory", "limit"))
        origin = trees.DEFAULT if leaf is None else leaf.origin
        place = origin.key or f"memory.limit of {origin.where}"
        machine = self.around.machine
        if limit.size is not None:
            return limit.size, place
        if limit.share is not None:
            found = auto_limit(machine.bounds, None, machine.cpus)
            return self._enough(
                int(found.basis * limit.share), f"{limit.share:.4g} of {found.where}, {place}"
            )
        if not limit.auto:
            return None, f"none, {place}"
        found = auto_limit(machine.bounds, threads, machine.cpus)
        return self._enough(found.limit, _auto_words(found, threads, machine.cpus))

    def _enough(self, limit: int, where: str) -> tuple[int, str]:
        if limit < LEAST_LIMIT:
            message = (
                f"leaves the worker {format_size(limit)} ({where}), less than {format_size(LEAST_LIMIT)};"
                " write a size such as 512M, or give this place more memory"
            )
            self.problems.append(problem_at(self.tree, ("memory", "limit"), message))
        return limit, where


def _argv_for_each(preload: Sequence[str], argv: Sequence[str | list[str]]) -> list[list[str]]:
    """Return a list of arguments for each preload: its own, or the one for all."""
    each = [list(words) for words in argv if isinstance(words, list)]
    every = [word for word in argv if isinstance(word, str)]
    return each or [every for _ in preload]


def _auto_words(found: AutoLimit, threads: int | None, cpus: float) -> str:
    share = "" if threads is None else f", for {threads} threads of {cpus:g} CPUs"
    return f"auto: {found.where}{share}"
