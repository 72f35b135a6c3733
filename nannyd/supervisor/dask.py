"""The supervisor's part in a Dask cluster: what outlives workers and agents.

It speaks nothing of Dask's own protocol.  Workers tell it what it must know by `X_NANNYD_DASK=`, a JSON
object, and hand it the socket that the nanny listens on by systemd's `FDSTORE=1`; the next life is told what
it must know by the keyword argument `life`.  Nobody answers on the socket until somebody connects: then the
agent does, and when it has nothing to do any more, the socket is looked at from here again.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nannyd.core.dask import Cause, Then, cause_of
from nannyd.core.lifecycle import (
    CloseGracefullyRequested,
    Goal,
    KillRequested,
    RestartRequested,
    SchedulerMissing,
    State,
    WorkerExcused,
    WorkerExtends,
    WorkerStopping,
)
from nannyd.core.plan import Plugin
from nannyd.supervisor import notices, telling
from nannyd.supervisor.agent import DASK_TIMEOUT
from nannyd.supervisor.agentlife import AgentFailedError, CodeFailedError, told
from nannyd.supervisor.door import Door
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    from pathlib import Path

    from nannyd.core.exits import Exit
    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.life import Life
    from nannyd.supervisor.supervisor import Supervisor

PLUGIN = "nannyd.dask.plugins:load"
"""Makes a plugin of the cluster in the agent, of the file that it lies in."""
_EXTENSION = "nannyd.dask.server:Extension"
_EXITS_MAX = 16
_PLUGINS_MAX = 256
_TEXT_MAX = 1000
"""Characters of a name, an address, a reason."""
_DIGEST = 64
"""Characters of a SHA-256 in hexadecimal."""


class _NonsenseError(ValueError):
    """What a worker says is not what it can mean."""


class Dask:
    """What is known of the cluster."""

    def __init__(self, supervisor: Supervisor, agent: Agent, tasks: asyncio.TaskGroup) -> None:
        """Keep it for *supervisor*, whose plan says what follows when a worker closes itself."""
        self._supervisor, self._agent, self._tasks = supervisor, agent, tasks
        self._door = Door(agent, supervisor.place.loop, tasks)
        self.scheduler = self.nanny = ""
        self._known: dict[str, str] = {}
        """Plugins that the agent has, or failed to set up: name and digest."""
        self._told: dict[str, str] = {}
        """Those that the latest life was told of."""
        self._setting_up = asyncio.Lock()
        self._exits: list[dict[str, Any]] = []
        self._last = ""
        """The address of a worker that may not have said goodbye to the scheduler."""
        self._doubted: Life | None = None
        self._sweep()  # what an earlier nannyd left when it crashed

    # --- What a worker is told, and says ----------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Return what the next worker must know, as a keyword argument."""
        directory = self._supervisor.local_directory
        self._told = dict(self._known)
        life = {
            "nanny": self.nanny or None,
            "known": self._told,
            "unregister": self._last or None,
            "exits": list(self._exits),
            "directory": None if directory is None else str(directory),
        }
        return {"life": life}

    def extension(self) -> dict[str, Any]:
        """Return what the agent is to be beside the usual."""
        plan = self._supervisor.plan.dask
        server = plan.server if plan is not None else {}
        addresses = {"scheduler": self.scheduler or None, "nanny": self.nanny or None}
        return {"target": _EXTENSION, "arguments": {**server, **addresses}}

    def facts(self) -> dict[str, Any]:
        """Return what the nanny object of the plugins knows."""
        plan = self._supervisor.plan.dask
        server = plan.server if plan is not None else {}
        return {
            "nanny": self.nanny,
            "scheduler": self.scheduler,
            "name": server.get("name"),
            "nthreads": server.get("nthreads"),
        }

    def status(self) -> dict[str, Any]:
        """Return what Status says."""
        return {
            "scheduler": self.scheduler or None,
            "nanny": self.nanny or None,
            "plugins": list(self._known),
        }

    def hear(self, life: Life, said: dict[str, str], descriptors: tuple[int, ...]) -> None:
        """Take what a worker says; nonsense is told once for each life."""
        text, stored = said.get("X_NANNYD_DASK"), said.get("FDSTORE") == "1"
        if text is None and not (stored and said.get("FDNAME") == "nanny"):
            return
        try:
            message = _object(text or "{}")
            if stored:
                self._take_socket(message.get("nanny"), descriptors)
            self._take(life, message)
        except _NonsenseError as nonsense:
            if self._doubted is not life:
                self._doubted = life
                say(notices.DASK_NONSENSE, worker_pid=life.pid, detail=str(nonsense))

    def _take(self, life: Life, message: dict[str, Any]) -> None:
        if "scheduler" in message:
            self.scheduler = _text(message, "scheduler")
        if "published" in message:
            count = message["published"]
            if type(count) is not int or not 0 <= count <= len(self._exits):
                raise _NonsenseError("published more ends than there were")
            del self._exits[:count]
        if "plugins" in message:
            self._tasks.create_task(self._set_up(life, _plugins(message["plugins"]), self._told))
        if "closing" in message:
            self._closing(life, _text(message, "closing"))

    def _take_socket(self, address: Any, descriptors: tuple[int, ...]) -> None:
        if type(address) is not str or not 0 < len(address) <= _TEXT_MAX or len(descriptors) != 1:
            raise _NonsenseError("a socket without its address, or not one socket")
        if self.nanny:
            raise _NonsenseError("a second socket for the nanny")
        self._door.open(_listener(descriptors[0]))
        self.nanny = address

    def _closing(self, life: Life, reason: str) -> None:
        """Decide what follows when the worker, which closes itself, has gone."""
        cause, plan = cause_of(reason), self._supervisor.plan.dask
        post = self._supervisor.post
        post(WorkerStopping(life.generation, f"the worker closes itself: {reason}"))
        if cause is Cause.DEATH_TIMEOUT:
            post(SchedulerMissing(life.generation))
            return
        then = plan.after.get(cause) if plan is not None else None
        if then is Then.END:
            post(CloseGracefullyRequested(f"dask: {reason}"))
        elif then is Then.RESTART:
            post(WorkerExcused(life.generation))

    def note_end(self, life: Life, exit_: Exit, uptime: float) -> None:
        """Keep how a life ended until the cluster is told of it."""
        supervisor = self._supervisor
        self._last = life.address or self._last
        entry = telling.cluster_event(
            life, exit_, uptime, supervisor.last_reading(life), supervisor.worker.restarts
        )
        self._exits = [*self._exits, entry][-_EXITS_MAX:]

    # --- Plugins of the cluster -------------------------------------------------------------------

    async def _set_up(self, life: Life, wanted: dict[str, str], told: dict[str, str]) -> None:
        """Have the agent host what the scheduler wants a nanny to host.

        A life that was *told* otherwise waits for this, and is followed by one that finds all as it is.
        """
        supervisor = self._supervisor
        supervisor.post(WorkerExtends(life.generation, DASK_TIMEOUT * (len(wanted) + 1)))
        async with self._setting_up:
            for name in [name for name in self._known if name not in wanted]:
                await self._remove(name)
            for name, digest in wanted.items():
                if self._known.get(name) != digest:
                    await self._add(name, digest)
        new = [name for name, digest in wanted.items() if told.get(name) != digest]
        if not new or supervisor.life is not life:
            return
        reason = f"plugins of the Dask cluster: {', '.join(new)}"
        if supervisor.worker.goal is Goal.DOWN:
            supervisor.handle(KillRequested(reason, None))  # it waits for a restart that is not to be
        elif supervisor.worker.state in (State.START, State.RUNNING):
            supervisor.handle(RestartRequested(reason))

    async def _add(self, name: str, digest: str) -> None:
        try:
            await self._agent.plugin_add(name, PLUGIN, {"path": str(self._file(digest))})
        except CodeFailedError as failed:
            say(notices.PLUGIN_FAILED, **told(failed.failure))
        except (AgentFailedError, SpawnError) as failed:
            say(notices.PLUGIN_FAILED, where=f"plugin {name}", error=str(failed), detail="")
        self._know(name, digest)  # Dask goes on without one that fails

    async def _remove(self, name: str) -> None:
        self._know(name, None)
        try:
            await self._agent.plugin_remove(name)
        except CodeFailedError as failed:
            say(notices.PLUGIN_FAILED, **told(failed.failure))
        except (AgentFailedError, SpawnError, KeyError):
            pass  # it is down anyway

    def plugin_added(self, name: str, digest: str, *, failed: bool) -> None:
        """Keep a plugin that came to the agent over Dask's own server."""
        if not failed:
            self._agent.keep(Plugin(name, PLUGIN, {"path": str(self._file(digest))}))
        self._know(name, digest)

    def plugin_removed(self, name: str) -> bool:
        """Forget a plugin that was taken down in the agent; say whether it was known."""
        if name not in self._known:
            return False
        self._know(name, None)
        self._agent.forget(name)
        return True

    def _file(self, digest: str) -> Path | None:
        directory = self._supervisor.local_directory
        return None if directory is None else directory / f"plugin-{digest}"

    def _know(self, name: str, digest: str | None) -> None:
        """Note that plugin *name* has *digest* now, or is no more; a file that is no plugin's goes."""
        old = self._known.pop(name, None)
        if digest is not None:
            self._known[name] = digest
        path = None if old is None or old in self._known.values() else self._file(old)
        if path is not None:
            with suppress(OSError):  # it is swept at the end
                path.unlink()

    def _sweep(self) -> None:
        """Remove the files of all plugins."""
        directory = self._supervisor.local_directory
        for path in directory.glob("plugin-*") if directory is not None else ():
            with suppress(OSError):
                path.unlink()

    # --- Its end ----------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Tell the cluster of ends that no worker will tell of, where an agent runs that can."""
        if self._exits:
            await self._agent.publish(self._exits)

    def close(self) -> None:
        """Let go of the socket."""
        self._door.close()
        self._sweep()


