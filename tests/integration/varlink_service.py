"""A process that serves a test's interface with the supervisor's Varlink server, and measures itself.

    python varlink_service.py SOCKET OPTIONS-AS-JSON

Options: `limits` (of the server), `group` (the gid whose members may operate), `members` (uids that the
group database has in it), `uid` (to become first), `clock` (false: time passes only by `Pass`).
"""

import asyncio
import gc
import json
import os
import resource
import signal
import sys
import time
import types
from pathlib import Path

# As nannyd.supervisor.__main__ does.
sys.modules["ssl"] = None  # type: ignore[assignment]
sys.modules["asyncio.sslproto"] = types.ModuleType("asyncio.sslproto")

from typing import Any  # noqa: E402

from nannyd.supervisor.rights import Peer, Right, right_of  # noqa: E402
from nannyd.supervisor.varlink import (  # noqa: E402
    Call,
    CallError,
    Interface,
    Kind,
    Limits,
    Method,
    Server,
)

DESCRIPTION = """# What the tests ask.
interface org.example.test

type Statistics (
  failed: []string,
  connections: int,
  closed: int,
  noted: []string,
  turns: int,
  held: float,
  timers: int,
  resident: int
)

method Ping(text: string) -> (text: string)
method Types(i: int, f: float, b: bool, s: string, mi: ?int, mf: ?float, mb: ?bool, ms: ?string) -> (
  got: string
)
method Note(text: string) -> ()
method Big(size: int) -> (text: string)
method Work(seconds: float) -> ()
method Later(delay: float) -> (waited: float)
method Pass(seconds: float) -> ()
method Never() -> ()
method Count(n: int) -> (i: int)
method Listen() -> (text: string)
method Tell(size: int) -> (heard: int)
method Odd() -> (values: object, path: string)
method Broken() -> ()
method Unwritable() -> ()
method Who() -> (pid: int, uid: int, gid: int, right: int)
method Operate() -> ()
method All() -> ()
method ThisIsWorker(pid: int) -> ()
method GetStatistics() -> (statistics: Statistics)

error Wrong (why: string)
error Refused (needs: int)
"""


class Measured(Server):
    """Notes how long it holds the loop."""

    held = 0.0
    """The longest turn, in seconds of CPU time: what other programs take is not ours."""
    turns = 0

    def _turn(self) -> None:
        before = time.thread_time()
        super()._turn()
        self.held = max(self.held, time.thread_time() - before)
        self.turns += 1


class Standing(asyncio.SelectorEventLoop):
    """A loop whose time passes only when it is told: a busy machine does not meet its deadlines."""

    passed = 0.0

    def time(self) -> float:
        return self.passed


