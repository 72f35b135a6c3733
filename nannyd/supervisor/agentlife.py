"""One life of the agent: its process, its leaf, and what is said over its channel."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nannyd.core import boot, wire
from nannyd.supervisor import notices
from nannyd.supervisor.notices import say
from nannyd.supervisor.outbox import Outbox
from nannyd.supervisor.spawn import Child, Program, SpawnError, spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nannyd.core.exits import WaitStatus
    from nannyd.core.plan import Plan
    from nannyd.supervisor.cgroup import Leaf
    from nannyd.supervisor.delegation import Delegation
    from nannyd.supervisor.helpers import Helpers
    from nannyd.supervisor.tree import Session

    Asking = Callable[["AgentLife", int, str, dict[str, Any]], None]
    """Called with what the agent asks: number, word, parameters; answered by `AgentLife.answer`."""

Answer = dict[str, Any]

_MESSAGE_MAX = 1 << 20
_UNSENT_MAX = 4 << 20
"""Bytes that wait for an agent that does not read."""
_MARGIN = 2.0
"""Seconds by which the agent may be late with its own verdict on a deadline."""
_BOOT_TIMEOUT = 30.0
"""Seconds for the interpreter of a new one to come to our code, before any request's own count."""
_FIRST_PING = 1
_PING_TIMEOUT = 3.0
_SERVING_PING_TIMEOUT = 15.0
"""The same once it answers others: what they have it do may hold Python's lock for a while."""
_LOOK_AFTER = 5.0
"""Seconds after which an agent that has something to do is looked after."""
_END_TIMEOUT = 5.0
"""Seconds for an agent to go when its channel was closed."""


class AgentFailedError(Exception):
    """The agent crashed, hung or could not answer."""


class CodeFailedError(Exception):
    """The user's code failed in the agent."""

    def __init__(self, failure: dict[str, Any]) -> None:
        """*failure* has `where`, `type`, `message`, `traceback`."""
        super().__init__(f"{failure.get('where')}: {failure.get('type')}: {failure.get('message')}")
        self.failure = {key: str(failure.get(key, "")) for key in ("where", "type", "message", "traceback")}


@dataclass(frozen=True, slots=True)
class Room:
    """What all lives of the agent, and all commands of operators, share."""

    loop: asyncio.AbstractEventLoop
    runtime: Path
    """The instance's directory under /run."""
    library: Path
    """A directory that holds nothing but `nannyd`."""
    delegation: Delegation | None
    helpers: Helpers
    output: Callable[[], int]
    """Opens where the agent's output goes."""
    session: Callable[[str], Session] | None = None
    """Makes what holds a command together that gets no leaf, by its mark."""


