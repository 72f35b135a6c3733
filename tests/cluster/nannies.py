"""Programs with Nannies in them.  Each function here is one, run in a process of its own (test_inprocess.py).

They run with either version of distributed, without pytest.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

dask: Any = importlib.import_module("dask")
distributed: Any = importlib.import_module("distributed")
plugin: Any = importlib.import_module("distributed.diagnostics.plugin")
Nanny: Any = importlib.import_module("nannyd.dask").Nanny
Status: Any = importlib.import_module("distributed.core").Status
dumps: Any = importlib.import_module("distributed.protocol.pickle").dumps

PATIENCE = 60.0
LONGEST = 110.0
"""Seconds; those of pytest are 120."""
LIMIT = 300 << 20


def program(coroutine: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Make a program of *coroutine*, which must leave nothing behind."""

    def run() -> None:
        home = Path(tempfile.mkdtemp())
        tempfile.tempdir = str(home)
        with dask.config.set({"temporary-directory": str(home / "dask"), "distributed.comm.retry.count": 0}):
            before = children()
            asyncio.run(asyncio.wait_for(coroutine(), LONGEST))
            assert children() <= before, "children are left"
        left = [path for path in home.rglob("*") if re.search("nannyd-|worker-", path.name)]
        assert not left, f"{left} is left"

    return run


@asynccontextmanager
async def scheduler(**options: Any) -> AsyncIterator[Any]:
    """Run a scheduler."""
    given = {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0", "dashboard": False, **options}
    async with distributed.Scheduler(**given) as it:
        yield it


@asynccontextmanager
async def client_of(of: Any, **options: Any) -> AsyncIterator[Any]:
    """Run a client."""
    async with distributed.Client(of.address, asynchronous=True, set_as_default=False, **options) as it:
        yield it


async def eventually(true: Callable[[], object], what: str) -> None:
    """Wait until something is true."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.01)


def children() -> set[int]:
    """Return the children of this process, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def is_there(path: str) -> bool:
    """Say whether there is a directory of this name."""
    return Path(path).is_dir()


def is_gone(pid: int) -> bool:
    """Say whether a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@contextmanager
def records(name: str, level: int = logging.INFO) -> Iterator[list[str]]:
    """Collect what a logger is given."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger(name), Handler(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


async def raised(awaitable: Awaitable[Any]) -> Exception:
    """Return what *awaitable* raises."""
    try:
        value = await awaitable
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError(f"{value!r} and no exception")


def strike(pid: int | None, number: int = signal.SIGKILL) -> None:
    """Send a signal."""
    assert pid is not None
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)


async def fall(nanny: Any) -> None:
    """Kill the worker, and wait for the next."""
    stopped = nanny.process.stopped
    strike(nanny.pid)
    await stopped.wait()
    await eventually(lambda: nanny.process.status == Status.running, "the next worker runs")


# --- What it is, and what it leaves alone -----------------------------------------------------------


@program
async def it_looks_like_a_nanny() -> None:
    async with scheduler() as s, client_of(s) as c:
        nanny: Any = Nanny(s.address, nthreads=2, name="alice", memory_limit="1 GiB")
        assert [nanny.process, nanny.worker_address, nanny.worker_dir, nanny.pid] == [None] * 4
        assert nanny in Nanny._instances
        assert issubclass(Nanny, distributed.Nanny)
        async with nanny as same:
            assert same is nanny
            assert nanny.status == Status.running == nanny.process.status
            process, inner = nanny.process, nanny.process.process
            assert nanny.pid == process.pid == inner.pid == s.workers[nanny.worker_address].pid
            assert [nanny.is_alive(), process.is_alive(), inner.is_alive()] == [True] * 3
            assert inner.exitcode is None
            assert s.workers[nanny.worker_address].nanny == nanny.address
            assert s.workers[nanny.worker_address].name == "alice"
            assert nanny.worker_address in repr(nanny)
            assert "threads: 2" in repr(nanny)
            assert process.worker_dir == nanny.worker_dir
            assert is_there(directory := nanny.worker_dir)
            assert nanny.worker_dir.startswith(nanny.local_directory)
            assert process.running.is_set()
            assert not process.stopped.is_set()
            assert nanny.memory_manager.memory_limit == 1 << 30
            assert nanny.memory_manager.memory_terminate_fraction == 0.95
            assert "memory_monitor" not in nanny.periodic_callbacks
            assert nanny.Worker is distributed.Worker
            assert weakref.ref(nanny)() is not None
            assert nanny.address == f"tcp://127.0.0.1:{nanny.port}"
            assert await c.submit(sum, [1, 2], workers=["alice"]) == 3
            answers = await c.run(lambda dask_worker: dask_worker.nthreads, nanny=True)
            assert list(answers.values()) == [2]
        assert [nanny.status, nanny.process, process.status] == [Status.closed, None, Status.stopped]
        assert process.stopped.is_set()
        assert not inner.is_alive()
        assert inner.exitcode == 0
        assert not is_there(directory)
        assert not s.workers
        assert await nanny.close() == "OK"