def _object(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise _NonsenseError("no JSON") from None
    if type(message) is not dict:
        raise _NonsenseError("no JSON object")
    return message


def _text(message: dict[str, Any], key: str) -> str:
    value = message[key]
    if type(value) is not str or not 0 < len(value) <= _TEXT_MAX or not value.isprintable():
        raise _NonsenseError(f"{key} is no text")
    return value


def _plugins(listed: Any) -> dict[str, str]:
    """Return the digests of plugins by their names."""
    if type(listed) is not list or len(listed) > _PLUGINS_MAX:
        raise _NonsenseError("plugins are no list, or too many")
    found = {}
    for entry in listed:
        if type(entry) is not dict or not {"name", "digest"} <= entry.keys():
            raise _NonsenseError("a plugin has a name and a digest")
        found[_text(entry, "name")] = checked_digest(_text(entry, "digest"))
    return found


def checked_digest(text: str) -> str:
    """Return *text* if it can be the digest in the name of a file.  Raises ValueError."""
    if len(text) != _DIGEST or not set(text) <= set("0123456789abcdef"):
        raise _NonsenseError("a digest is a SHA-256 in hexadecimal")
    return text


def _listener(descriptor: int) -> socket.socket:
    """Return a copy of a listening socket of streams."""
    try:
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        raise _NonsenseError("what is to be the nanny's socket is none") from None
    if found.type != socket.SOCK_STREAM or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        raise _NonsenseError("the nanny's socket does not listen")
    found.setblocking(False)
    return found
