"""What the agent asks for, over its channel: for a plugin, or for somebody in the Dask cluster.

Most of it is done by the same methods as operators use.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from nannyd.core.environ import OURS
from nannyd.core.lifecycle import KillRequested, RestartRequested
from nannyd.supervisor import messages
from nannyd.supervisor.messages import CallError, Kind
from nannyd.supervisor.rights import Peer, Right
from nannyd.supervisor.varlink import Method
from nannyd.supervisor.waits import error, seconds, until_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.agentlife import AgentLife
    from nannyd.supervisor.dask import Dask
    from nannyd.supervisor.ring import Ring
    from nannyd.supervisor.supervisor import Supervisor
    from nannyd.supervisor.varlink import Call
    from nannyd.supervisor.waits import Verdict

_METHODS = {
    "restart": "Restart",
    "kill": "Kill",
    "instantiate": "Instantiate",
    "close": "Terminate",
    "close_gracefully": "CloseGracefully",
    "log_event": "LogEvent",
}
"""What a nanny object does, and the method that does the same for an operator."""
_RESPAWN_TIMEOUT = 5.0
"""Seconds for a worker to end that is to be replaced, where nobody says otherwise.  As Dask's Nanny has it:
who asks is often the scheduler, which misses a heartbeat."""
_LOG_BYTES = 900_000
"""Of records in one answer; `wire.LINE_MAX` is for all of it."""
LEVELS = ("CRITICAL", "CRITICAL", "CRITICAL", "ERROR", "WARNING", "INFO", "INFO", "DEBUG")
"""Of `logging`, by the number of syslog(3)."""


class AgentCall:
    """A call by the agent, to be answered over its channel: to a method it looks like any other."""

    more = oneway = False
    right = Right.ALL

    def __init__(self, life: AgentLife, number: int) -> None:
        """Answer number *number*."""
        self._life, self._number = life, number
        self.peer = Peer(life.pid, os.geteuid(), os.getegid(), frozenset())
        self.open = True

    def reply(self, parameters: dict[str, Any]) -> None:
        """Answer."""
        if self.open:
            self.open = False
            self._life.answer(self._number, parameters)

    def fail(self, failed: CallError) -> None:
        """Answer with an error."""
        if self.open:
            self.open = False
            name = failed.error.rpartition(".")[2]
            self._life.answer(self._number, None, {"name": name, "parameters": failed.parameters})

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Do nothing: an agent that is gone needs no answer, and sending it one does no harm."""


class Asked:
    """Everything that can be asked for."""

    def __init__(
        self,
        agent: Agent,
        supervisor: Supervisor,
        ring: Ring,
        dask: Dask | None,
        methods: dict[str, Method],
        wait: Callable[[Call, float | None, Callable[[], Verdict]], None],
    ) -> None:
        """*methods* are those of operators; *wait* answers a call when there is a verdict."""
        self._agent, self._supervisor, self._ring, self._wait = agent, supervisor, ring, wait
        self._words = {word: methods[name] for word, name in _METHODS.items()}
        again = {"timeout": Kind.MAYBE_FLOAT, "reason": Kind.MAYBE_STRING}
        self._words["respawn"] = Method(Right.ALL, self._respawn, again)
        self._words["get_logs"] = Method(Right.ALL, self._get_logs, {"n": Kind.MAYBE_INT})
        if dask is not None:
            self._words |= _of_dask(dask)

    def answer(self, life: AgentLife, number: int, what: str, parameters: dict[str, Any]) -> None:
        """Do what the agent asks for."""
        call: Any = AgentCall(life, number)
        try:
            reply = self._do(call, what, parameters)
        except CallError as failed:
            call.fail(failed)
        else:
            if reply is not None:
                call.reply(reply)

    def _do(self, call: Any, what: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
        if what == "set_env":
            return {"value": _set_env(self._agent, parameters)}
        if what == "take_back":
            self._agent.take_back(_owner(str(parameters.get("plugin"))))
            return {}
        method = self._words.get(what)
        if method is None:
            raise error("InvalidArgument", parameter="what", reason=f"{what!r} is not asked of a nanny")
        if what == "log_event" and not isinstance(parameters.get("message"), str):
            parameters = {**parameters, "message": json.dumps(parameters.get("message"))}
        reply: dict[str, Any] | None = method.handle(call, **messages.arguments(method.takes, parameters))
        return reply

    def _respawn(self, call: Call, timeout: float | None, reason: str | None) -> dict[str, Any] | None:
        """End this life, start the next at once, answer between the two: what Dask calls `kill`."""
        supervisor, why = self._supervisor, reason or "Dask"
        usual = min(_RESPAWN_TIMEOUT, supervisor.plan.worker.stop_timeout)
        within = usual if timeout is None else seconds(timeout)
        life, generation = supervisor.life, supervisor.worker.generation
        if life is not None:
            self._wait(
                call,
                None,
                lambda: {} if until_over(generation, supervisor.worker, None) is not None else None,
            )
        if supervisor.ending:
            supervisor.handle(KillRequested(why, within))
        elif supervisor.begun:
            supervisor.handle(RestartRequested(why, within))
        return {} if life is None else None

    def _get_logs(self, _: Call, n: int | None) -> dict[str, Any]:
        """Return our last records, newest first, as Dask words them."""
        found: list[tuple[float, str, str]] = []
        left = _LOG_BYTES
        for record in self._ring.newest(None if n is None else max(0, n), 7):
            entry = (record["at"] / 1e6, LEVELS[record["priority"]], record["message"])
            left -= len(json.dumps(entry)) + 2
            if left < 0:
                break
            found.append(entry)
        return {"records": found}


def _of_dask(dask: Dask) -> dict[str, Method]:
    def added(_: Call, name: str, digest: str, failed: bool | None, **__: object) -> dict[str, Any]:  # noqa: FBT001
        dask.plugin_added(name, digest, failed=bool(failed))
        return {}

    def removed(_: Call, name: str) -> dict[str, Any]:
        return {"known": dask.plugin_removed(name)}

    takes = {"name": Kind.STRING, "path": Kind.STRING, "digest": Kind.STRING, "failed": Kind.MAYBE_BOOL}
    return {
        "plugin_added": Method(Right.ALL, added, takes),
        "plugin_removed": Method(Right.ALL, removed, {"name": Kind.STRING}),
    }


def _set_env(agent: Agent, parameters: dict[str, Any]) -> str | None:
    plugin, name, value = (parameters.get(key) for key in ("plugin", "name", "value"))
    named = isinstance(name, str) and name and "=" not in name and "\0" not in name
    if not named or not isinstance(plugin, str) or not (value is None or isinstance(value, str)):
        reason = "name and value are strings, the name without ="
        raise error("InvalidArgument", parameter="name", reason=reason)
    if name in OURS:
        raise error("InvalidArgument", parameter="name", reason=f"{name} is set by nannyd itself")
    if isinstance(value, str) and "\0" in value:
        raise error("InvalidArgument", parameter="value", reason="has a NUL character")
    return agent.set_env(_owner(plugin), str(name), value)


def _owner(plugin: str) -> str:
    return plugin if plugin.startswith(("preload ", "call ")) else f"plugin {plugin}"