def of_the_process() -> dict[str, object]:
    """Return what there is but once in a process."""
    reaper = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(reaper), 0, 0, 0) == 0
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": _wakeup(),
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "subreaper": reaper.value,
        "ssl": sys.modules.get("ssl"),
        "umask": Path("/proc/thread-self/status").read_text().partition("Umask:")[2].split()[0],
        "environ": dict(os.environ),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "name": Path("/proc/self/comm").read_text(),
        "directory": str(Path.cwd()),
        "frozen": gc.get_freeze_count(),
        "handlers": {
            name: list(logging.getLogger(name).handlers) for name in (None, "nannyd", "distributed")
        },
        "levels": {name: logging.getLogger(name).level for name in (None, "nannyd", "distributed")},
        "hook": sys.excepthook,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "session": os.getsid(0),
        "importers": len(sys.meta_path),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "handler of the loop": asyncio.get_running_loop().get_exception_handler(),
    }


def _wakeup() -> int:
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return descriptor


@program
async def it_leaves_the_process_alone() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "1000000", "X_OWN": "1"}
        listening = __import__("socket").socket(1, 2 | os.O_NONBLOCK)
        listening.bind(os.environ["NOTIFY_SOCKET"])
        async with scheduler() as s:
            before = of_the_process()
            async with (
                Nanny(s.address, memory_limit="1 GiB", env={"X_GIVEN": "1"}) as nanny,
                client_of(s) as c,
            ):
                during = of_the_process()
                changed = {name for name in before if before[name] != during[name]}
                assert not changed, {name: (before[name], during[name]) for name in changed}
                inside = dict((await c.run(lambda: dict(os.environ)))[nanny.worker_address])
                assert inside["X_OWN"] == inside["X_GIVEN"] == "1"
                assert "WATCHDOG_USEC" not in inside
                assert inside["NOTIFY_SOCKET"] != os.environ["NOTIFY_SOCKET"]
                await fall(nanny)
                assert during == of_the_process()
            assert before == of_the_process()
        try:
            said = listening.recv(4096)
        except BlockingIOError:
            said = b""
        assert said == b"", "it spoke to the program's own service manager"
        listening.close()
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "X_OWN"):
            del os.environ[name]


@program
async def nothing_is_leaked() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with scheduler() as s:
        async with Nanny(s.address):
            pass
        gc.collect()
        fds, threads, before = descriptors(), threading.active_count(), children()
        refs: list[weakref.ref[Any]] = []
        for _ in range(2):
            async with Nanny(s.address) as nanny:
                await fall(nanny)
                refs += map(weakref.ref, (nanny, nanny.process, nanny.process._supervisor))
            del nanny
        assert children() == before
        await eventually(lambda: descriptors() <= fds, "descriptors are given back")
        assert threading.active_count() <= threads
        await asyncio.sleep(0)
        gc.collect()
        assert not [ref() for ref in refs if ref() is not None]


# --- Workers of all kinds ---------------------------------------------------------------------------


@program
async def arguments_may_be_anything_that_can_be_pickled() -> None:
    class Local(distributed.Worker):  # type: ignore[misc]
        def __init__(self, *args: Any, twice: Callable[[int], int], **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.four = twice(2)

    class Thing:
        value = 5

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "only_here.py").write_text("VALUE = 7\n")  # noqa: ASYNC240
        sys.path.append(directory)
        options = {"worker_class": Local, "twice": lambda x: 2 * x, "config": {"x": {"thing": Thing()}}}
        async with scheduler() as s, Nanny(s.address, **options) as nanny, client_of(s) as c:

            def look(dask_worker: Any) -> tuple[Any, ...]:
                import dask
                import only_here  # type: ignore[import-not-found]

                name = type(dask_worker).__name__
                return name, dask_worker.four, dask.config.get("x.thing").value, only_here.VALUE

            assert await c.run(look) == {nanny.worker_address: ("Local", 4, 5, 7)}
        sys.path.remove(directory)


