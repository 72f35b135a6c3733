"""What operators can ask about plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nannyd.core.environ import HEADING, MASK, looks_secret
from nannyd.core.lifecycle import RestartRequested
from nannyd.supervisor.agentlife import AgentFailedError, CodeFailedError
from nannyd.supervisor.messages import CallError, Kind
from nannyd.supervisor.rights import Right
from nannyd.supervisor.spawn import SpawnError
from nannyd.supervisor.varlink import Method
from nannyd.supervisor.waits import error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.supervisor import Supervisor
    from nannyd.supervisor.varlink import Call


class Plugins:
    """The methods about plugins."""

    def __init__(
        self,
        agent: Agent,
        supervisor: Supervisor,
        tasks: asyncio.TaskGroup,
        wait_until_ready: Callable[[Call, int, dict[str, Any]], None],
        asked: Callable[[Call, str, str], None],
    ) -> None:
        """*wait_until_ready* answers a call when a life is ready; *asked* records who called what."""
        self._agent, self._supervisor, self._tasks = agent, supervisor, tasks
        self._wait_until_ready, self._asked = wait_until_ready, asked

    def methods(self) -> dict[str, Method]:
        """Return the methods by name."""
        add = {"name": Kind.MAYBE_STRING, "target": Kind.STRING, "kwargs": Kind.MAYBE_OBJECT}
        call = {"target": Kind.STRING, "arguments": Kind.MAYBE_OBJECT, "timeout": Kind.MAYBE_FLOAT}
        return {
            "PluginAdd": Method(Right.ALL, self._add, add),
            "PluginRemove": Method(Right.ALL, self._remove, {"name": Kind.STRING}),
            "Call": Method(Right.ALL, self._call, call),
        }

    def _add(self, call: Call, name: str | None, target: str, kwargs: dict[str, Any] | None) -> None:
        self._asked(call, "PluginAdd", f"{name or ''} {target}".strip())

        async def add() -> None:
            made, restart = await self._agent.plugin_add(name, target, kwargs or {})
            if not restart or self._supervisor.worker.ended:
                call.reply({"name": made, "restarted": False})
                return
            self._wait_until_ready(
                call, self._supervisor.worker.generation + 1, {"name": made, "restarted": True}
            )
            self._supervisor.handle(RestartRequested(f"plugin {made} was added"))

        self._answer(call, add())

    def _remove(self, call: Call, name: str) -> None:
        if name not in self._agent.plugins:
            raise error("NoSuchPlugin", name=name)
        self._asked(call, "PluginRemove", name)

        async def remove() -> None:
            await self._agent.plugin_remove(name)
            call.reply({})

        self._answer(call, remove())

    def _call(
        self,
        call: Call,
        target: str,
        arguments: dict[str, Any] | None,
        timeout: float | None,
    ) -> None:
        given = arguments or {}
        args, kwargs = given.get("args", []), given.get("kwargs", {})
        if given.keys() - {"args", "kwargs"} or not isinstance(args, list) or not isinstance(kwargs, dict):
            reason = "write {args: [...], kwargs: {...}}"
            raise error("InvalidArgument", parameter="arguments", reason=reason)
        self._asked(call, "Call", target)

        async def run() -> None:
            call.reply({"result": {"value": await self._agent.call(target, args, kwargs, timeout)}})

        self._answer(call, run())

    def _answer(self, call: Call, work: Coroutine[None, None, None]) -> None:
        async def answer() -> None:
            try:
                await work
            except CallError as refused:
                call.fail(refused)
            except CodeFailedError as failed:
                call.fail(error("CodeFailed", **failed.failure))
            except (AgentFailedError, SpawnError) as failed:
                call.fail(error("AgentFailed", reason=str(failed)))
            except KeyError as missing:  # removed meanwhile
                call.fail(error("NoSuchPlugin", name=str(missing.args[0])))

        self._tasks.create_task(answer())

    def explain(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an *answer* to Explain with the variables that plugins have set."""
        overrides = self._agent.overrides
        environment = [it for it in answer["explanation"]["environment"] if it["name"] not in overrides]
        settings, head, text = answer["text"].partition(HEADING)
        lines = [line for line in text.splitlines() if line.partition("=")[0] not in overrides]
        for name, override in sorted(overrides.items()):
            secret = looks_secret(name)
            value, origin = MASK if secret else override.value, override.owner
            environment.append(
                {"name": name, "value": value, "origin": origin, "when": "exec", "secret": secret}
            )
            lines.append(f"{name}={value}  # {origin}")
        environment.sort(key=lambda entry: str(entry["name"]))
        lines.sort(key=lambda line: line.partition("=")[0])
        explanation = {**answer["explanation"], "environment": environment}
        return {"text": settings + head + "".join(f"{line}\n" for line in lines), "explanation": explanation}
