"""Every setting, once: file key, variable, option, manual and JSON schema are made from this model.

pydantic-settings lives in `nannyd.config` and nowhere else.  The values come from the merged layers
(`layers`, `tree`) through one source; what each layer is called, and which wins, is decided there.
The names of variables follow pydantic-settings: `NANNYD_` + section + `__` + key.

Durations are seconds, sizes bytes; None means what the description says.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo  # noqa: TC002 (pydantic resolves annotations at run time)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nannyd.config import kinds, texts
from nannyd.config.dask import Dask
from nannyd.config.kinds import Kind, Limit
from nannyd.config.section import NO_TABLE, Section, Table, VariableTable, kebab
from nannyd.core.plan import KillMode, MemoryMode, PreloadFailure, Ready
from nannyd.core.restart import RestartMode, RestartPolicy

PREFIX = "NANNYD_"
DELIMITER = "__"

_POLICY = RestartPolicy()
_FINITE = ("a finite duration above 0", "30, 30s or 5min")
_OPTIONAL = ("a duration above 0", "30s, 5min or none")
_DELAY = ("a duration", "0, 500ms or 30s")


class Worker(Section):
    """What is run, and how."""

    command: Annotated[list[str] | None, texts.command] = Field(
        default=None, description="The program to run and its arguments, without a shell."
    )
    class_: Annotated[str | None, texts.class_name] = Field(
        default=None, description="A Python class to run instead of a command, `package.module:Class`."
    )
    kwargs: dict[str, Annotated[Any, texts.free]] = Field(
        default={}, description='Keyword arguments of the class; a value may be `{ credential = "name" }`.'
    )
    args: Annotated[list[Any], texts.free_list] = Field(
        default=[], description="Positional arguments of the class."
    )
    python: Annotated[str | None, texts.path("/srv/app/venv/bin/python")] = Field(
        default=None, description="The interpreter of Python workers; by default nannyd's own."
    )
    ready: Annotated[Ready | None, kinds.choice(Ready, "a kind of readiness")] = Field(
        default=None,
        description="When the worker counts as ready: as soon as it is executed (exec, the default of a"
        " command), or when it says READY=1 (notify, the default of a class).",
    )
    working_directory: Annotated[str | None, texts.path("/srv/app")] = Field(
        default=None, description="Where the worker starts; by default where nannyd runs."
    )
    local_directory: Annotated[str | None, texts.path("/var/tmp")] = Field(  # noqa: S108 (an example)
        default=None,
        description="Where the worker's private scratch directory is made; by default $STATE_DIRECTORY,"
        " else $TMPDIR.",
    )
    umask: Annotated[int | None, kinds.umask] = Field(
        default=None, description='The file mode mask, in octal: "0027"; by default inherited.'
    )
    nice: Annotated[
        int | None, kinds.integer(-20, 19, "a nice level", "a whole number from -20 to 19", none=True)
    ] = Field(default=None, description="The CPU priority, -20 (first) to 19 (last); by default inherited.")
    oom_score_adj: Annotated[
        int, kinds.integer(-1000, 1000, "an OOM score adjustment", "a whole number from -1000 to 1000")
    ] = Field(default=0, description="How soon the kernel's OOM killer takes the worker, -1000 to 1000.")
    start_timeout: Annotated[float | None, kinds.duration(*_OPTIONAL, none=True)] = Field(
        default=None, description="A worker that is not ready after this time is ended."
    )
    stop_signal: Annotated[int, kinds.stop_signal] = Field(
        default=int(signal.SIGTERM), description="The signal that asks a command to stop."
    )
    stop_timeout: Annotated[float, kinds.duration(*_FINITE)] = Field(
        default=30.0,
        description="The time a worker has to stop; after 80 % of it, all its processes are killed.",
    )
    kill_mode: Annotated[KillMode, kinds.choice(KillMode, "a kill mode")] = Field(
        default=KillMode.MIXED,
        description="Who gets the stop signal: the main process (mixed) or all (control-group).",
    )
    watchdog: Annotated[float | None, kinds.duration(*_OPTIONAL, none=True)] = Field(
        default=None, description="A worker that does not say WATCHDOG=1 for this time is ended."
    )
    threads: Annotated[
        int | None, kinds.integer(1, None, "a number of threads", "a whole number from 1", none=True)
    ] = Field(
        default=None,
        description="How many threads the worker uses: its share of the CPUs is its share of an automatic"
        " memory limit.",
    )
    preload: Annotated[list[str], texts.strings("a list of modules", 'for example ["my.module"]')] = Field(
        default=[], description="Modules, or .py files, that run inside the worker before the class."
    )
    preload_argv: Annotated[list[str] | list[list[str]], texts.preload_argv] = Field(
        default=[], description="Arguments of the preloads: one list for all of them, or a list for each."
    )


class Memory(Section):
    """The memory limit, and what happens before it is met."""

    limit: Annotated[Limit, kinds.limit] = Field(
        default=Limit(auto=True),
        description="The worker's limit: a size, a fraction of what this place offers, `auto` for all of"
        " that (shared by CPUs if worker.threads is set), or `none`.",
    )
    warn: Annotated[float | None, kinds.threshold] = Field(
        default=0.8, description="The fraction of the limit at which a warning is logged."
    )
    terminate: Annotated[float | None, kinds.threshold] = Field(
        default=0.95, description="The fraction of the limit at which the worker is ended and started anew."
    )
    max: Annotated[float | None, kinds.threshold] = Field(
        default=1.0, description="The fraction of the limit at which the kernel kills the worker."
    )
    swap: Annotated[int | None, kinds.swap] = Field(
        default=0, description="How much swap the worker may use; `infinity`: as much as there is."
    )
    mode: Annotated[MemoryMode, kinds.choice(MemoryMode, "a way to watch memory")] = Field(
        default=MemoryMode.AUTO,
        description="How memory is watched: by the worker's cgroup, by polling, or the better of what works.",
    )


class Restart(Section):
    """When a worker that ended is started again."""

    mode: Annotated[RestartMode, kinds.choice(RestartMode, "a restart mode")] = Field(
        default=_POLICY.mode, description="After which ends, as systemd's Restart=."
    )
    immediate: Annotated[int | None, kinds.integer(0, None, "a number of restarts", "0 or more")] = Field(
        default=None,
        description="How many restarts in a row come at once, before those that wait; by default none, and"
        " one for a Dask worker.",
    )
    delay: Annotated[float, kinds.duration(*_DELAY, zero=True)] = Field(
        default=_POLICY.delay, description="The time before the first restart in a row that waits."
    )
    growth: Annotated[float, kinds.number(1, "a factor of at least 1", "for example 2")] = Field(
        default=_POLICY.growth, description="The factor by which the delay grows in a row of restarts."
    )
    max_delay: Annotated[float, kinds.duration(*_DELAY, zero=True)] = Field(
        default=_POLICY.max_delay, description="The longest delay."
    )
    jitter: Annotated[float, kinds.share("a fraction from 0 to 1", "for example 0.1 or 10%")] = Field(
        default=_POLICY.jitter, description="The share of the delay by which it varies at random."
    )
    reset_after: Annotated[float | None, kinds.duration(*_OPTIONAL, none=True)] = Field(
        default=_POLICY.reset_after,
        description="A worker that was ready for this time resets the growth and the start limit.",
    )
    start_limit_interval: Annotated[float, kinds.duration(*_FINITE)] = Field(
        default=_POLICY.start_limit_interval, description="The time in which starts are counted."
    )
    start_limit_burst: Annotated[int, kinds.integer(0, None, "a number of starts", "0 or more")] = Field(
        default=_POLICY.start_limit_burst,
        description="The starts allowed in that time; 0: no limit.",
    )


class Nanny(Section):
    """The worker's environment, and your own code beside it."""

    env: VariableTable = Field(
        default={}, description="Variables that win over nannyd's own environment, as `--env` does."
    )
    environ: VariableTable = Field(
        default={},
        description="Variables that nannyd's own environment wins over; a class gets them just before its"
        " first import.",
    )
    pre_spawn_environ: VariableTable = Field(
        default={},
        description="Like environ, but in place when the program is executed: malloc, ld.so and the Python"
        " interpreter read theirs only then.",
    )
    unset: Annotated[list[str], texts.unset] = Field(
        default=[], description="Variables of nannyd's own environment that the worker does not get."
    )
    preload: Annotated[list[str], texts.strings("a list of modules", 'for example ["my.module"]')] = Field(
        default=[],
        description="Modules, or .py files, that run in the agent, a process of their own, before the first"
        " worker.",
    )
    preload_argv: Annotated[list[str] | list[list[str]], texts.preload_argv] = Field(
        default=[], description="Arguments of those preloads: one list for all of them, or a list for each."
    )
    plugins: Annotated[list[dict[str, Any]], texts.plugins] = Field(
        default=[],
        description="Plugins that run in the agent: classes `package.module:Class`, names of entry points, or"
        " tables with class, name and kwargs.",
    )
    preload_failure: Annotated[PreloadFailure, kinds.choice(PreloadFailure, "a way to go on")] = Field(
        default=PreloadFailure.FAIL,
        description="What a preload or configured plugin that cannot be set up means: nannyd does not start"
        " (fail), or it goes on without (ignore).",
    )


