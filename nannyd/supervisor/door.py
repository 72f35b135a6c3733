"""The nanny's listening socket while nobody answers on it."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import TYPE_CHECKING

from nannyd.core.restart import RestartPolicy, restart_delay
from nannyd.supervisor import notices
from nannyd.supervisor.agentlife import AgentFailedError, CodeFailedError, told
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    import asyncio
    import socket

    from nannyd.supervisor.agent import Agent

_BACK_OFF = RestartPolicy(delay=0.5, growth=2.0, max_delay=60.0, jitter=0.0)
_TRIES = 3
"""So often in a row nobody may come to answer before those who wait for it are turned away."""
_PATIENCE = 5.0
"""Seconds that somebody may wait to be let in before it is asked whether the agent lives."""
_BACKLOG_MAX = 4096


class Door:
    """The listening socket: who knocks starts the agent, which then opens by itself."""

    def __init__(self, agent: Agent, loop: asyncio.AbstractEventLoop, tasks: asyncio.TaskGroup) -> None:
        """There is no socket yet."""
        self._agent, self._loop, self._tasks = agent, loop, tasks
        self._socket: socket.socket | None = None
        self._failures = 0
        self._serves = False
        self._timer: asyncio.TimerHandle | None = None
        agent.rested = self._rested

    def open(self, listener: socket.socket) -> None:
        """Take over *listener* and look at it."""
        self._socket = listener
        self._look()

    def _look(self) -> None:
        """Wait for who knocks, while somebody answers, too, in case that this stops."""
        self._timer = None
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._knocked)

    def _knocked(self) -> None:
        assert self._socket is not None  # noqa: S101 - it is looked at
        self._loop.remove_reader(self._socket)
        if self._serves:
            self._timer = self._loop.call_later(_PATIENCE, self._let_in, self._socket)
        else:
            self._tasks.create_task(self._serve(self._socket))

    def _let_in(self, listener: socket.socket) -> None:
        """Doubt an agent that has let nobody in all the time."""
        queue = select.poll()
        queue.register(listener, select.POLLIN)
        if queue.poll(0):
            self._agent.doubt()
        self._look()

    async def _serve(self, listener: socket.socket) -> None:
        """Start the agent for who has connected.  The connection waits in the socket, also for the next."""
        try:
            await self._agent.serve(listener.fileno())
        except CodeFailedError as failed:
            say(notices.PLUGIN_FAILED, **told(failed.failure))
        except (AgentFailedError, SpawnError):
            pass  # it was told
        self._serves = self._agent.serves
        if self._serves:
            self._failures = 0
            self._look()
        else:
            self._back_off()

    def _rested(self, why: str) -> None:
        """Learn that nobody answers any more."""
        if not self._serves:
            return
        self._serves = False
        self._look_no_more()
        if why:
            self._back_off()
        else:
            self._look()

    def _look_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)

    def _back_off(self) -> None:
        """Look again after a while; who comes when nobody has answered for long, is turned away."""
        if self._socket is None:
            return
        self._failures += 1
        if self._failures > _TRIES:
            self._turn_away(self._socket)
        delay = restart_delay(_BACK_OFF, self._failures - 1, 0.5)
        self._timer = self._loop.call_later(delay, self._look)

    def _turn_away(self, listener: socket.socket) -> None:
        with suppress(OSError):  # nobody is left
            for _ in range(_BACKLOG_MAX):
                listener.accept()[0].close()

    def close(self) -> None:
        """Look no more."""
        self._look_no_more()
        listener, self._socket = self._socket, None
        if listener is not None:
            listener.close()
