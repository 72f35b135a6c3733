"""Dask's own server with the nanny's requests; the supervisor does what they want."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.core import Server, Status, error_message
from tornado.ioloop import IOLoop

from nannyd.agent.nanny import Nanny as AgentNanny
from nannyd.agent.nanny import NannyError
from nannyd.agent.work import Failed
from nannyd.dask.activity import Requests
from nannyd.dask.configuration import make_security
from nannyd.dask.events import log_exits
from nannyd.dask.facade import Facade
from nannyd.dask.inherit import Watch
from nannyd.dask.listener import listener
from nannyd.dask.plugins import LOADED_BY, digest, keep
from nannyd.dask.sparing import complete

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from nannyd.agent.host import Host
    from nannyd.agent.link import Link
    from nannyd.dask.activity import Activity
    from nannyd.dask.loops import Loops

_SETTLING = 5.0
"""Seconds for which a new connection counts as something under way, for it is here to ask."""
_SOON = 1.0
"""Seconds within which a worker that was killed has a successor, or the answer does not wait for that."""
_RUNNER = "call run"
"""In whose name functions of `Client.run(nanny=True)` change the worker's environment."""


class Nanny(Server):
    """The nanny as it is reached over the network.  The name is Dask's: it shows in what is answered."""

    def __init__(
        self,
        link: Link,
        host: Host,
        loops: Loops,
        activity: Activity,
        *,
        security: Mapping[str, Any] | None = None,
        blocked_handlers: Sequence[str] | None = None,
        name: Any = None,
        nthreads: int | None = None,
        scheduler: str | None = None,
        nanny: str | None = None,
        **_others: Any,
    ) -> None:
        """It listens nowhere yet.  *nanny* is the address by which others know it."""
        self._link = link
        self._plugin_host = host
        self._loops = loops
        self._activity = activity
        self._known = {"scheduler": scheduler, "nanny": nanny}
        self._given: socket.socket | None = None
        self._security = make_security(dict(security or {}))
        self.worker_name = name if name is not None else link.name
        self.nthreads = nthreads
        IOLoop.current().profile = deque()  # type: ignore[attr-defined]  # else it is profiled
        super().__init__(  # type: ignore[no-untyped-call]
            handlers={
                "instantiate": self.instantiate,
                "kill": self.kill,
                "restart": self.restart,
                "get_logs": self.get_logs,
                "terminate": self.terminate,
                "close_gracefully": self.close_gracefully,
                "run": self.run,
                "plugin_add": self.plugin_add,
                "plugin_remove": self.plugin_remove,
            },
            blocked_handlers=blocked_handlers,
            connection_args=self._security.get_connection_args("worker"),
            # A Server makes a directory of this name where it finds none; this is the one that is wanted.
            local_directory=str(Path(self._directory, "dask-scratch-space", "..")),
            needs_workdir=False,
        )
        self._comms = Requests(activity)
        self._learned = asyncio.Event()
        link.learned = lambda: self.io_loop.add_callback(self._learned.set)

    # --- What it knows --------------------------------------------------------------------------------

    @property
    def _directory(self) -> str:
        return self._link.facts.local_directory or tempfile.gettempdir()

    def _fact(self, name: str) -> Any:
        return self._link.facts.other.get(name) or self._known[name]

    @property
    def scheduler_addr(self) -> str:
        """Where the scheduler is."""
        address: str | None = self._fact("scheduler")
        if address is None:
            raise RuntimeError("no worker has found the scheduler yet")
        return address

    @property
    def scheduler(self) -> Any:
        """For requests to the scheduler."""
        return self.rpc(self.scheduler_addr)

    @property
    def plugins(self) -> Mapping[str, Any]:
        """All that are set up, by name."""
        plugins: dict[str, Any] = self._plugin_host.plugins()
        return plugins

    def facade(self, nanny: AgentNanny) -> Facade:
        """Return what Dask's plugins are given."""
        return Facade(nanny, self)

    # --- Where it listens -----------------------------------------------------------------------------

    async def serve(self, given: socket.socket) -> None:
        """Answer on *given*, a listening socket, which is taken over."""
        self._stop_accepting()
        address = self._fact("nanny")
        connection = self._security.get_listen_args("worker")
        made = listener(address, given, self.handle_comm, self._accepted, **connection)
        self._given, self._address = given, address
        await made.start()
        self.listeners.append(made)

    def rest(self) -> bool:
        """Accept no more and close what is idle; but if something is under way, say False and go on."""
        if self._activity or any(_has_unread(comm) for comm in self._comms):
            return False
        self._stop_accepting()
        for comm in list(self._comms):
            comm.abort()
        return True

    def _stop_accepting(self) -> None:
        while self.listeners:
            self.listeners.pop().stop()
        if self._given is not None:
            self._given.close()
            self._given = None

    def _accepted(self) -> None:
        what = object()
        self._activity.begin(what)
        asyncio.get_running_loop().call_later(_SETTLING, self._activity.end, what)

    # --- What it is asked for -------------------------------------------------------------------------

    async def kill(self, timeout: float | None = None, reason: str = "nanny-kill") -> None:
        """End the worker; answered when it is dead.  The next one is started at once.

        The scheduler then looks for the next one every 0.2 s: if that is there soon, it need not look again.
        """
        before = self._link.facts.pid
        await self._ask("respawn", timeout=timeout, reason=reason)
        until = self.io_loop.time() + _SOON
        while self._link.facts.state != "running" or self._link.facts.pid == before:
            self._learned.clear()
            try:
                await asyncio.wait_for(self._learned.wait(), until - self.io_loop.time())
            except asyncio.TimeoutError:
                return

    async def instantiate(self) -> Status:
        """Start the worker, if it is not running; answered when it is ready."""
        await self._ask("instantiate", timeout=None)
        return Status.running

    async def restart(self, timeout: float = 30, reason: str = "nanny-restart") -> Any:
        """End the worker and start the next one; answered when that is ready."""
        asked = asyncio.ensure_future(self._ask("restart", timeout=None, reason=reason))
        try:
            await asyncio.wait_for(asyncio.shield(asked), timeout)
        except asyncio.TimeoutError:
            return "timed out"
        except Exception as error:  # noqa: BLE001 (it is told)
            return error_message(error)
        return "OK"

    async def get_logs(self, start: float = 0, n: int | None = None, timestamps: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Return lines of the nanny's log, the newest first."""
        answer = await self._ask("get_logs", n=n)
        records = [record for record in answer["records"] if record[0] >= start]
        return [tuple(record if timestamps else record[1:]) for record in records[: n or None]]

    async def terminate(self, timeout: float | None = None, reason: str = "nanny-close") -> str:
        """End the worker, then nannyd."""
        self.status = Status.closing
        await self._ask("close", reason=reason)
        return "OK"

    async def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        """Let nannyd end when the worker does."""
        await self._ask("close_gracefully", reason=reason)
        self.status = Status.closing_gracefully

    async def run(self, comm: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function here; what it does to this process reaches the next worker, as with Dask's nanny."""
        complete()
        from distributed.worker import run

        nanny = AgentNanny(self._link, _RUNNER)
        watch = Watch()
        answer = await run(self.facade(nanny), comm, *args, **kwargs)
        watch.traces().hand_down(nanny.env)
        return answer

    async def plugin_add(self, plugin: bytes, name: str | None = None) -> Any:
        """Set up a plugin; should that fail, the client gets what was raised."""
        known = {"path": str(keep(plugin, Path(self._directory))), "digest": digest(plugin)}
        seen: list[Any] = []
        adding = self._plugin_host.add(name, LOADED_BY, {"path": known["path"]}, math.inf, _tell(seen))
        try:
            name, restart = await self._loops.in_agents(adding)
        except Failed as failed:
            if name is not None:
                await self._ask("plugin_added", name=name, **known, failed=True)
            return seen[-1] if seen else error_message(RuntimeError(str(failed)))
        await self._ask("plugin_added", name=name, **known, failed=False)
        if restart:
            await self.restart(reason=f"nanny-plugin-{name}-restart")
        return {"status": "OK"}

    async def plugin_remove(self, name: str) -> Any:
        """Take down a plugin; should that fail, the client gets what was raised.

        One whose setup failed is not there, but known.
        """
        seen: list[Any] = []
        try:
            ended = await self._loops.in_agents(self._plugin_host.end(name, math.inf, _tell(seen)))
        except Failed as failed:
            await self._ask("plugin_removed", name=name)
            return seen[-1] if seen else error_message(RuntimeError(str(failed)))
        removed = await self._ask("plugin_removed", name=name)
        if ended is None and not removed["known"]:
            _tell(seen)(KeyError(name))
            return seen[-1]
        return {"status": "OK"}

    async def _ask(self, what: str, **parameters: Any) -> dict[str, Any]:
        """Ask the supervisor.  Raises RuntimeError: who is told of it may have no nannyd to unpickle by."""
        try:
            return await asyncio.wrap_future(self._link.ask(what, **parameters))
        except NannyError as error:
            why = str(error)
        raise RuntimeError(why)  # out here: what an exception was raised in travels with it

    # --- What it tells the scheduler ------------------------------------------------------------------

    async def publish(self, exits: Sequence[Mapping[str, Any]]) -> None:
        """Log the ends of workers as events."""
        with self._activity.one_more():
            await log_exits(self.scheduler, exits)

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Log an event; from whatever thread."""

        async def log() -> None:
            with self._activity.one_more():
                await self.scheduler.log_event(topic=topic, msg=msg)

        self.io_loop.add_callback(log)


def _tell(seen: list[Any]) -> Any:
    """Return a witness who keeps errors as Dask sends them."""

    def witness(error: BaseException) -> None:
        if not isinstance(error, Exception):  # such as SystemExit, which would end the client
            error = RuntimeError(repr(error)).with_traceback(error.__traceback__)
        try:
            raise error
        except Exception as raised:  # noqa: BLE001 (error_message wants it raised)
            seen.append(error_message(raised))

    return witness


def _has_unread(comm: Any) -> bool:
    """Say whether the other side has sent something that was not read yet."""
    import socket

    with contextlib.suppress(OSError, AttributeError):
        return bool(comm.stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False