class Agent(Section):
    """The process that preloads and plugins of the nanny run in."""

    memory_limit: Annotated[int | None, kinds.size_or_none] = Field(
        default=512 << 20, description="Its own memory limit, a size or `none`; it takes a delegated cgroup."
    )
    idle_timeout: Annotated[float | None, kinds.duration(*_OPTIONAL, none=True)] = Field(
        default=60.0, description="An agent that has nothing to do ends after this time."
    )


class LayersSource(PydanticBaseSettingsSource):
    """The merged layers, as the one source of pydantic-settings."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        """Remember *values*, a tree of plain values."""
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of one section."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all values."""
        return self._values


class Settings(BaseSettings):
    """All settings of one instance; made by `from_layers`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        validate_default=False,
        hide_input_in_errors=True,
    )

    worker: Worker = Worker()
    memory: Memory = Memory()
    restart: Restart = Restart()
    nanny: Nanny = Nanny()
    agent: Agent = Agent()
    dask: Dask | None = None
    """None: the instance is no worker of a Dask cluster."""

    @classmethod
    def from_layers(cls, values: dict[str, Any]) -> Settings:
        """Return the settings of a merged tree: `{"memory": {"limit": "4GiB"}, …}`."""
        arguments: dict[str, Any] = {"layers": values}
        return cls(**arguments)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the merged layers only: precedence and origins are decided there."""
        return (LayersSource(settings_cls, init_settings()["layers"]),)


