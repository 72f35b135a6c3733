"""Where agent and supervisor meet: what one does before, after and because of the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nannyd.core.plan import PreloadFailure
from nannyd.supervisor import facts

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.dask import Dask
    from nannyd.supervisor.supervisor import Supervisor


def attend(agent: Agent, supervisor: Supervisor, tasks: asyncio.TaskGroup, dask: Dask | None) -> None:
    """Let *agent* prepare the first start, hear of the worker, change its environment, and clear up.

    What the worker is a member of, *dask*, hears of it, too.
    """
    plan = supervisor.plan.agent

    async def prepare() -> None:
        failed = await agent.start()
        if failed and plan.preload_failure is PreloadFailure.FAIL:
            supervisor.fail_start("; ".join(failed))
        else:
            supervisor.begin()

    def before_stop(go_on: Callable[[], None]) -> None:
        if agent.state == "inactive":
            go_on()
            return

        async def teardown() -> None:
            await agent.teardown()
            supervisor.post(go_on)

        tasks.create_task(teardown())

    supervisor.hear = agent.tell
    supervisor.words = agent.words
    agent.changed = supervisor.show
    supervisor.before_stop = before_stop
    of_dask = dask.facts if dask is not None else dict[str, Any]
    supervisor.watchers.append(lambda: agent.inform({**facts.for_plugins(supervisor), **of_dask()}))
    supervisor.place = replace(
        supervisor.place,
        overrides=lambda: {name: override.value for name, override in agent.overrides.items()},
    )
    if dask is not None:
        agent.extension = dask.extension
        supervisor.buried = dask.note_end
        supervisor.place = replace(supervisor.place, arguments=dask.arguments, heard=dask.hear)
    if plan.is_wanted:
        tasks.create_task(prepare())
    else:
        supervisor.begin()
