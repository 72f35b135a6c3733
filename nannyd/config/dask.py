"""The settings of `[dask]`: an instance that has any of them is a worker of a Dask cluster."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from nannyd.config import daskkinds, kinds, texts
from nannyd.config.section import Section, Table
from nannyd.config.texts import Credential  # noqa: TC001 (pydantic resolves annotations at run time)
from nannyd.core.dask import Cause, Then

_FILE = texts.path_or_credential("/etc/dask/tls/worker.pem")
_THEN = kinds.choice(Then, "what can follow")

DASK_KEYS = {
    "dask.scheduler": "scheduler-address",
    "dask.blocked-handlers": "distributed.nanny.blocked-handlers",
    "nanny.environ": "distributed.nanny.environ",
    "nanny.pre-spawn-environ": "distributed.nanny.pre-spawn-environ",
    "nanny.preload": "distributed.nanny.preload",
    "nanny.preload-argv": "distributed.nanny.preload-argv",
    "worker.preload": "distributed.worker.preload",
    "worker.preload-argv": "distributed.worker.preload-argv",
    "memory.terminate": "distributed.worker.memory.terminate",
}
"""Settings that Dask's own configuration has, too, under these keys: there it is a layer like a file."""

OTHER_PLACES = {
    "local_directory": "worker.local-directory",
    "memory_limit": "memory.limit",
    "nanny": "dask.port",
    "port": "dask.worker-port",
    "preload": "worker.preload",
    "preload_argv": "worker.preload-argv",
    "scheduler_ip": "dask.scheduler",
    "scheduler_port": "dask.scheduler",
    "security": "dask.tls",
    **{
        key.replace("-", "_"): f"dask.{key}"
        for key in (
            "contact-address", "dashboard", "dashboard-address", "death-timeout", "host", "interface", "name",
            "nthreads", "protocol", "resources", "scheduler-file", "silence-logs", "validate",
        )
    },
}  # fmt: skip
"""Arguments of a Dask worker that have a setting of their own."""


class Tls(Section):
    """Certificates and what else Dask's `Security` takes."""

    ca: Annotated[str | Credential | None, _FILE] = None
    cert: Annotated[str | Credential | None, _FILE] = None
    key: Annotated[str | Credential | None, _FILE] = None
    require_encryption: Annotated[bool | None, daskkinds.truth] = None
    ciphers: Annotated[str | None, daskkinds.word("a list of ciphers", "ECDHE+AESGCM")] = None
    min_version: Annotated[float | None, daskkinds.tls_version] = None
    max_version: Annotated[float | None, daskkinds.tls_version] = None