BUILT_IN: dict[str, Any] = {"nanny": {"pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": "65536"}}}
"""The lowest layer: defaults that a file can drop key by key.  The value is the Nanny's own."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the sources see it."""

    section: str
    key: str
    attribute: str
    description: str
    default: Any
    is_table: bool
    is_variables: bool
    """A table of environment variables: texts are taken as they stand."""
    is_json: bool
    table: Table = NO_TABLE
    keys: tuple[str, ...] = ()
    """The keys of a table that has but these."""

    @property
    def name(self) -> str:
        """The dotted name, `memory.limit`."""
        return f"{self.section}.{self.key}"

    @property
    def option(self) -> str:
        """The option, `--memory.limit`."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The variable, `NANNYD_MEMORY__LIMIT`."""
        return f"{PREFIX}{self.section}{DELIMITER}{self.key.replace('-', '_')}".upper()


SECTIONS: dict[str, type[Section]] = {
    "worker": Worker, "memory": Memory, "restart": Restart, "nanny": Nanny, "agent": Agent,
    "dask": Dask,
}  # fmt: skip


@cache
def catalogue() -> dict[str, dict[str, Setting]]:
    """Return every setting, by section and key, in the order of the model."""
    return {
        section: {
            (key := kebab(attribute)): _setting(section, key, attribute, field)
            for attribute, field in model.model_fields.items()
        }
        for section, model in SECTIONS.items()
    }


def _setting(section: str, key: str, attribute: str, field: FieldInfo) -> Setting:
    inner = field.annotation
    model = inner if isinstance(inner, type) and issubclass(inner, Section) else None
    return Setting(
        section,
        key,
        attribute,
        description=field.description or "",
        default=field.default if model is None else {},
        is_table=get_origin(inner) is dict or model is not None,
        is_variables=field.annotation == VariableTable,
        is_json=any(isinstance(kind, Kind) and kind.is_json for kind in field.metadata),
        table=next((item for item in field.metadata if isinstance(item, Table)), NO_TABLE),
        keys=() if model is None else tuple(map(kebab, model.model_fields)),
    )


def every_setting() -> list[Setting]:
    """Return every setting in the order of the model."""
    return [setting for section in catalogue().values() for setting in section.values()]
