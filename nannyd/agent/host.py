"""The plugins of one agent: found, set up, told of the worker, torn down.

Plugins are known by their names; whatever happens under one name happens one after another, and what happens
under another name does not wait for it.  The order of plugins is that in which they were set up.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nannyd.agent.manner import PLAIN
from nannyd.agent.nanny import Nanny
from nannyd.agent.plugin import HOOKS, hook_argument, hook_of, is_nanny_plugin
from nannyd.agent.turns import Turns
from nannyd.agent.work import Failed, Work, describe, nobody
from nannyd.core.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from nannyd.agent.link import Link
    from nannyd.agent.manner import Manner
    from nannyd.agent.work import Witness

_ENTRY_POINTS = "nannyd.plugins"
"""The group of entry points whose names may stand for targets."""


@dataclass
class Hosted:
    """One plugin that was set up."""

    name: str
    plugin: Any
    hooks: Mapping[str, Callable[[object], Any]]
    manner: Manner
    nanny: Nanny
    last: Work | None = None
    """The last hook called; it may be past its deadline and still run."""

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"plugin {self.name}"

    async def set_up(self, timeout: float, witness: Witness) -> None:
        """Call `setup`, if the plugin has it.  Raises Failed."""
        setup = self._method("setup")
        await Work(self.where, lambda: self.manner.set_up(setup, self.nanny), witness).run(timeout)

    async def tear_down(self, timeout: float, witness: Witness) -> None:
        """Call `teardown`, if the plugin has it.  Raises Failed."""
        teardown = self._method("teardown")
        await Work(self.where, lambda: self.manner.tear_down(teardown, self.nanny), witness).run(timeout)

    def _method(self, name: str) -> Callable[[Any], Any]:
        return getattr(self.plugin, name, None) or (lambda _nanny: None)


@dataclass
class _Place:
    """What there is under one name, and whose turn it is."""

    turns: Turns = field(default_factory=Turns)
    hosted: Hosted | None = None


class Host:
    """All plugins."""

    def __init__(
        self,
        link: Link,
        say: Callable[[Mapping[str, Any]], None],
        *,
        entry_points: bool,
        manner: Callable[[str, Any], Manner] = lambda _target, _plugin: PLAIN,
    ) -> None:
        """*say* tells the supervisor what it did not ask for; *manner* is the one of a plugin."""
        self._link = link
        self._say = say
        self._entry_points = entry_points
        self._manner = manner
        self._places: dict[str, _Place] = {}

    def names(self) -> list[str]:
        """Return the names under which there is something, in order."""
        return list(self._places)

    def plugins(self) -> dict[str, Any]:
        """Return those that are set up, by name, in order."""
        return {name: it.hosted.plugin for name, it in self._places.items() if it.hosted is not None}

    async def add(
        self,
        name: str | None,
        target: str,
        kwargs: Mapping[str, Any],
        timeout: float,
        witness: Witness = nobody,
    ) -> tuple[str, bool]:
        """Make the plugin *target* and set it up; return its name, and whether it wants a restart.

        An older one of the same name is torn down first, in at most half of the time.  A plugin that fails is
        not kept.  Raises Failed; *witness* sees why.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        label = f"plugin {name or target}"
        make = Work(label, lambda: self._make(target, kwargs), witness)
        plugin, own_name, hooks = await make.run(timeout)
        name = name or own_name or self._new_name(type(plugin).__name__)
        hosted = Hosted(name, plugin, hooks, self._manner(target, plugin), Nanny(self._link, name))
        place = self._places.setdefault(name, _Place())
        try:
            async with place.turns.take(deadline - loop.time()):
                if place.hosted is not None:
                    await self._replace(place, (deadline - loop.time()) / 2)
                try:
                    await hosted.set_up(deadline - loop.time(), witness)
                    wants_restart = Work(hosted.where, lambda: bool(getattr(plugin, "restart", False)))
                    restart: bool = await wants_restart.run(timeout)
                except Failed:
                    hosted.nanny.env.take_back()
                    raise
                place.hosted = hosted
                self._places[name] = self._places.pop(name)  # one that replaces another comes last
        except TimeoutError as error:
            raise _too_busy(hosted.where, timeout) from error
        finally:
            self._tidy(name)
        if not is_nanny_plugin(plugin):
            kind = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
            message = f"{hosted.where}: {kind} does not inherit from nannyd.agent.NannyPlugin, as it should"
            self._say({"say": "deprecated", "message": message})
        return name, restart

    async def remove(self, name: str, timeout: float, witness: Witness = nobody) -> None:
        """Tear down the plugin *name*; whatever that does, it is gone then.  Raises Failed."""
        if await self.end(name, timeout, witness) is None:
            missing = KeyError(name)
            witness(missing)
            raise Failed(describe(f"plugin {name}", missing))

    async def end(self, name: str, timeout: float, witness: Witness = nobody) -> Hosted | None:
        """Tear down what there is under *name*, if anything, and return it.  Raises Failed.

        It waits half of the time for its turn: a hook that takes long must not keep a plugin from its end.
        """
        place = self._places.get(name)
        if place is None:
            return None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            async with place.turns.take(timeout / 2):
                return await self._tear_down(place, deadline - loop.time(), witness)
        except TimeoutError:
            return await self._tear_down(place, deadline - loop.time(), witness)
        finally:
            self._tidy(name)

    def tell(self, hook: str, info: Mapping[str, Any], timeout: float) -> list[Coroutine[Any, Any, None]]:
        """Return the calls of *hook*, one for every plugin that has one of its own."""
        return [
            self._call_hook(place, place.hosted, hook, info, timeout)
            for place in self._places.values()
            if place.hosted is not None and hook in place.hosted.hooks
        ]

    async def _call_hook(
        self, place: _Place, hosted: Hosted, hook: str, info: Mapping[str, Any], timeout: float
    ) -> None:
        try:
            async with place.turns.take(None):
                if place.hosted is not hosted:
                    return  # gone meanwhile
                if hosted.last is not None and hosted.last.is_running():
                    raise Failed(describe(hosted.where, TimeoutError(f"still busy; {hook}() is not called")))
                hosted.last = Work(hosted.where, lambda: hosted.hooks[hook](hook_argument(hook, info)))
                await hosted.last.run(timeout)
        except Failed as failed:
            self._say({"say": "error", "error": failed.error})
        finally:
            self._tidy(hosted.name)

    async def _replace(self, place: _Place, timeout: float) -> None:
        try:
            await self._tear_down(place, timeout)
        except Failed as failed:
            self._say({"say": "error", "error": failed.error})

    async def _tear_down(self, place: _Place, timeout: float, witness: Witness = nobody) -> Hosted | None:
        hosted, place.hosted = place.hosted, None
        if hosted is not None:
            try:
                await hosted.tear_down(timeout, witness)
            finally:
                hosted.nanny.env.take_all_back()
        return hosted

    def _make(
        self, target: str, kwargs: Mapping[str, Any]
    ) -> tuple[Any, str | None, dict[str, Callable[[object], Any]]]:
        """Import and construct a plugin; runs in its thread, as all does that may be code of the plugin's.

        Returns it with its name and hooks.
        """
        plugin = self._find(target)(**kwargs)
        hooks = {hook: function for hook in HOOKS if (function := hook_of(plugin, hook)) is not None}
        if not hooks and not any(callable(getattr(plugin, name, None)) for name in ("setup", "teardown")):
            raise TypeError(f"plugin {target!r}: has neither setup() nor teardown()")
        name = getattr(plugin, "name", None)
        return plugin, name if isinstance(name, str) else None, hooks

    def _find(self, target: str) -> Callable[..., Any]:
        if self._entry_points and ":" not in target:
            from importlib import metadata

            found = list(metadata.entry_points(group=_ENTRY_POINTS, name=target))
            if found:
                return found[0].load()  # type: ignore[no-any-return]
            raise ValueError(
                f"plugin {target!r}: is neither of the form 'package.module:Class' nor an entry point of "
                f"the group {_ENTRY_POINTS}"
            )
        return find_target(target, "plugin")

    def _new_name(self, kind: str) -> str:
        number = 1
        while f"{kind}-{number}" in self._places:
            number += 1
        return f"{kind}-{number}"

    def _tidy(self, name: str) -> None:
        place = self._places.get(name)
        if place is not None and place.hosted is None and place.turns.is_free():
            del self._places[name]


def _too_busy(where: str, timeout: float) -> Failed:
    return Failed(describe(where, TimeoutError(f"was busy with something else for {timeout:.3g} s")))