class Service:
    """The methods, and what they remember."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: dict[str, Any]) -> None:
        self.loop = loop
        self.group: int | None = options.get("group")
        self.members: list[int] = options.get("members", [])
        self.failed: list[str] = []
        self.closed = 0
        self.noted: list[str] = []
        self.listening: set[Call] = set()
        self.workers: set[int] = set()
        self.statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        limits = options.get("limits", {})
        for which in {"connections", "together"} & limits.keys():
            limits[which] = {Right[name]: number for name, number in limits[which].items()}
        self.server = Measured(
            loop,
            [self.interface()],
            vendor="Example",
            product="tests",
            version="1",
            url="https://example.org",
            judge=self.judge,
            failed=lambda error: self.failed.append(repr(error)),
            limits=Limits(**limits),
        )

    def judge(self, peer: Peer) -> Right:
        return right_of(
            peer,
            own_uid=os.getuid(),
            group_gid=self.group,
            in_worker=lambda pid: pid in self.workers,
            member=lambda uid: uid in self.members,
        )

    def interface(self) -> Interface:
        text, number, size = {"text": Kind.STRING}, {"n": Kind.INT}, {"size": Kind.INT}
        kinds = {"i": "int", "f": "float", "b": "bool", "s": "string"}
        all_kinds = {name: Kind(kind) for name, kind in kinds.items()}
        all_kinds |= {f"m{name}": Kind(f"?{kind}") for name, kind in kinds.items()}
        look = Right.LOOK
        methods = {
            "Ping": Method(look, lambda _, text: {"text": text}, text),
            "Types": Method(look, lambda _, **given: {"got": repr(given)}, all_kinds),
            "Note": Method(look, self.note, text),
            "Big": Method(look, lambda _, size: {"text": "x" * size}, size),
            "Work": Method(look, self.work, {"seconds": Kind.FLOAT}),
            "Later": Method(look, self.later, {"delay": Kind.FLOAT}),
            "Pass": Method(look, self.pass_, {"seconds": Kind.FLOAT}),
            "Never": Method(look, self.never, {}),
            "Count": Method(look, self.count, number, streams=True),
            "Listen": Method(look, self.listen, {}, streams=True),
            "Tell": Method(look, self.tell, size),
            "Odd": Method(look, self.odd, {}),
            "Broken": Method(look, self.broken, {}),
            "Unwritable": Method(look, lambda _: {"what": object()}, {}),
            "Who": Method(look, self.who, {}),
            "Operate": Method(Right.OPERATE, lambda _: {}, {}),
            "All": Method(Right.ALL, lambda _: {}, {}),
            "ThisIsWorker": Method(look, self.this_is_worker, {"pid": Kind.INT}),
            "GetStatistics": Method(look, self.statistics, {}),
        }
        return Interface(
            "org.example.test",
            DESCRIPTION,
            methods,
            lambda method: CallError("org.example.test.Refused", needs=int(method.needs)),
        )

    def note(self, _: Call, text: str) -> dict[str, Any]:
        self.noted.append(text)
        return {}

    def work(self, _: Call, seconds: float) -> dict[str, Any]:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        return {}

    def later(self, call: Call, delay: float) -> None:
        self.loop.call_later(delay, lambda: call.reply({"waited": delay}))

    def pass_(self, _: Call, seconds: float) -> dict[str, Any]:
        assert isinstance(self.loop, Standing)
        self.loop.passed += seconds
        return {}

    def never(self, call: Call) -> None:
        call.when_closed(self.count_closed)

    def count_closed(self) -> None:
        self.closed += 1

    def count(self, call: Call, n: int) -> dict[str, Any]:
        if not 0 <= n <= 1_000:
            raise CallError("org.example.test.Wrong", why="less than nothing, or too many")
        for i in range(n - 1):
            call.more_reply({"i": i})
        return {"i": n - 1}

    def listen(self, call: Call) -> None:
        def closed() -> None:
            self.count_closed()
            self.listening.remove(call)

        self.listening.add(call)
        call.when_closed(closed)
        call.more_reply({"text": "listening"})

    def tell(self, _: Call, size: int) -> dict[str, Any]:
        return {"heard": sum([call.more_reply({"text": "x" * size}) for call in tuple(self.listening)])}

    def odd(self, _: Call) -> dict[str, Any]:
        values = [1.5, float("nan"), float("inf"), -float("inf")]
        return {"values": values, "path": os.fsdecode(b"/tmp/\xe9t\xc3\xa9")}

    def broken(self, _: Call) -> dict[str, Any]:
        raise RuntimeError("broken")

    def who(self, call: Call) -> dict[str, Any]:
        return {"pid": call.peer.pid, "uid": call.peer.uid, "gid": call.peer.gid, "right": int(call.right)}

    def this_is_worker(self, _: Call, pid: int) -> dict[str, Any]:
        self.workers.add(pid)
        return {}

    def statistics(self, _: Call) -> dict[str, Any]:
        found = {
            "failed": self.failed,
            "connections": self.server.connections,
            "closed": self.closed,
            "noted": self.noted,
            "turns": self.server.turns,
            "held": self.server.held,
            "timers": sum(not timer.cancelled() for timer in self.loop._scheduled),  # type: ignore[attr-defined]
            "resident": int(os.pread(self.statm, 100, 0).split()[1]) * resource.getpagesize(),
        }
        self.server.held, self.server.turns = 0.0, 0
        return {"statistics": found}


def main() -> None:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "descriptors" in options:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["descriptors"],) * 2)
    if "uid" in options:
        os.setgroups([])
        os.setgid(options["uid"])
        os.setuid(options["uid"])
    loop = asyncio.new_event_loop() if options.get("clock", True) else Standing()
    service = Service(loop, options)
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    service.server.open(path)
    gc.collect()
    gc.freeze()  # as nannyd.supervisor.main does
    print("open", flush=True)
    loop.run_forever()
    service.server.close()
    loop.close()


if __name__ == "__main__":
    main()
