"""The agent's side of the conversation: each request of the supervisor's, and what it makes happen.

A request is `{"id": 7, "do": WHAT, "timeout": SECONDS, …}`.  It is answered once, whatever happens, by
`{"id": 7, "ok": {…}}` or `{"id": 7, "error": {where, type, message, traceback}}`; requests may overlap.

    WHAT           with                            ok
    setup                                          failed: [error, …], plugins: [name|null, …]
    plugin_add     name|null target kwargs again   name, restart
    plugin_remove  name
    teardown                                       failed: [error, …]
    call           target args kwargs              value
    ping

and what the extension does, if the specification names one.

`timeout` is for the whole, but for setup: there each preload and plugin has it.  Only a call may have null.
The names of setup are in the order of the specification; null is one that failed.
Not answered: `{"tell": "facts", "facts": {…}}`, and `{"tell": HOOK, "info": {…}, "timeout": SECONDS}`.

The agent asks `{"ask": 9, "what": …, "parameters": {…}}`, answered by `{"answer": 9, "ok": {}}` or
`{"answer": 9, "error": {name, parameters}}`.  The supervisor must answer while a request of its own is
under way: setup() may wait for it.  The agent says `{"say": "error", "error": {…}}`, where a hook or the
teardown of a replaced plugin fails, and `{"say": "deprecated", "message": …}`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from nannyd.agent.call import call
from nannyd.agent.channel import Channel, Specification, encode
from nannyd.agent.host import Host
from nannyd.agent.link import Link
from nannyd.agent.manner import PLAIN
from nannyd.agent.nanny import Nanny
from nannyd.agent.plugin import NannyPlugin, is_nanny_plugin
from nannyd.agent.preloads import Preloads
from nannyd.agent.turns import Turns
from nannyd.agent.work import Failed, Work, describe
from nannyd.core import wire
from nannyd.core.target import find_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from nannyd.agent.manner import Extension, Manner

_HOOK_TIMEOUT = 30.0
"""Seconds that a plugin has for what it is told of the worker, where the supervisor does not say."""
_LEAST = 0.1
"""Seconds that a teardown gets when all the time was used up before."""


class Service:
    """One conversation."""

    def __init__(self, spec: Specification, channel: Channel) -> None:
        """*channel* is open, and its first line read."""
        self._spec = spec
        self._channel = channel
        self._link = Link(spec.name, spec.facts, channel.send)
        self._host = Host(
            self._link, channel.send, entry_points=spec.entry_points, manner=self._manner_of_plugin
        )
        self._extension = self._extend()
        self._preloads = Preloads(self._link, self._extension or PLAIN)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns = Turns()
        """Setup and teardown of all are not done at the same time, if it can be helped."""
        self._ending = False
        self._does: dict[str, Callable[[Mapping[str, Any]], Awaitable[str]]] = {
            "setup": self._set_up,
            "plugin_add": self._plugin_add,
            "plugin_remove": self._plugin_remove,
            "teardown": self._tear_down,
            "call": self._call,
            "ping": self._ping,
        }

    def _extend(self) -> Extension | None:
        if self._spec.extension is None:
            return None
        make = find_target(self._spec.extension["target"], "extension")
        extension: Extension = make(
            self._link, self._host, self._channel.send, self._spec.extension["arguments"]
        )
        return extension

    def _manner_of_plugin(self, target: str, plugin: object) -> Manner:
        """Return the extension for a plugin that it has found itself, or that is another library's."""
        if self._extension is None:
            return PLAIN
        package = type(self._extension).__module__.rpartition(".")[0]
        foreign = is_nanny_plugin(plugin) and not isinstance(plugin, NannyPlugin)
        return self._extension if foreign or target.startswith(f"{package}.") else PLAIN

    def take(self, message: Mapping[str, Any]) -> None:
        """Handle one line of the supervisor's."""
        if "answer" in message:
            self._link.take_answer(message["answer"], message)
        elif "do" in message:
            self._keep(self._answer(message))
        elif message.get("tell") == "facts":
            self._link.learn(message["facts"])
        else:
            timeout = message.get("timeout", _HOOK_TIMEOUT)
            for hook in self._host.tell(message["tell"], message["info"], timeout):
                self._keep(hook)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Mapping[str, Any]) -> None:
        """Do what *request* wants and answer it."""
        number, what = request["id"], str(request["do"])
        try:
            if what in self._does:
                ok = await self._does[what](request)
            elif self._extension is not None and what in self._extension.does:
                ok = encode(await self._extension.does[what](request))
            else:
                raise ValueError(f"the agent cannot {what!r}")
        except Failed as failed:
            self._channel.send({"id": number, "error": failed.error})
        except Exception as error:  # noqa: BLE001 (it is told)
            self._channel.send({"id": number, "error": describe(f"agent {what}", error)})
        else:
            self._channel.send_text(f'{{"id":{encode(number)},"ok":{ok}}}')

    async def _set_up(self, request: Mapping[str, Any]) -> str:
        """Set up preloads, then plugins.  Each has the time of the request for itself.

        A teardown that is asked for meanwhile lets what is under way end, and the rest not begin.
        """
        timeout, spec = request["timeout"], self._spec
        failed: list[dict[str, str]] = []
        names: list[str | None] = [None] * len(spec.plugins)

        async def add(index: int, plugin: Mapping[str, Any]) -> None:
            names[index], _ = await self._host.add(
                plugin["name"], plugin["target"], plugin["kwargs"], timeout
            )

        argvs = [*spec.preload_argv, *([] for _ in spec.preload)]
        todo: list[Callable[[], Awaitable[object]]] = [
            *(
                lambda name=name, argv=argv: self._preloads.set_up(name, argv, timeout)
                for name, argv in zip(spec.preload, argvs, strict=False)
            ),
            *(
                lambda index=index, plugin=plugin: add(index, plugin)
                for index, plugin in enumerate(spec.plugins)
            ),
        ]
        async with self._turns.take(None):
            for set_up in todo:
                if not self._ending:
                    failed += await _error_of(set_up())
        return encode({"failed": _fitting(failed), "plugins": names})

    async def _plugin_add(self, request: Mapping[str, Any]) -> str:
        timeout = request["timeout"]
        name, restart = await self._host.add(request["name"], request["target"], request["kwargs"], timeout)
        return encode({"name": name, "restart": restart and not request["again"]})

    async def _plugin_remove(self, request: Mapping[str, Any]) -> str:
        await self._host.remove(request["name"], request["timeout"])
        return "{}"

    async def _tear_down(self, request: Mapping[str, Any]) -> str:
        """Tear down plugins, then preloads, the last one first.

        The time is for all; each but the last gets at most half of what is left, lest one takes it all; so
        does what is being set up.
        """
        loop = asyncio.get_running_loop()
        timeout, self._ending = request["timeout"], True
        deadline = loop.time() + timeout
        with contextlib.suppress(TimeoutError):
            async with self._turns.take(timeout / 2):
                pass
        todo: list[Callable[[float], Awaitable[object]]] = [
            *(lambda left, name=name: self._preloads.end(name, left) for name in self._preloads.names()),
            *(lambda left, name=name: self._host.end(name, left) for name in self._host.names()),
        ]
        failed = []
        while todo:
            end = todo.pop()
            left = max(deadline - loop.time(), _LEAST)
            failed += await _error_of(end(left / 2 if todo else left))
        return encode({"failed": _fitting(failed)})

    async def _call(self, request: Mapping[str, Any]) -> str:
        target = request["target"]
        where = f"call {target}"
        nanny = Nanny(self._link, where)
        work = Work(where, lambda: call(target, request["args"], request["kwargs"], nanny))
        return f'{{"value":{await work.run(request["timeout"])}}}'

    async def _ping(self, _request: Mapping[str, Any]) -> str:
        return "{}"


async def _error_of(work: Awaitable[object]) -> list[dict[str, str]]:
    """Await *work* and return the error it ends with, or nothing."""
    try:
        await work
    except Failed as failed:
        return [failed.error]
    return []


def _fitting(errors: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return *errors*, shortened so that all together fit one line."""
    most = 2 * wire.ERROR_MAX // max(len(errors), 1)
    return [
        {**error, "message": error["message"][:most], "traceback": error["traceback"][-most:]}
        for error in errors
    ]