class Dask(Section):
    """A worker of a Dask cluster, instead of a command or class."""

    scheduler: Annotated[str | None, daskkinds.address("tcp://10.0.0.1:8786")] = Field(
        default=None, description="The scheduler's address."
    )
    scheduler_file: Annotated[str | None, texts.path("/srv/dask/scheduler.json")] = Field(
        default=None,
        description="The file in which the scheduler says its address; each worker waits for it.",
    )
    worker_class: Annotated[str | None, daskkinds.worker_class] = Field(
        default=None, description="The class of the worker, by default distributed.Worker."
    )
    nthreads: Annotated[
        int | None, kinds.integer(1, None, "a number of threads", "a whole number from 1", none=True)
    ] = Field(default=None, description="How many tasks run at a time; by default as many as there are CPUs.")
    name: Annotated[str | int | None, daskkinds.name] = Field(
        default=None, description="The worker's name in the cluster, by default that of the instance."
    )
    resources: Annotated[dict[str, Annotated[float, daskkinds.amount]], Table(cased=True)] = Field(
        default={}, description="Abstract resources that the worker offers to tasks: names and amounts."
    )
    worker_port: Annotated[int | str | list[int] | None, daskkinds.ports] = Field(
        default=None, description="Where the worker listens; of several ports, the first that is free."
    )
    host: Annotated[str | None, daskkinds.host] = Field(
        default=None, description="The host name or address at which worker and nanny listen and are found."
    )
    interface: Annotated[str | None, daskkinds.word("a network interface", "eth0")] = Field(
        default=None, description="The network interface whose address is used instead of host."
    )
    protocol: Annotated[str | None, daskkinds.word("a protocol", "tls")] = Field(
        default=None,
        description="How worker and nanny are spoken to, tcp or tls; by default as the scheduler.",
    )
    listen_address: Annotated[str | None, daskkinds.address("tcp://0.0.0.0:9000", listens=True)] = Field(
        default=None, description="Where the worker listens, instead of host and worker-port."
    )
    contact_address: Annotated[str | None, daskkinds.address("tcp://192.0.2.7:9000")] = Field(
        default=None,
        description="Where others find the worker, if that is not where it listens; with listen-address.",
    )
    port: Annotated[int | str | list[int] | None, daskkinds.ports] = Field(
        default=None, description="Where the nanny listens, as `dask worker --nanny-port`."
    )
    dashboard: Annotated[bool, daskkinds.truth] = Field(
        default=True, description="Whether the worker has a dashboard."
    )
    dashboard_address: Annotated[str, daskkinds.word("an address of a dashboard", "127.0.0.1:8789")] = Field(
        default=":0", description="Where the dashboard listens; port 0: whatever is free."
    )
    death_timeout: Annotated[
        float | None, kinds.duration("a duration above 0", "30s, 5min or none", none=True)
    ] = Field(
        default=None,
        description="nannyd ends, with status 68, if the scheduler was not to be reached for this time.",
    )
    drain_timeout: Annotated[float, kinds.duration("a duration", "0, 30s or 5min", zero=True)] = Field(
        default=30.0,
        description="The time in which a worker that is to stop moves its data to other workers, before"
        " worker.stop-timeout begins; 0: it does not.",
    )
    on_scheduler_close: Annotated[Then, _THEN] = Field(
        default=Then.END, description="What follows when the scheduler was closed on purpose."
    )
    on_retire: Annotated[Then, _THEN] = Field(
        default=Then.END, description="What follows when the scheduler has retired the worker."
    )
    on_connection_lost: Annotated[Then, _THEN] = Field(
        default=Then.RESTART, description="What follows when the scheduler was lost, or has lost the worker."
    )
    on_lifetime: Annotated[Then, _THEN] = Field(
        default=Then.RESTART, description="What follows when the worker's lifetime is over."
    )
    reconnect: Annotated[bool, daskkinds.truth] = Field(
        default=True, description="Whether a worker that ended is followed by another, as restart.mode says."
    )
    validate_: Annotated[bool | None, daskkinds.truth] = Field(
        default=None, description="Whether the worker checks its own state at every step, for debugging."
    )
    silence_logs: Annotated[int | None, daskkinds.level] = Field(
        default=None, description="The level below which the worker's own log is silent."
    )
    quiet: Annotated[bool, daskkinds.truth] = Field(
        default=False, description="Whether nannyd itself logs warnings and errors only."
    )
    blocked_handlers: Annotated[
        list[str], texts.strings("a list of operations", 'for example ["run", "plugin_add"]')
    ] = Field(default=[], description="What the nanny does not do for those who ask it over the network.")
    worker: dict[str, Annotated[Any, texts.free]] = Field(
        default={},
        description="Any further keyword argument of the class, such as lifetime or heartbeat-interval.",
    )
    config: Annotated[dict[str, Annotated[Any, texts.free]], Table(dotted=True)] = Field(
        default={},
        description="Dask's configuration, over what its own files and variables say; its dotted keys, or"
        " tables.",
    )
    tls: Tls = Field(
        default=Tls(),
        description="Certificates: the files ca, cert and key (a path, or a credential); and"
        " require-encryption, ciphers, min-version, max-version.",
    )

    def after(self) -> dict[Cause, Then]:
        """Return what follows when the worker closes itself."""
        return {
            Cause.SCHEDULER_CLOSE: self.on_scheduler_close,
            Cause.RETIRE: self.on_retire,
            Cause.CONNECTION_LOST: self.on_connection_lost,
            Cause.LIFETIME: self.on_lifetime,
        }
