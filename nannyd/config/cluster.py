"""From `[dask]` to the plan: the worker's keyword arguments, and what the supervisor must know.

scheduler, scheduler_file     where the scheduler is; one of them
worker_class                  "package.module.Class", or None for distributed.Worker
options                       keyword arguments of that class, as Dask names them
config                        Dask's configuration over its own files: dotted keys
security                      keyword arguments of distributed.Security; TLS versions as 1.2 or 1.3
nanny                         where the nanny listens
death_timeout                 seconds
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from nannyd.config import tree as trees
from nannyd.config.daskrules import MEMORY, needs_certificate
from nannyd.config.dotted import flat
from nannyd.config.tree import problem_at
from nannyd.core.plan import DaskPlan
from nannyd.core.restart import RestartMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.config.credentials import Credentials
    from nannyd.config.dask import Dask
    from nannyd.config.daskfiles import Theirs
    from nannyd.config.settings import Settings
    from nannyd.config.tree import Tree
    from nannyd.core.errors import Problem

    Resolve = Callable[[Any, tuple[str, ...]], Any]

TARGET = "nannyd.dask.worker:DaskWorker"
DEFAULT_FRACTIONS = {"target": 0.60, "spill": 0.70, "pause": 0.80}
"""Dask's own (distributed.yaml), made for its own `terminate`:"""
_TERMINATE = 0.95
_THEIR_CERTIFICATE = "distributed.comm.tls.worker.cert"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the parts of the plan are made from."""

    instance: str
    dask: Dask
    settings: Settings
    tree: Tree
    cpus: float
    theirs: Theirs
    """Dask's own configuration."""

    @property
    def nthreads(self) -> int:
        """How many tasks run at a time; as Dask's Nanny has it."""
        return self.dask.nthreads or max(1, math.ceil(self.cpus))

    @property
    def name(self) -> str | int:
        """The worker's name in the cluster."""
        return self.instance if self.dask.name is None else self.dask.name

    def kwargs(self, memory_limit: int | None, security: dict[str, Any], resolve: Resolve) -> dict[str, Any]:
        """Return the keyword arguments; *resolve* puts credentials into a value at a path."""
        scheduler, scheduler_file = self._scheduler()
        return {
            "scheduler": scheduler,
            "scheduler_file": scheduler_file,
            "worker_class": self.dask.worker_class,
            "options": {**self._options(memory_limit), **self._more(resolve)},
            "config": {**self._fractions(), **resolve(flat(self.dask.config), ("dask", "config"))},
            "security": security,
            "nanny": {
                "host": self._listener()[0],
                "interface": self.dask.interface,
                "port": self.dask.port,
                "protocol": self._protocol(),
                "contact_address": self.dask.contact_address,
                "listen_address": self.dask.listen_address,
            },
            "death_timeout": self.dask.death_timeout,
        }

    def plan(self, kwargs: dict[str, Any]) -> DaskPlan:
        """Return what the supervisor must know; *kwargs* are the worker's."""
        server = {
            "security": kwargs["security"],
            "config": kwargs["config"],
            "protocol": self._protocol(),
            "blocked_handlers": self.dask.blocked_handlers,
            "name": self.name,
            "nthreads": self.nthreads,
        }
        return DaskPlan(self.dask.after(), self.dask.drain_timeout, server)

    def restart(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Return *policy* with what a Dask worker's is by default."""
        if policy["immediate"] is None:
            policy["immediate"] = 1
        if not self.dask.reconnect:
            policy["mode"] = RestartMode.NO
        return policy

    def security(self, credentials: Credentials, problems: list[Problem]) -> dict[str, Any]:
        """Return what distributed.Security is made with; the files are named, and not read."""
        tls, security = self.dask.tls, {}
        key = needs_certificate(self.dask)
        if key is not None and self.theirs.is_whole and not self.theirs.chosen.get(_THEIR_CERTIFICATE):
            message = "is encrypted, and there is no certificate; write ca, cert and key in [dask.tls]"
            problems.append(problem_at(self.tree, ("dask", key), message))
        for key, argument in (("ca", "ca_file"), ("cert", "worker_cert"), ("key", "worker_key")):
            file = getattr(tls, key)
            if file is not None:
                security[f"tls_{argument}"], wrong = credentials.file(file)
                if wrong is not None:
                    problems.append(problem_at(self.tree, ("dask", "tls", key), wrong))
        more = {
            "require_encryption": tls.require_encryption,
            "tls_ciphers": tls.ciphers,
            "tls_min_version": tls.min_version,
            "tls_max_version": tls.max_version,
        }
        return {**security, **{key: value for key, value in more.items() if value is not None}}

    # Where

    def _scheduler(self) -> tuple[str | None, str | None]:
        """Return address or file, the one that was written last."""
        address, file = self.dask.scheduler, self.dask.scheduler_file
        if address is None or file is None:
            return address, file
        ranks = [trees.find(self.tree, ("dask", key)) for key in ("scheduler", "scheduler-file")]
        first, second = (-1 if leaf is None else leaf.rank for leaf in ranks)
        return (address, None) if first > second else (None, file)

    def _protocol(self) -> str | None:
        address = self.dask.listen_address or self._scheduler()[0]
        return self.dask.protocol or (address.partition("://")[0] if address else None)

    def _listener(self) -> tuple[str | None, int | str | list[int] | None]:
        """Return host and ports of the worker."""
        if self.dask.listen_address is None:
            return self.dask.host, self.dask.worker_port
        host, _, port = self.dask.listen_address.partition("://")[2].rstrip("/").rpartition(":")
        return host or None, int(port)

    def _found_where_it_listens(self) -> str | None:
        """Return the address at which the worker listens, if that is one place; else Dask finds it out."""
        host, port = self._listener()
        if self.dask.listen_address is None or host is None or not port:
            return None
        with suppress(ValueError):  # a name
            if ip_address(host.strip("[]")).is_unspecified:
                return None
        return self.dask.listen_address

    # The worker

    def _options(self, memory_limit: int | None) -> dict[str, Any]:
        dask, worker = self.dask, self.settings.worker
        host, port = self._listener()
        options = {
            "host": host,
            "port": port,
            "interface": dask.interface,
            "protocol": self._protocol(),
            "contact_address": dask.contact_address or self._found_where_it_listens(),
            "resources": dask.resources or None,
            "validate": dask.validate_,
            "silence_logs": dask.silence_logs,
        }
        return {
            "name": self.name,
            "nthreads": self.nthreads,
            "memory_limit": memory_limit,
            "dashboard": dask.dashboard,
            "dashboard_address": dask.dashboard_address,
            "preload": worker.preload,
            "preload_argv": worker.preload_argv,
            **{key: value for key, value in options.items() if value is not None},
        }

    def _more(self, resolve: Resolve) -> dict[str, Any]:
        more = resolve(self.dask.worker, ("dask", "worker"))
        return {key.replace("-", "_"): value for key, value in more.items()}

    def _fractions(self) -> dict[str, Any]:
        """Return Dask's own fractions, where they must be less for the worker to act before nannyd does."""
        memory = self.settings.memory
        end = memory.max if memory.terminate is None else memory.terminate
        if end is None or end >= _TERMINATE:
            return {}
        said = {key.replace("_", "-") for key in (*flat(self.dask.config), *self.theirs.chosen)}
        return {
            f"{MEMORY}.{name}": round(fraction * end / _TERMINATE, 4)
            for name, fraction in DEFAULT_FRACTIONS.items()
            if f"{MEMORY}.{name}" not in said
        }