class Broken(distributed.Worker):  # type: ignore[misc]
    async def start_unsafe(self) -> None:
        raise ValueError("broken")


class Gone(distributed.Worker):  # type: ignore[misc]
    def __init__(self, *_: Any, **__: Any) -> None:
        os._exit(3)


class NoPickleError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Strange(distributed.Worker):  # type: ignore[misc]
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NoPickleError(1, 2)


@program
async def a_start_that_fails_raises_why() -> None:
    async with scheduler() as s:
        for options, kind, text in (
            ({"worker_class": Broken}, RuntimeError, "Broken failed to start"),
            ({"no_such": "argument"}, TypeError, "no_such"),
            ({"worker_class": Gone}, RuntimeError, "failed to start worker process"),
            ({"worker_class": Strange}, RuntimeError, "NoPickleError: 1 and 2"),
            ({"resources": threading.Lock()}, TypeError, "pickle"),
        ):
            with records("distributed.nanny", logging.WARNING) as said:
                nanny = Nanny(s.address, **options)
                error = await raised(nanny)
            assert isinstance(error, RuntimeError)
            assert "Nanny failed to start" in str(error)
            cause = error.__cause__
            assert isinstance(cause, kind), repr(cause)
            assert text in str(cause)
            if options.get("worker_class") is Broken:
                assert "broken" in str(cause.__cause__)
            assert nanny.status == Status.failed
            assert nanny.process is None
            assert not [text for text in said if "Restarting" in text], said
        assert not s.workers


@program
async def a_start_that_takes_too_long_is_given_up() -> None:
    async with scheduler() as s:
        address = s.address
    nanny = Nanny(address, death_timeout=0.5)
    assert isinstance(await raised(nanny), (TimeoutError, asyncio.TimeoutError))
    assert nanny.status == Status.failed


@program
async def environments_are_of_the_worker_alone() -> None:
    config = {
        "distributed.nanny.environ": {"A": 1, "B": 2, "D": 4},
        "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 1, "E": 5},
    }
    os.environ["D"] = "123"
    with dask.config.set(config):
        async with scheduler() as s, Nanny(s.address, env={"B": 3, "C": 4}) as nanny, client_of(s) as c:
            inside = (await c.run(lambda: dict(os.environ)))[nanny.worker_address]
            found = {name: inside.get(name) for name in ("A", "B", "C", "D", "E")}
            assert found == {"A": "1", "B": "3", "C": "4", "D": "123", "E": "5"}
            assert inside["PYTHONHASHSEED"] == "6640"
            os.environ["LATER"] = "1"  # as a plugin may do
            assert await nanny.restart() == "OK"
            assert (await c.run(os.getenv, "LATER"))[nanny.worker_address] == "1"
        os.environ["PYTHONHASHSEED"] = "7"
        async with scheduler() as s, Nanny(s.address) as nanny, client_of(s) as c:
            assert (await c.run(os.getenv, "PYTHONHASHSEED"))[nanny.worker_address] == "7"
    del os.environ["LATER"], os.environ["PYTHONHASHSEED"], os.environ["D"]
    assert "E" not in os.environ


@program
async def the_callers_client_is_not_the_workers() -> None:
    async with scheduler() as s:
        c = await distributed.Client(s.address, asynchronous=True, set_as_default=True)
        with dask.config.set({"scheduler": "dask.distributed", "shuffle": "tasks", "x": "y"}):
            async with Nanny(s.address) as nanny:

                def look() -> list[Any]:
                    import dask

                    return [dask.config.get(key, None) for key in ("scheduler", "shuffle", "x")]

                assert await c.run(look) == {nanny.worker_address: [None, None, "y"]}
        await c.close()