class AgentLife:
    """A running agent."""

    def __init__(
        self,
        room: Room,
        plan: Plan,
        specification: dict[str, Any],
        tasks: asyncio.TaskGroup,
        asked: Asking,
        over: Callable[[str], None],
    ) -> None:
        """Execute it.  *over* is called with why it ended; with nothing if it was meant to.

        Raises SpawnError.
        """
        self._room, self._tasks, self._asked, self._on_end = room, tasks, asked, over
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._number = _FIRST_PING
        self._up = asyncio.Event()
        """It has said something, has ended, or has had the time to."""
        self._received = bytearray()
        self.busy: Callable[[bool], None] = lambda busy: None
        """Is told whether the agent answers requests that did not come from us."""
        self._is_busy = False
        self._ping_timeout = _PING_TIMEOUT
        self._why = ""
        self._wanted = True
        self._look: asyncio.TimerHandle | None = None
        self._told = False
        """Plugins were told something that no look has followed yet."""
        self._ended = asyncio.Event()
        self._leaf: Leaf | None = room.delegation.agent_leaf() if room.delegation is not None else None
        self._channel, inside = socket.socketpair()
        self._channel.setblocking(False)
        self._outbox = Outbox(self._channel, room.loop)
        self._sockets, receiving = None, None
        if specification["extension"] is not None:
            self._sockets, receiving = socket.socketpair(type=socket.SOCK_SEQPACKET)
            self._sockets.setblocking(False)
        try:
            self.limit(plan.agent.memory_limit)
            self._child = self._spawn(plan, inside, receiving)
        except (SpawnError, OSError) as error:
            self._close()
            if self._leaf is not None:
                self._leaf.close()
            if isinstance(error, SpawnError):
                raise
            raise SpawnError(str(error.filename or error), error.errno or errno.EIO) from error
        finally:
            inside.close()
            if receiving is not None:
                receiving.close()
        self.pid = self._child.pid
        room.helpers.adopt(self.pid)
        room.loop.add_reader(self._child.pidfd, self._exited)
        room.loop.add_reader(self._channel, self._readable)
        self.send({"protocol": wire.PROTOCOL, **specification})
        self.send({"id": _FIRST_PING, "do": "ping"})

    def _close(self) -> None:
        self._channel.close()
        if self._sockets is not None:
            self._sockets.close()

    def _spawn(self, plan: Plan, inside: socket.socket, receiving: socket.socket | None) -> Child:
        output = self._room.output()
        try:
            program = Program(
                argv=boot.agent_argv(plan.agent.python, str(self._room.library), plan.name),
                environ={**plan.environ, **plan.late_environ, "NANNYD_INSTANCE": plan.name},
                working_directory=plan.worker.working_directory,
                umask=plan.worker.umask,
                nice=None,
                oom_score_adj=plan.worker.oom_score_adj,
                stdout=output,
                stderr=output if output not in (1, 2) else 2,
                channel=inside.fileno(),
                sockets=None if receiving is None else receiving.fileno(),
            )
            return spawn(program, self._leaf)
        finally:
            if output not in (1, 2):
                os.close(output)

    def limit(self, size: int | None) -> None:
        """Put the agent's own memory limit up."""
        if self._leaf is not None and self._room.delegation is not None and self._room.delegation.has_memory:
            self._leaf.set_limits(size, None if size is None else 0)  # a leak does not fill the swap

    def memory(self) -> int | None:
        """Return the bytes that the agent uses; None: not known."""
        if self._leaf is None:
            return None
        try:
            return self._leaf.reading().working_set
        except OSError:  # no memory controller
            return None

    def lend(self, name: str, descriptor: int) -> None:
        """Send the agent a copy of *descriptor*, at which it answers others.  Raises AgentFailedError."""
        if self._sockets is None or self._ended.is_set():
            raise AgentFailedError(self._why or "the agent has ended")
        try:
            socket.send_fds(self._sockets, [name.encode()], [descriptor], socket.MSG_NOSIGNAL)
        except OSError as error:
            raise AgentFailedError(f"the agent does not take a descriptor: {error.strerror}") from None
        self._ping_timeout = _SERVING_PING_TIMEOUT

    # --- Asking, and being asked ------------------------------------------------------------------

    async def ask(
        self, do: str, within: float | None, parameters: dict[str, Any], parts: int = 1
    ) -> dict[str, Any]:
        """Return the answer to a request.  Raises CodeFailedError and AgentFailedError.

        Each of its *parts* has *within* seconds, from when the agent has come up.  One that is late with its
        own verdict is pinged; one that does not even answer that is killed.
        """
        patience = None if within is None else within * max(1, parts) + _MARGIN
        if patience is None:
            self.look_soon()
        try:
            return await self._answer_to(patience, do, {**parameters, "timeout": within})
        except TimeoutError:
            if self._wanted and not await self._answers():
                self.fail("it does not answer")
            raise AgentFailedError(f"no answer to {do} within {patience:g}s") from None

    def tell(self, what: str, info: dict[str, Any]) -> None:
        """Let plugins know; nothing is answered, but one that blocks the agent is found out."""
        self.send({"tell": what, "info": info})
        self._told = True
        self.look_soon()

    def look_soon(self, delay: float = _LOOK_AFTER) -> None:
        """Find out whether it answers, after *delay*."""
        if self._look is None and not self._ended.is_set():
            self._look = self._room.loop.call_later(delay, self._look_now)

    def _look_now(self) -> None:
        self._told = False
        self._tasks.create_task(self._look_after())

    async def _look_after(self) -> None:
        answers = await self._answers()
        self._look = None
        if answers:
            if self._told or self._pending or self._is_busy:
                self.look_soon()
        elif self._wanted:
            self.fail("it does not answer")

    async def _answers(self) -> bool:
        try:
            await self._answer_to(self._ping_timeout, "ping", {})
        except (TimeoutError, AgentFailedError):
            return False
        return True

    async def _comes_up(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_BOOT_TIMEOUT):
                await self._up.wait()
        self._up.set()

    async def _answer_to(self, patience: float | None, do: str, parameters: dict[str, Any]) -> Answer:
        """Return the answer to a request.  Raises TimeoutError, too."""
        if self._ended.is_set():
            raise AgentFailedError(self._why or "the agent has ended")
        self._number += 1
        number = self._number
        future = self._pending[number] = self._room.loop.create_future()
        self.send({"id": number, "do": do, **parameters})
        try:
            await self._comes_up()
            async with asyncio.timeout(patience):
                answer: Answer = await future
            return answer
        finally:
            self._pending.pop(number, None)

    def answer(self, number: int, ok: dict[str, Any] | None, error: dict[str, Any] | None = None) -> None:
        """Answer what the agent has asked."""
        self.send({"answer": number, "ok": ok} if error is None else {"answer": number, "error": error})

    def send(self, message: dict[str, Any]) -> None:
        """Send *message*, or what the socket takes of it, and the rest when the agent has read."""
        if self._ended.is_set():
            return
        if self._outbox.put(message) > _UNSENT_MAX:
            self.fail("it does not read what it is told")

    def _readable(self) -> None:
        try:
            chunk = self._channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._room.loop.remove_reader(self._channel)
            return
        self._received += chunk
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            self._heard(line)
        if len(self._received) > _MESSAGE_MAX:
            self.fail("it sends too much at once")

    def _heard(self, line: bytes) -> None:
        self._up.set()
        try:
            message: Any = json.loads(line)
            match message:
                case {"id": int(number)}:
                    self._settle(number, message)
                case {"ask": int(number), "what": str(what), "parameters": dict(parameters)}:
                    self._asked(self, number, what, parameters)
                case {"say": "error", "error": dict(error)}:
                    say(notices.PLUGIN_FAILED, **told(error))
                case {"say": "deprecated", "message": str(text)}:
                    say(notices.PLUGIN_DEPRECATED, detail=text)
                case {"say": "busy" | "idle" as word}:
                    self._is_busy = word == "busy"
                    if self._is_busy:
                        self.look_soon()
                    self.busy(self._is_busy)
                case _:
                    raise ValueError("no message of the agent")
        except (ValueError, RecursionError):
            self.fail("it sends what is no message")

    def _settle(self, number: int, answer: Answer) -> None:
        future = self._pending.get(number)
        if future is None or future.done():
            return
        match answer:
            case {"ok": dict(ok)}:
                future.set_result(ok)
            case {"error": dict(error)}:
                future.set_exception(CodeFailedError(error))
            case _:
                future.set_exception(AgentFailedError("an answer that is none"))

    # --- Its end ----------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Kill an agent that does what it must not."""
        self._why = self._why or f"agent {self.pid} was killed: {why}"
        self._kill()

    def _kill(self) -> None:
        if self._ended.is_set():  # before its hanging was found out
            return
        if self._leaf is not None:
            # cgroup.kill marks a cgroup for good: the next agent's leaf has the same name, but is another.
            self._leaf.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._child.signal(signal.SIGKILL)

    @property
    def is_ending(self) -> bool:
        """It was let go."""
        return not self._wanted

    async def end(self) -> None:
        """Let the agent go, and wait until it has."""
        self._wanted = False
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(_END_TIMEOUT):
                await self._ended.wait()
        except TimeoutError:
            self._kill()
            await self._ended.wait()

    def _exited(self) -> None:
        status = self._child.reap()
        if status is None:
            return
        loop = self._room.loop
        loop.remove_reader(self._child.pidfd)
        self._kill()  # what it has forked goes with it
        loop.remove_reader(self._channel)
        self._outbox.close()
        if self._look is not None:
            self._look.cancel()
        self._room.helpers.release(self.pid)
        self._why = self._why or f"agent {self.pid} {self._how(status)}"
        self._ended.set()
        self._up.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(AgentFailedError(self._why))
        self._close()
        self._child.close()
        if self._leaf is not None:
            self._leaf.close()
        self._on_end(self._why if self._wanted else "")

    def _how(self, status: WaitStatus) -> str:
        if status.signal is None:
            return f"exited with status {status.code}"
        with suppress(OSError):  # no memory controller
            events = self._leaf.events() if self._leaf is not None else {"oom": 0}
            if events["oom"] and events["oom_kill"]:  # both: it was not the host that had none left
                return "was killed by the kernel: out of memory (agent.memory-limit)"
        return f"was killed by signal {status.signal}"


def told(error: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record about user code that failed."""
    return {
        "where": str(error.get("where", "")),
        "error": f"{error.get('type', '')}: {error.get('message', '')}",
        "detail": str(error.get("traceback", ""))[-wire.ERROR_MAX :],
    }
