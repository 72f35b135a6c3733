"""What can be asked of an instance over its socket: io.nannyd.Nanny and io.systemd.service.

The `.varlink` files beside this one are the contract.  `varlink` speaks the protocol, `rights` judges the
peers, `facts` words the answers, `waits` keeps those who wait; here each method meets the supervisor.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd import __version__
from nannyd.core.lifecycle import (
    CloseGracefullyRequested,
    KillRequested,
    RestartRequested,
    StartRequested,
    State,
)
from nannyd.supervisor import facts, notices
from nannyd.supervisor.asked import LEVELS, Asked
from nannyd.supervisor.notices import say
from nannyd.supervisor.plugins import Plugins
from nannyd.supervisor.reload import ReloadFailedError
from nannyd.supervisor.rights import Right, right_of
from nannyd.supervisor.ring import tell_new
from nannyd.supervisor.run import Runs
from nannyd.supervisor.varlink import CallError, Interface, Kind, Method, Server
from nannyd.supervisor.waits import ENDING, Verdict, Wait, error, seconds, until_over, until_ready

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from nannyd.supervisor.agent import Agent
    from nannyd.supervisor.agentlife import Room
    from nannyd.supervisor.dask import Dask
    from nannyd.supervisor.reload import Reloader
    from nannyd.supervisor.rights import Peer
    from nannyd.supervisor.ring import Ring
    from nannyd.supervisor.supervisor import Supervisor
    from nannyd.supervisor.varlink import Call

GROUP = "nannyd"
"""Whose members may look, restart, kill and read the log."""
_DEBUG = 7
_TOPIC_MAX, _MESSAGE_MAX, _REASON_MAX = 200, 16 << 10, 1000


class Control:
    """The methods of one instance, and their server."""

    def __init__(
        self,
        supervisor: Supervisor,
        reloader: Reloader,
        ring: Ring,
        room: Room,
        tasks: asyncio.TaskGroup,
        agent: Agent,
        dask: Dask | None,
    ) -> None:
        """Serve *supervisor*."""
        self._supervisor, self._reloader, self._ring = supervisor, reloader, ring
        self._agent, self._dask = agent, dask
        self._plugins = Plugins(agent, supervisor, tasks, self._answer_when_ready, self._asked)
        self._runs = Runs(room, supervisor, self._asked)
        self._loop, self._tasks = room.loop, tasks
        self._started = room.loop.time()
        self._unit = facts.own_unit()
        self._group = _group()
        self._user = _user_name(os.geteuid())
        self._clock = facts.WallClock()
        self._waits: list[Wait] = []
        supervisor.watchers.append(self._look)
        here = Path(__file__)
        self.interfaces = (
            Interface(
                "io.nannyd.Nanny",
                here.with_name("io.nannyd.Nanny.varlink").read_text(),
                self._nanny(),
                lambda method: error("NotPermitted", needs=self._needs(method.needs)),
            ),
            Interface(
                "io.systemd.service",
                here.with_name("io.systemd.service.varlink").read_text(),
                self._service(),
                lambda _: CallError("org.varlink.service.PermissionDenied"),
            ),
        )
        self.answer_agent = Asked(
            agent, supervisor, ring, dask, self.interfaces[0].methods, self._wait
        ).answer
        self._server = Server(
            room.loop,
            self.interfaces,
            vendor="nannyd",
            product=f"nannyd@{supervisor.plan.name}",
            version=__version__,
            url="man:nannyd(8)",
            judge=self._judge,
            failed=_failed,
        )

    def open(self, path: Path) -> None:
        """Serve at *path*."""
        self._server.open(path)

    async def close(self) -> None:
        """End the commands that operators run, and answer no more."""
        await self._runs.close()
        self._server.close()

    def _nanny(self) -> dict[str, Method]:
        timeout, reason = {"timeout": Kind.MAYBE_FLOAT}, {"reason": Kind.MAYBE_STRING}
        logs = {"n": Kind.MAYBE_INT, "follow": Kind.MAYBE_BOOL, "priority": Kind.MAYBE_INT}
        event = {"topic": Kind.STRING, "message": Kind.STRING}
        return {
            "Status": Method(Right.LOOK, self._status, {}),
            "Why": Method(Right.LOOK, self._why, {}),
            "History": Method(Right.LOOK, self._history, {}),
            "Monitor": Method(Right.LOOK, self._monitor, {}, streams=True),
            "GetLogs": Method(Right.LOOK, self._get_logs, logs),
            "Plan": Method(Right.LOOK, lambda _: self._reloader.handover.shown_plan(), {}),
            "Explain": Method(Right.LOOK, self._explain, {}),
            "Instantiate": Method(Right.OPERATE, self._instantiate, timeout),
            "Kill": Method(Right.OPERATE, self._kill, {**timeout, **reason}),
            "Restart": Method(Right.OPERATE, self._restart, {**timeout, **reason}),
            "CloseGracefully": Method(Right.ALL, self._close_gracefully, reason),
            "Terminate": Method(Right.ALL, self._terminate, {**timeout, **reason}),
            "Reload": Method(Right.ALL, self._reload, {}),
            "LogEvent": Method(Right.ALL, self._log_event, event),
            **self._plugins.methods(),
            **self._runs.methods(),
        }

    def _service(self) -> dict[str, Method]:
        return {
            "Ping": Method(Right.LOOK, lambda _: {}, {}),
            "Reload": Method(
                Right.ALL, self._reload_service, {"allowInteractiveAuthentication": Kind.MAYBE_BOOL}
            ),
            "SetLogLevel": Method(Right.ALL, self._set_log_level, {"level": Kind.MAYBE_INT}),
            "GetEnvironment": Method(Right.ALL, _get_environment, {}),
        }

    # --- Rights -----------------------------------------------------------------------------------

    def _judge(self, peer: Peer) -> Right:
        return right_of(
            peer,
            own_uid=os.geteuid(),
            group_gid=self._group,
            in_worker=self._supervisor.is_of_worker,
            member=_is_member,
        )

    def _needs(self, right: Right) -> str:
        owner = "root" if self._user == "root" else f"root or the user {self._user}"
        if right is Right.ALL or self._group is None:
            return f"{owner}, from outside the worker"
        if right is Right.OPERATE:
            return f"{owner}, or membership in the group {GROUP}, from outside the worker"
        return f"{owner}, or membership in the group {GROUP}"

    # --- Looking ----------------------------------------------------------------------------------

    def _status(self, _: Call) -> dict[str, Any]:
        status = facts.status(self._supervisor, self._agent, self._at(), self._started, self._unit)
        return {**status, "dask": self._dask.status() if self._dask is not None else None}

    def _explain(self, _: Call) -> dict[str, Any]:
        return self._plugins.explain(self._reloader.handover.explanation())

    def _why(self, _: Call) -> dict[str, Any]:
        ended = self._supervisor.ended
        if ended is None:
            return {"exit": None, "events": []}
        exit_ = facts.ended(ended, self._at())
        return {"exit": exit_, "events": self._ring.of_life(ended.exit.generation)}

    def _history(self, _: Call) -> dict[str, Any]:
        at = self._at()
        samples = self._supervisor.history.samples()
        return {"samples": [{"at": at(instant), "workingSet": size} for instant, size in samples]}

    def _monitor(self, call: Call) -> None:
        status = self._status(call)
        fields = {key: status[key] for key in ("state", "activeState", "goal")}
        first = {
            "at": self._at()(self._loop.time()),
            "event": "monitoring",
            "priority": 6,
            "message": status["sentence"],
            "fields": fields,
        }
        tell_new(self._ring, call, _DEBUG, lambda records: {"event": records[0]})
        call.more_reply({"event": first})

    def _get_logs(self, call: Call, n: int | None, follow: bool | None, priority: int | None) -> Any:  # noqa: FBT001
        if n is not None and n < 0:
            raise error("InvalidArgument", parameter="n", reason="a number of records is not negative")
        if priority is not None and not 0 <= priority <= _DEBUG:
            reason = "priorities are 0 (emergency) to 7 (debug), as in syslog(3)"
            raise error("InvalidArgument", parameter="priority", reason=reason)
        least = _DEBUG if priority is None else priority
        records = self._ring.newest(n, least)
        if not follow:
            return {"records": records}
        if not call.more:
            raise CallError("org.varlink.service.ExpectedMore")
        tell_new(self._ring, call, least, lambda records: {"records": records})
        call.more_reply({"records": records})
        return None

    # --- Steering ---------------------------------------------------------------------------------

    def _instantiate(self, call: Call, timeout: float | None) -> None:
        worker = self._supervisor.worker
        alive = worker.state in (State.START, State.RUNNING)
        self._wait_until_ready(call, seconds(timeout), worker.generation + (not alive))
        self._asked(call, "Instantiate", "")
        if self._supervisor.begun:  # else it comes of itself, when plugins are set up
            self._supervisor.handle(StartRequested())

    def _restart(self, call: Call, timeout: float | None, reason: str | None) -> None:
        within, why = seconds(timeout), self._reason(call, "Restart", reason)
        self._wait_until_ready(call, within, self._supervisor.worker.generation + 1)
        grace = None if within is None else min(within, self._supervisor.plan.worker.stop_timeout)
        if self._supervisor.begun:
            self._supervisor.handle(RestartRequested(why, grace))

    def _kill(self, call: Call, timeout: float | None, reason: str | None) -> None:
        within, why = seconds(timeout), self._reason(call, "Kill", reason)
        life = self._supervisor.worker.generation
        if self._supervisor.life is None:
            call.reply({"exit": self._exit()})
            return
        self._wait(call, None, lambda: until_over(life, self._supervisor.worker, self._exit()))
        self._supervisor.handle(KillRequested(why, within))

    def _close_gracefully(self, call: Call, reason: str | None) -> dict[str, Any]:
        why = self._reason(call, "CloseGracefully", reason)
        if self._supervisor.begun:
            self._supervisor.handle(CloseGracefullyRequested(why))
        else:
            self._supervisor.stop(why)
        return {}

    def _terminate(self, call: Call, timeout: float | None, reason: str | None) -> None:
        within, why = seconds(timeout), self._reason(call, "Terminate", reason)

        def verdict() -> Verdict:
            return {"exit": self._exit()} if self._supervisor.worker.ended else None

        self._wait(call, None, verdict)
        self._supervisor.stop(why, within)

    def _answer_when_ready(self, call: Call, first: int, reply: dict[str, Any]) -> None:
        self._wait_until_ready(call, None, first, reply)

    def _wait_until_ready(
        self, call: Call, timeout: float | None, first: int, reply: dict[str, Any] | None = None
    ) -> None:
        if self._supervisor.ending:
            raise error("Superseded", by=ENDING)

        def verdict() -> Verdict:
            if not self._supervisor.begun:
                return None
            life, rules = self._supervisor.life, self._supervisor.plan.restart
            limit = {"burst": rules.start_limit_burst, "interval": rules.start_limit_interval}
            pid = life.pid if life is not None else None
            said = until_ready(first, self._supervisor.worker, pid, limit, self._exit())
            return reply if reply is not None and isinstance(said, dict) else said

        self._wait(call, timeout, verdict)

    def _wait(self, call: Call, timeout: float | None, verdict: Callable[[], Verdict]) -> None:
        self._waits.append(Wait(call, self._loop, timeout, verdict, lambda: self._supervisor.worker.state))
        # What it waits for may be true already, and nothing may happen that makes us look.
        self._supervisor.post(self._look)

    def _look(self) -> None:
        self._waits = [wait for wait in self._waits if not wait.look()]

    def _at(self) -> Callable[[float | None], int | None]:
        return self._clock.at(self._loop.time())

    def _exit(self) -> dict[str, Any] | None:
        return facts.ended(self._supervisor.ended, self._at())

    def _reason(self, call: Call, method: str, reason: str | None) -> str:
        if reason is not None and len(reason) > _REASON_MAX:
            text = f"a reason has at most {_REASON_MAX} characters"
            raise error("InvalidArgument", parameter="reason", reason=text)
        self._asked(call, method, reason or "")
        return f"{method}: {_printable(reason)}" if reason else method

    def _asked(self, call: Call, method: str, reason: str) -> None:
        peer = call.peer
        reason_told = notices.Aside(_printable(reason))
        say(notices.CALLED, method=method, peer_uid=peer.uid, peer_pid=peer.pid, reason=reason_told)

    # --- Reload, log ------------------------------------------------------------------------------

    def _reload(self, call: Call) -> None:
        self._asked(call, "Reload", "")
        self._tasks.create_task(self._answer_reload(call, lambda changes: {"changes": changes}))

    def _reload_service(self, call: Call, **_: object) -> None:
        self._asked(call, "Reload", "")
        self._tasks.create_task(self._answer_reload(call, lambda _: {}))

    async def _answer_reload(self, call: Call, reply: Callable[[str], dict[str, Any]]) -> None:
        try:
            changes = await self._reloader.reload()
        except ReloadFailedError as failed:
            call.fail(error("InvalidConfiguration", problems=failed.problems))
        else:
            call.reply(reply(changes))

    def _log_event(self, call: Call, topic: str, message: str) -> dict[str, Any]:
        for name, text, most in (("topic", topic, _TOPIC_MAX), ("message", message, _MESSAGE_MAX)):
            if not text or len(text) > most:
                reason = f"has {len(text)} characters; 1 to {most} are possible"
                raise error("InvalidArgument", parameter=name, reason=reason)
        say(
            notices.LOG_EVENT,
            topic=_printable(topic),
            text=_printable(message, keep="\n"),
            peer_uid=call.peer.uid,
        )
        return {}

    def _set_log_level(self, call: Call, level: int | None) -> dict[str, Any]:
        if level is None or not 0 <= level <= _DEBUG:
            raise CallError("org.varlink.service.InvalidParameter", parameter="level")
        self._asked(call, "SetLogLevel", str(level))
        logging.getLogger().setLevel(LEVELS[level])
        return {}


def _get_environment(_: Call) -> dict[str, Any]:
    return {"environment": [f"{name}={value}" for name, value in os.environ.items()]}


def _printable(text: str | None, keep: str = "") -> str:
    return "".join(c if c.isprintable() or c in keep else " " for c in text or "")


def _failed(exception: BaseException) -> None:
    say(notices.CONTROL_FAILED, detail=repr(exception))


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _is_member(uid: int) -> bool:
    """Ask the group database, for a peer with more groups than the kernel tells of."""
    try:
        return pwd.getpwuid(uid).pw_name in grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
