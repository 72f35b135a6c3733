"""What the agent of an instance in a Dask cluster can besides: answer as Dask's nanny, host its plugins.

    WHAT       with    ok
    serve                      takes the listening socket that lies at `wire.SOCKETS_FD`, and answers there
    rest               rests   whether nothing was under way: nothing is accepted any more then
    publish    exits           logs them as events at the scheduler

Said: `{"say": "busy"}` and `{"say": "idle"}`: whether something of Dask's is under way.  `distributed` is
imported when it is first needed.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from nannyd.core import boot, wire
from nannyd.dask.activity import Activity
from nannyd.dask.configuration import configure
from nannyd.dask.inherit import Watch
from nannyd.dask.loops import Loops
from nannyd.dask.sparing import complete, spare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nannyd.agent.host import Host
    from nannyd.agent.link import Link
    from nannyd.agent.nanny import Nanny
    from nannyd.dask import endpoint
    from nannyd.dask.inherit import Traces


_REST_TIMEOUT = 1.0


class Extension:
    """Dask's part of one agent."""

    def __init__(
        self,
        link: Link,
        host: Host,
        say: Callable[[Mapping[str, Any]], None],
        arguments: Mapping[str, Any],
    ) -> None:
        """*arguments* are those of `DaskPlan.server`, and what was known when the agent was started."""
        self._link = link
        self._host = host
        self._activity = Activity(say)
        self._arguments = arguments
        self._loops = Loops()
        self._sockets = boot.take_channel(wire.SOCKETS_FD)
        os.register_at_fork(after_in_child=self._sockets.close)
        self._making: asyncio.Task[endpoint.Nanny] | None = None
        self._traces: dict[str, Traces] = {}
        self.does: dict[str, Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]] = {
            "serve": self._serve,
            "rest": self._rest,
            "publish": self._publish,
        }

    # --- Plugins and preloads of Dask's -----------------------------------------------------------

    async def set_up(self, function: Callable[[Any], Any], nanny: Nanny) -> Any:
        """Call *function* as Dask does; what it does to this process reaches the next worker."""

        async def call() -> Any:
            facade = (await self._endpoint()).facade(nanny)
            complete()
            watch = Watch()
            result = await _maybe_await(function(facade))
            traces = self._traces[nanny.owner] = watch.traces()
            traces.hand_down(nanny.env, facade.shared)
            return result

        return await self._loops.in_dasks(call())

    async def tear_down(self, function: Callable[[Any], Any], nanny: Nanny) -> Any:
        """Call *function* as Dask does, and undo what the setup has done to this process."""

        async def call() -> Any:
            try:
                return await _maybe_await(function((await self._endpoint()).facade(nanny)))
            finally:
                if (traces := self._traces.pop(nanny.owner, None)) is not None:
                    traces.undo()

        return await self._loops.in_dasks(call())

    # --- What the supervisor wants ----------------------------------------------------------------

    async def _serve(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        _, descriptors, _, _ = socket.recv_fds(self._sockets, 64, 1, flags)
        listening = socket.socket(fileno=descriptors[0])
        listening.setblocking(False)

        async def serve() -> None:
            await (await self._endpoint()).serve(listening)

        await self._loops.in_dasks(serve())
        return {}

    async def _rest(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say False also when Dask's loop does not come to it: a request that has just come may block it."""
        lock, rests, late = threading.Lock(), False, False

        async def rest() -> None:
            nonlocal rests
            nanny = await self._endpoint()
            with lock:
                rests = not late and nanny.rest()

        if self._activity:
            return {"rests": False}
        asked = asyncio.get_running_loop().create_task(self._loops.in_dasks(rest()))
        await asyncio.wait({asked}, timeout=_REST_TIMEOUT)
        with lock:
            late = True
        if asked.done():
            asked.result()
        return {"rests": rests}  # that it has come to it, it may be too blocked to tell

    async def _publish(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        async def publish() -> None:
            await (await self._endpoint()).publish(request["exits"])

        await self._loops.in_dasks(publish())
        return {}

    # --- In Dask's event loop ---------------------------------------------------------------------

    async def _endpoint(self) -> endpoint.Nanny:
        """Return what speaks Dask's protocol; made once."""
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())
        try:
            return await asyncio.shield(self._making)
        except Exception:
            self._making = None  # such as a certificate that is not there yet
            raise

    async def _make(self) -> endpoint.Nanny:
        configure(
            dict(self._arguments.get("config") or {}), spare("distributed.core", "distributed.security")
        )
        from nannyd.dask.endpoint import Nanny

        made = Nanny(self._link, self._host, self._loops, self._activity, **self._arguments)
        await made.start()  # type: ignore[no-untyped-call]
        return made


async def _maybe_await(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