@program
async def the_worker_has_the_event_loop_that_is_configured() -> None:
    with tempfile.TemporaryDirectory() as directory:
        loops = "import asyncio\nclass Loop(asyncio.SelectorEventLoop): pass\nnew_event_loop = Loop\n"
        Path(directory, "uvloop.py").write_text(loops)  # noqa: ASYNC240
        sys.path.append(directory)
        with dask.config.set({"distributed.admin.event-loop": "uvloop"}):
            async with scheduler() as s, Nanny(s.address) as nanny, client_of(s) as c:

                def kind(dask_worker: Any) -> str:
                    return type(dask_worker.loop.asyncio_loop).__module__

                assert await c.run(kind) == {nanny.worker_address: "uvloop"}
        sys.path.remove(directory)


# --- How workers end --------------------------------------------------------------------------------


@program
async def a_worker_that_dies_is_followed_by_another() -> None:
    async with scheduler() as s, Nanny(s.address) as nanny, client_of(s) as c:
        address, pid, directory, process = nanny.worker_address, nanny.pid, nanny.worker_dir, nanny.process
        inner = process.process
        with records("distributed.nanny") as said:
            await fall(nanny)
        assert any("Restarting worker" in text for text in said), said
        assert any(f"worker {pid} was killed by SIGKILL" in text for text in said), said
        assert any("Restarting" in line for _, line in nanny.get_logs())
        assert inner.exitcode == -9
        assert nanny.process is process
        assert nanny.worker_address != address
        assert set(s.workers) == {nanny.worker_address}
        await eventually(lambda: not is_there(directory), "its directory is removed")
        await eventually(lambda: s.get_events("nannyd"), "the cluster is told")
        ((_, event),) = s.get_events("nannyd")
        told = {key: event[key] for key in ("worker", "name", "pid", "result", "signal", "who", "restarts")}
        assert told == {
            "worker": address, "name": address, "pid": pid,
            "result": "signal", "signal": "SIGKILL", "who": "outside", "restarts": 1,
        }  # fmt: skip
        assert await c.submit(sum, [1]) == 1


