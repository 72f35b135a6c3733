"""The agent: the process that the nanny's preloads and plugins run in, so that none of them runs here.

It is started when there is something for it and ends when there has been nothing for a while.  What was
added at run time, and what plugins have put into the worker's environment, is held here and outlives it.
The two talk JSON lines over a socket pair; `nannyd.agent` has the other end.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nannyd.core.plan import Plugin
from nannyd.core.restart import RestartPolicy, restart_delay
from nannyd.supervisor import notices
from nannyd.supervisor.agentlife import AgentFailedError, AgentLife, CodeFailedError, Room, told
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.core.plan import Plan
    from nannyd.supervisor.agentlife import Asking

SETUP_TIMEOUT = 30.0
"""Seconds for each preload and plugin to be set up, or taken down, before it is given up."""
DASK_TIMEOUT = 300.0
"""The same where a Dask plugin is among them: Dask sets no limit, and some of them install packages."""
TEARDOWN_TIMEOUT = 5.0
"""Seconds for all of them to be taken down before the worker is stopped."""
_BACK_OFF = RestartPolicy(delay=0.5, growth=2.0, max_delay=60.0, jitter=0.0)
_REST_TIMEOUT = 5.0
_CALM_TIMEOUT = 1.0
"""Seconds for a last answer to be given."""
_STABLE = 60.0
"""Seconds after which a crash is the first in a row again."""


@dataclass(slots=True)
class Override:
    """A variable of the next worker that a plugin has set."""

    value: str
    owner: str
    """`plugin NAME`, `preload NAME`, or `call TARGET`."""


@dataclass(slots=True)
class _Row:
    """Crashes in a row."""

    length: int = 0
    began: float = 0.0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Wanted:
    """What there is for the agent to do."""

    preloads: bool = False
    new: list[Plugin] = field(default_factory=list)
    """Those of the configuration until it is known what became of their setup."""
    plugins: dict[str, Plugin] = field(default_factory=dict)
    """Those that are set up, by name, in order."""
    calls: int = 0
    """Requests under way."""
    busy: bool = False
    """The agent answers others than us."""

    @property
    def lasting(self) -> bool:
        return self.preloads or bool(self.plugins or self.new)

    @property
    def anything(self) -> bool:
        return self.lasting or self.calls > 0 or self.busy


class Agent:
    """The agent of one instance, running or not."""

    def __init__(self, room: Room, plan: Callable[[], Plan], tasks: asyncio.TaskGroup, asked: Asking) -> None:
        """*plan* is the one in force; *asked* answers what the agent asks of us."""
        self._room, self._plan, self._tasks, self._asked = room, plan, tasks, asked
        self._life: AgentLife | None = None
        self._starting = asyncio.Lock()
        self._wanted = _Wanted()
        self._row = _Row()
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False
        self._overrides: dict[str, dict[str, str]] = {}
        """For each variable who has set it to what, the latest last: that is what holds."""
        self.restarts = 0
        self._facts: dict[str, Any] = {}
        self._calm = asyncio.Event()
        self._calm.set()
        self.serves = False
        """It answers on the listening socket."""
        self.extension: Callable[[], dict[str, Any] | None] = lambda: None
        """Returns what is to be in the agent beside the usual."""
        self.rested: Callable[[str], None] = lambda why: None
        """Is called when it answers on the listening socket no more, with why if it was not meant to."""
        self.changed: Callable[[], None] = lambda: None
        """Is called when `words` may have others to say."""

    # --- What others ask of it --------------------------------------------------------------------

    async def start(self) -> list[str]:
        """Set up the configured preloads and plugins; return what failed, in words."""
        plan = self._plan().agent
        self._wanted.preloads, self._wanted.new = bool(plan.preload), plan.plugins
        try:
            return await self._begin(again=False)
        except (SpawnError, AgentFailedError, CodeFailedError) as error:
            return [str(error)]

    async def plugin_add(self, name: str | None, target: str, kwargs: dict[str, Any]) -> tuple[str, bool]:
        """Set a plugin up; return its name and whether the worker is to be restarted for it.

        Raises CodeFailedError, AgentFailedError, SpawnError.
        """
        answer = await self._request(
            "plugin_add", _setup_timeout(target), name=name, target=target, kwargs=kwargs, again=False
        )
        made = str(answer["name"])
        self.keep(Plugin(made, target, kwargs))
        return made, bool(answer["restart"])

    def keep(self, plugin: Plugin) -> None:
        """Have *plugin*, which is set up and has a name, in every life of the agent from now on."""
        name = str(plugin.name)
        self._wanted.plugins.pop(name, None)  # one that replaces another comes last
        self._wanted.plugins[name] = plugin
        say(notices.PLUGIN_ADDED, plugin=name, target=plugin.target)

    def forget(self, name: str) -> None:
        """Have plugin *name*, which is taken down, in no later life of the agent; nor its variables."""
        self._wanted.plugins.pop(name, None)
        self.take_back(f"plugin {name}")
        say(notices.PLUGIN_REMOVED, plugin=name)
        self._rest()

    async def plugin_remove(self, name: str) -> None:
        """Take a plugin down and forget it and its variables.  Raises KeyError for an unknown one."""
        if name not in self._wanted.plugins:
            raise KeyError(name)
        try:
            await self._request("plugin_remove", SETUP_TIMEOUT, name=name)
        finally:
            self.forget(name)

    async def call(self, target: str, args: list[Any], kwargs: dict[str, Any], within: float | None) -> Any:
        """Return what the function *target* returns.  Raises as `plugin_add`."""
        return (await self._request("call", within, target=target, args=args, kwargs=kwargs)).get("value")

    async def serve(self, listener: int) -> None:
        """Let it answer on a listening socket, until `rested` is called.  Raises as `plugin_add`."""
        await self._request("serve", SETUP_TIMEOUT, listener)
        self.serves = self._life is not None

    async def publish(self, exits: list[dict[str, Any]]) -> None:
        """Tell the cluster of ends of workers, if it runs and can."""
        if self._life is not None:
            with suppress(AgentFailedError, CodeFailedError):
                await self._life.ask("publish", _REST_TIMEOUT, {"exits": exits})

    def doubt(self) -> None:
        """End it if it does not answer; it comes back if there is something for it."""
        if self._life is not None:
            self._life.look_soon(0)

    def tell(self, what: str, **info: Any) -> None:
        """Let plugins know of something that happened."""
        if self._life is not None:
            self._life.tell(what, info)

    def inform(self, facts: dict[str, Any]) -> None:
        """Bring the nanny object of the plugins up to date."""
        if facts != self._facts:
            self._facts = facts
            if self._life is not None:
                self._life.send({"tell": "facts", "facts": self._with_overrides()})

    def set_env(self, owner: str, name: str, value: str | None) -> str | None:
        """Change a variable of the next worker; None: what it was without *owner*.  Return its value then."""
        values = self._overrides.setdefault(name, {})
        values.pop(owner, None)
        if value is not None:
            values[owner] = value
        if not values:
            del self._overrides[name]
        return next(reversed(values.values()), None)

    def take_back(self, owner: str) -> None:
        """Forget all that *owner* has set, in an earlier life of the agent, too."""
        names = [name for name, values in self._overrides.items() if owner in values]
        for name in names:
            self.set_env(owner, name, None)
        if names and self._life is not None:
            self._life.send({"tell": "facts", "facts": self._with_overrides()})

    @property
    def overrides(self) -> dict[str, Override]:
        """Variables of the next worker that plugins have set."""
        last = {name: next(reversed(values.items())) for name, values in self._overrides.items()}
        return {name: Override(value, owner) for name, (owner, value) in last.items()}

    @property
    def plugins(self) -> list[str]:
        """Names of the plugins, in the order in which they were set up."""
        return list(self._wanted.plugins)

    @property
    def state(self) -> str:
        """`inactive`, `running`, or `auto-restart`."""
        if self._life is not None:
            return "running"
        return "auto-restart" if self._row.timer is not None else "inactive"

    def words(self) -> str:
        """Return what is to be said of the agent beside the worker; nothing while all is well."""
        return "the agent has failed and is started again soon" if self.state == "auto-restart" else ""

    @property
    def pid(self) -> int | None:
        """The agent's process."""
        return self._life.pid if self._life is not None else None

    def memory(self) -> int | None:
        """Return the bytes that the agent uses; None: not known."""
        return self._life.memory() if self._life is not None else None

    def apply(self) -> None:
        """Follow the plan that is in force now."""
        if self._life is not None:
            self._life.limit(self._plan().agent.memory_limit)
        self._rest()

    async def teardown(self) -> None:
        """Take down plugins and preloads, within a deadline; nothing is set up again."""
        self._closed = True
        if self._row.timer is not None:
            self._row.timer.cancel()
            self._row.timer = None
        if self._life is None or not self._wanted.lasting:
            return
        try:
            answer = await self._life.ask("teardown", TEARDOWN_TIMEOUT, {})
            for failure in answer.get("failed", []):
                say(notices.PLUGIN_FAILED, **told(failure))
        except (CodeFailedError, AgentFailedError) as error:
            say(notices.AGENT_FAILED, detail=f"not all was taken down: {error}")

    async def close(self) -> None:
        """End the agent, and wait until nobody is left of it."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        if self._life is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CALM_TIMEOUT):
                    await self._calm.wait()
        if self._life is not None:
            await self._life.end()

    # --- Its lives --------------------------------------------------------------------------------

    async def _request(
        self, do: str, within: float | None, descriptor: int | None = None, **parameters: Any
    ) -> dict[str, Any]:
        self._wanted.calls += 1
        try:
            await self._begin(again=True)
            if self._life is None:
                raise AgentFailedError("the agent has ended")
            if descriptor is not None:
                self._life.lend("nanny", descriptor)
            return await self._life.ask(do, within, parameters)
        finally:
            self._wanted.calls -= 1
            self._rest()

    async def _begin(self, *, again: bool) -> list[str]:
        """Start the agent if it does not run, with all it has to set up; return what failed.

        What it raises was told already, and will be tried again if there is something for the agent.
        """
        async with self._starting:
            if self._life is not None and self._life.is_ending:
                await self._life.end()
            if self._life is not None:
                return []
            if self._closed:
                raise AgentFailedError("the instance is about to end")
            if self._row.timer is not None:
                self._row.timer.cancel()
                self._row.timer = None
            plan = self._plan()
            wanted = [*self._wanted.plugins.values(), *self._wanted.new]
            specification = {
                "name": plan.name,
                "preload": plan.agent.preload if self._wanted.preloads else [],
                "preload_argv": plan.agent.preload_argv if self._wanted.preloads else [],
                "plugins": [{"name": it.name, "target": it.target, "kwargs": it.kwargs} for it in wanted],
                "entry_points": True,
                "facts": self._with_overrides(),
                "extension": self.extension(),
            }
            self._row.began = self._room.loop.time()
            try:
                life = AgentLife(self._room, plan, specification, self._tasks, self._asked, self._over)
            except SpawnError as error:
                self._over(str(error))
                raise
            self._life = life
            life.busy = self._is_busy
            say(notices.AGENT_STARTED, agent_pid=life.pid)
            self.changed()
            if not self._wanted.preloads and not wanted:
                return []
            parts = len(wanted) + (len(plan.agent.preload) if self._wanted.preloads else 0)
            try:
                within = max((_setup_timeout(it.target) for it in wanted), default=SETUP_TIMEOUT)
                answer = await life.ask("setup", within, {"again": again}, parts)
            except (AgentFailedError, CodeFailedError) as error:
                if self._life is life:  # it lives, and nobody knows what is set up in it
                    life.fail(str(error))
                raise
            self._note(wanted, answer)
            for failure in answer.get("failed", []):
                say(notices.PLUGIN_FAILED, **told(failure))
            return [f"{it['where']}: {it['type']}: {it['message']}" for it in answer.get("failed", [])]

    def _note(self, wanted: list[Plugin], answer: dict[str, Any]) -> None:
        """Remember the names of what was set up; what was once and failed now is tried again next time."""
        for plugin, name in zip(wanted, answer.get("plugins", []), strict=False):
            if name is not None:
                self._wanted.plugins[str(name)] = replace(plugin, name=str(name))
        self._wanted.new = []

    def _with_overrides(self) -> dict[str, Any]:
        return {**self._facts, "env": {name: override.value for name, override in self.overrides.items()}}

    def _is_busy(self, busy: bool) -> None:  # noqa: FBT001
        self._wanted.busy = busy
        if busy:
            self._calm.clear()
        else:
            self._calm.set()
        self._rest()

    def _over(self, why: str) -> None:
        """Learn that the agent has ended; if there is still something for it, it comes back."""
        self._life, self.serves = None, False
        self._wanted.busy = False
        self._calm.set()
        self.rested(why)
        if self._closed or not why:
            return
        say(notices.AGENT_FAILED, detail=why)
        now = self._room.loop.time()
        if now - self._row.began >= _STABLE:
            self._row.length = 0
        if self._wanted.lasting:
            delay = restart_delay(_BACK_OFF, self._row.length, 0.5)
            self._row.length += 1
            self._row.timer = self._room.loop.call_later(delay, self._again)
        self.changed()

    def _again(self) -> None:
        self._row.timer = None
        self.restarts += 1
        self._tasks.create_task(self._restart())

    async def _restart(self) -> None:
        with suppress(SpawnError, AgentFailedError, CodeFailedError):
            await self._begin(again=True)

    def _rest(self) -> None:
        """Let an agent that has nothing to do end after a while."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        timeout = self._plan().agent.idle_timeout
        if self._life is not None and not self._wanted.anything and timeout is not None:
            self._idle = self._room.loop.call_later(timeout, self._leave)

    def _leave(self) -> None:
        if self._life is not None and not self._wanted.anything:
            self._tasks.create_task(self._end_if_idle(self._life))

    async def _end_if_idle(self, life: AgentLife) -> None:
        """Let *life* go, unless it is asked for something at this very moment."""
        if self.serves:
            try:
                answer = await life.ask("rest", _REST_TIMEOUT, {})
            except (AgentFailedError, CodeFailedError):
                answer = {}
            if not answer.get("rests"):
                self._rest()
                return
            self.serves = False
        if not self._wanted.anything:
            await life.end()
        elif self._life is life:
            self.rested("")


def _setup_timeout(target: str) -> float:
    return DASK_TIMEOUT if target.startswith("nannyd.dask.") else SETUP_TIMEOUT