@program
async def nothing_that_a_task_has_started_survives_the_worker() -> None:
    def leave_behind() -> list[int]:
        """Start a child, one in a session of its own, one that has also lost its parent, and a fork."""
        sleeper = ["sleep", "600"]
        first = subprocess.Popen(sleeper).pid
        second = subprocess.Popen(sleeper, start_new_session=True).pid
        shell = ["setsid", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"]
        third = subprocess.run(shell, capture_output=True, text=True, check=True)
        fork = os.fork()
        if fork == 0:
            time.sleep(600)
        return [first, second, int(third.stdout), fork]

    async with scheduler() as s, client_of(s) as c:
        async with Nanny(s.address) as nanny:
            for end in (lambda: strike(nanny.pid), lambda: nanny.restart(), lambda: c.restart()):
                pids, worker = await c.submit(leave_behind, pure=False), nanny.pid
                assert not [pid for pid in pids if is_gone(pid)]
                ending = end()
                if ending is not None:
                    await ending
                await eventually(lambda: nanny.pid not in (worker, None), "it has ended")  # noqa: B023
                assert [pid for pid in pids if not is_gone(pid)] == []
                await eventually(lambda: nanny.process.status == Status.running, "the next runs")
                await c.wait_for_workers(1)
            pids = await c.submit(leave_behind, pure=False)
        assert [pid for pid in pids if not is_gone(pid)] == []


@program
async def too_much_memory_ends_a_worker() -> None:
    def leak() -> int:
        held = bytearray(LIMIT)
        for offset in range(0, LIMIT, 4096):
            held[offset] = 1
        time.sleep(600)
        return len(held)

    config = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
    with dask.config.set(config):
        options = {"memory_limit": LIMIT}
        async with (
            scheduler(allowed_failures=0) as s,
            client_of(s) as c,
            Nanny(s.address, **options) as nanny,
        ):
            pid, address = nanny.pid, nanny.worker_address
            with records("distributed.nanny.memory") as said:
                future = c.submit(leak)
                error = await raised(future)
            assert type(error).__name__ == "KilledWorker", error
            assert said == [f"Worker {address} (pid={pid}) exceeded 95% memory budget. Restarting..."]
            await eventually(lambda: s.get_events("nannyd"), "the cluster is told why")
            ((_, event),) = s.get_events("nannyd")
            assert event["result"] == "memory"
            assert event["limit"] == LIMIT
            ((_, event),) = s.get_events("worker-restart-memory")
            assert (event["worker"], event["pid"]) == (address, pid)
            assert event["rss"] > 0.9 * LIMIT
            await eventually(lambda: nanny.process.status == Status.running, "the next runs")


@program
async def a_worker_that_hangs_is_killed() -> None:
    def hang() -> None:
        Path(directory, "hangs").touch()
        time.sleep(600)  # and the loop with it

    with tempfile.TemporaryDirectory() as directory:
        async with scheduler() as s, client_of(s) as c:
            nanny = await Nanny(s.address)
            inner = nanny.process.process
            hanging = asyncio.ensure_future(c.run(hang))
            await eventually(Path(directory, "hangs").exists, "the worker hangs")
            with records("distributed.nanny") as said:
                await nanny.close(timeout=0.5)
            assert inner.exitcode == -signal.SIGKILL
            assert any(text.startswith(f"killing worker {inner.pid}") for text in said), said
            assert nanny.status == Status.closed
            assert isinstance(await raised(hanging), Exception)


@program
async def ends_that_are_meant_end_the_nanny() -> None:
    async with scheduler() as s, client_of(s) as c:
        first, second, third, fourth = nannies = await asyncio.gather(*(Nanny(s.address) for _ in range(4)))
        await c.retire_workers([first.worker_address])
        await first.finished()
        second.close_gracefully()
        strike(second.pid)
        await second.finished()
        async with distributed.rpc(third.address) as remote:
            await raised(remote.terminate())  # it hangs up
        await third.finished()
        await s.close()
        await fourth.finished()
        assert {nanny.status for nanny in nannies} == {Status.closed}


class Hasty(distributed.Worker):  # type: ignore[misc]
    """Closes itself, and tells its nanny, in the moment in which the nanny closes it."""

    async def close(self, *args: Any, **options: Any) -> Any:
        return await super().close(*args, **{**options, "nanny": True})


@program
async def a_worker_that_closes_itself_meanwhile_is_not_killed() -> None:
    async with scheduler() as s:
        nanny = await Nanny(s.address, worker_class=Hasty)
        inner = nanny.process.process

        async def ask_meanwhile() -> None:
            await eventually(lambda: nanny.status is Status.closing, "it closes")
            assert "is being closed" in str(await raised(nanny.instantiate()))

        await asyncio.gather(nanny.close(), ask_meanwhile())
        assert nanny.status is Status.closed
        assert inner.exitcode == 0


@program
async def other_ends_do_not() -> None:
    async with scheduler() as s, client_of(s) as c:
        async with Nanny(s.address, lifetime="0.3s", lifetime_restart=True) as nanny:
            pid = nanny.pid
            await eventually(lambda: nanny.pid not in (pid, None), "the next one lives")
            assert nanny.status == Status.running
        async with Nanny(s.address, reconnect=False) as nanny:
            assert await nanny.restart() == "OK"  # that was asked for
            strike(nanny.pid)
            await nanny.finished()
        assert nanny.status == Status.closed
        assert c.status == "running"


@program
async def a_program_may_want_no_word_of_its_children() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    async with scheduler() as s, Nanny(s.address) as nanny:
        inner = nanny.process.process
        await fall(nanny)
        assert inner.exitcode == 255  # nobody can say
    signal.signal(signal.SIGCHLD, before)


# --- What is asked of it ----------------------------------------------------------------------------


@program
async def it_answers_as_a_nanny() -> None:
    with dask.config.set({"distributed.nanny.blocked-handlers": ["run"]}):
        async with scheduler() as s, Nanny(s.address) as blocked, distributed.rpc(blocked.address) as remote:
            error = await raised(remote.run(function=dumps(os.getpid)))
            assert "explicitly disallowed" in str(error)
    async with scheduler() as s, client_of(s) as c, Nanny(s.address) as nanny:
        async with distributed.rpc(nanny.address) as remote:
            answer = await remote.run(function=dumps(lambda dask_worker: dask_worker.pid))
            assert answer["result"] == nanny.pid
            for options in ({}, {"timeout": 1, "reason": "test"}):
                pid = nanny.pid
                assert await remote.kill(**options) is None
                assert is_gone(pid)
                assert await remote.instantiate() in (Status.running, "running")
                assert nanny.pid not in (pid, None)
            pid = nanny.pid
            assert await remote.restart() == "OK"
            assert nanny.pid != pid
            assert await remote.restart(timeout=0.001) == "timed out"
            assert await remote.instantiate() in (Status.running, "running")
            logs = await remote.get_logs(n=5)
            assert [len(entry) for entry in logs] == [2] * 5
        await c.wait_for_workers(1)
        nanny.log_event("topic", {"a": 1})
        await eventually(lambda: s.get_events("topic"), "the event came")
        pid = nanny.pid
        await c.restart()
        assert nanny.pid != pid
        assert list(await c.get_worker_logs(nanny=True)) == [nanny.worker_address]
        assert len(s.workers) == 1


class Noted(plugin.NannyPlugin):  # type: ignore[misc]
    """Changes what the next worker finds."""

    name = "noted"
    restart = True

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def setup(self, nanny: Any) -> None:
        nanny.env["NOTED"] = "1"
        sys.path.append(self.directory)

    def teardown(self, nanny: Any) -> None:
        del nanny.env["NOTED"]
        sys.path.remove(self.directory)


class Failing(plugin.NannyPlugin):  # type: ignore[misc]
    """Cannot be set up."""

    name = "failing"

    def setup(self, nanny: Any) -> None:
        raise ZeroDivisionError(nanny.status.name)


@program
async def plugins_reach_the_next_worker() -> None:
    def look(dask_worker: Any) -> tuple[str | None, bool]:
        return os.environ.get("NOTED"), "/to/be/found" in sys.path

    async with scheduler() as s, client_of(s) as c, Nanny(s.address) as nanny:
        pid = nanny.pid
        await c.register_plugin(Noted("/to/be/found"))
        assert nanny.pid != pid
        await c.wait_for_workers(1)
        assert await c.run(look) == {nanny.worker_address: ("1", True)}
        assert list(nanny.plugins) == ["noted"]
        error = await raised(c.register_plugin(Failing()))
        assert isinstance(error, ZeroDivisionError), error
        await c.unregister_worker_plugin("noted", nanny=True)
        assert "NOTED" not in nanny.env
        await c.register_plugin(plugin.Environ({"GIVEN": "2"}))
        async with Nanny(s.address) as late:
            assert "2" in set((await c.run(os.getenv, "GIVEN", workers=[late.worker_address])).values())


@program
async def it_listens_where_it_is_told() -> None:
    async with scheduler() as s, client_of(s) as c:
        base = 20000 + os.getpid() % 20000
        ports = {"port": f"{base}:{base + 9}", "worker_port": f"{base + 10}:{base + 19}"}
        async with (
            Nanny(s.address, host="127.0.0.2", **ports) as first,
            Nanny(s.address, host="127.0.0.2", **ports) as second,
        ):
            assert first.port != second.port
            assert {first.port, second.port} < set(range(base, base + 10))
            found = await c.run(lambda dask_worker: dask_worker.port)
            assert set(found.values()) < set(range(base + 10, base + 20))
            assert all(nanny.address.startswith("tcp://127.0.0.2:") for nanny in (first, second))
            assert all("127.0.0.2" in address for address in found)


# --- Clusters ---------------------------------------------------------------------------------------


def clusters_use_it() -> None:
    """LocalCluster, SpecCluster and adaptive scaling, from a thread without a loop."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, worker_class=Nanny, dashboard_address=None, memory_limit="1 GiB"
    ) as cluster:
        assert cluster.scheduler_address.startswith("tcp://")
        with distributed.Client(cluster, set_as_default=False) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            cluster.scale(2)
            client.wait_for_workers(2)
            pids = {nanny.pid for nanny in cluster.workers.values()}
            client.restart()
            assert not pids & {nanny.pid for nanny in cluster.workers.values()}
            leaving = list(cluster.workers.values())
            cluster.adapt(minimum=0, maximum=1, interval="50ms", target_duration="100ms", wait_count=1)
            until = time.monotonic() + PATIENCE
            while cluster.workers:
                assert time.monotonic() < until
                time.sleep(0.02)
            while {nanny.status for nanny in leaving} != {Status.closed}:
                assert time.monotonic() < until
                time.sleep(0.02)
            assert client.submit(lambda: 4).result(timeout=PATIENCE) == 4  # scaled up again for it
    assert not [pid for pid in children() if not is_gone(pid)]
    spec = {"alice": {"cls": Nanny, "options": {"nthreads": 1}}}
    options = {"dashboard_address": ":0", "dashboard": False}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    with distributed.SpecCluster(workers=spec, scheduler=scheduler) as cluster:
        nanny = cluster.workers["alice"]
        assert nanny.name == "alice"
        pid = nanny.pid
        strike(pid)
        until = time.monotonic() + PATIENCE
        while nanny.pid in (None, pid) or nanny.process.status != Status.running:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert not [pid for pid in children() if not is_gone(pid)]


def several_loops_have_theirs() -> None:
    """Two threads, each with a loop and a Nanny, at once."""
    failed: list[BaseException] = []

    async def live() -> None:
        async with scheduler() as s, Nanny(s.address) as nanny:
            for _ in range(2):
                pid = nanny.pid
                assert await nanny.restart() == "OK"
                assert nanny.pid != pid
                assert is_gone(pid)

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert not children()


def a_loop_that_ends_takes_its_workers_along() -> None:
    """Nobody closes the Nanny."""
    pids: list[int] = []

    async def forget() -> None:
        s = await distributed.Scheduler(port=0, dashboard_address=":0", dashboard=False)
        nanny = await Nanny(s.address)
        async with client_of(s) as c:
            pids.append(await c.submit(lambda: subprocess.Popen(["setsid", "sleep", "600"]).pid))
        pids.append(nanny.pid)

    asyncio.run(forget())
    until = time.monotonic() + PATIENCE
    while not all(map(is_gone, pids)):
        assert time.monotonic() < until
        time.sleep(0.02)


def a_program_that_ends_leaves_nothing() -> None:
    """Nobody closes the cluster: at its end, and when it is killed."""
    for end in ("pass", "os.kill(os.getpid(), 9)"):
        with tempfile.TemporaryDirectory() as directory:
            environ = {**os.environ, "PYTHONPATH": ":".join(sys.path), "TMPDIR": directory}
            text = UNCLOSED.format(end=end)
            ended = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True)
            pids = list(map(int, ended.stdout.split()))
            assert len(pids) == 2, ended.stderr
            until = time.monotonic() + PATIENCE
            while not all(map(is_gone, pids)):
                assert time.monotonic() < until, (end, [pid for pid in pids if not is_gone(pid)])
                time.sleep(0.02)
            left = [path for path in Path(directory).rglob("*") if re.search("nannyd-|worker-", path.name)]
            assert not left, (end, left)


UNCLOSED = """
import os, subprocess
import distributed
from nannyd.dask import Nanny

def start():
    return os.getpid(), subprocess.Popen(["sleep", "600"], stdout=-3, stderr=-3).pid

if __name__ == "__main__":
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, worker_class=Nanny, dashboard_address=None
    )
    client = distributed.Client(cluster)
    print(*client.submit(start).result(), flush=True)
    {end}
"""


@program
async def connections_may_be_encrypted() -> None:
    with tempfile.TemporaryDirectory() as directory:
        request = "openssl req -x509 -newkey rsa:2048 -nodes -batch -days 2 -subj /CN=localhost"
        files = [f"{directory}/{name}.pem" for name in ("cert", "key")]
        command = [*request.split(), "-out", files[0], "-keyout", files[1]]
        subprocess.run(command, check=True, capture_output=True)
        given = {"tls_ca_file": files[0], "require_encryption": True}
        for role in ("scheduler", "worker", "client"):
            given |= {f"tls_{role}_cert": files[0], f"tls_{role}_key": files[1]}
        security = distributed.Security(**given)
        async with (
            scheduler(security=security, protocol="tls://") as s,
            client_of(s, security=security) as c,
            Nanny(s.address, security=given) as nanny,
        ):
            assert nanny.address.startswith("tls://")
            assert nanny.worker_address.startswith("tls://")
            assert await c.submit(sum, [1, 2]) == 3
            assert list((await c.run(os.getpid, nanny=True)).values()) == [os.getpid()]
            await c.restart()
            assert await c.submit(sum, [1, 2]) == 3
