"""Preloads' functions, plugins and functions for the agent's tests, good and bad.

STORY is what has happened so far; the tests read it by calling `story`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nannyd.agent import MemoryReading, Nanny, NannyError, NannyPlugin, WorkerExited, WorkerStarted

STORY: list[str] = []


def story() -> list[str]:
    """Return what has happened, and forget it."""
    told = []
    while STORY:  # one by one: other threads go on telling
        told.append(STORY.pop(0))
    return told


# --- Plugins --------------------------------------------------------------------------------------------


class Plain(NannyPlugin):
    """Tells its story, in plain methods."""

    def __init__(self, label: str = "plain", *, restart: bool = False) -> None:
        self.label = label
        self.restart = restart

    def _tell(self, what: str) -> None:
        thread = threading.current_thread()
        assert thread is not threading.main_thread()
        assert thread.daemon
        STORY.append(f"{self.label} {what}")

    def setup(self, nanny: Nanny) -> None:
        self._tell(f"setup of {nanny.name}")

    def teardown(self, nanny: Nanny) -> None:
        self._tell(f"teardown of {nanny.name}")

    def worker_started(self, info: WorkerStarted) -> None:
        self._tell(f"started {info.pid} {info.generation} {info.address}")

    def worker_exiting(self, reason: str) -> None:
        self._tell(f"exiting {reason}")

    def worker_exited(self, info: WorkerExited) -> None:
        self._tell(f"exited {info}")

    def memory_warning(self, reading: MemoryReading) -> None:
        self._tell(f"memory {reading.working_set} of {reading.limit}, swap {reading.swap}")


class Async(NannyPlugin):
    """Tells its story, in async methods."""

    name = "the-async-one"

    async def setup(self, nanny: Nanny) -> None:
        await asyncio.sleep(0)
        assert threading.current_thread() is threading.main_thread()
        STORY.append(f"async setup of {nanny.name}")

    async def teardown(self, nanny: Nanny) -> None:
        await asyncio.sleep(0)
        STORY.append("async teardown")

    async def worker_exited(self, info: WorkerExited) -> None:
        STORY.append(f"async exited {info.pid}")


class Duck:
    """Inherits nothing."""

    def setup(self, nanny: Any) -> None:
        STORY.append(f"duck setup of {nanny.name}")


class Nothing:
    """Is no plugin."""


class Sleepy(NannyPlugin):
    """Takes its time over everything, in plain or async methods, and fails where *fails* says."""

    def __init__(self, label: str, pause: float, fails: str, *, is_async: bool) -> None:
        self.label, self.pause, self.fails, self.is_async = label, pause, fails, is_async

    def _do(self, what: str) -> Any:
        if self.is_async:
            return self._do_async(what)
        STORY.append(f"{self.label} {what} begins")
        time.sleep(self.pause)
        return self._finish(what)

    async def _do_async(self, what: str) -> None:
        STORY.append(f"{self.label} {what} begins")
        await asyncio.sleep(self.pause)
        self._finish(what)

    def _finish(self, what: str) -> None:
        STORY.append(f"{self.label} {what} {'fails' if self.fails == what else 'ends'}")
        if self.fails == what:
            raise ValueError(what)

    def setup(self, nanny: Nanny) -> Any:
        return self._do("setup")

    def teardown(self, nanny: Nanny) -> Any:
        return self._do("teardown")

    def worker_exiting(self, reason: str) -> Any:
        return self._do("hook")


class Raising(NannyPlugin):
    """Raises wherever *method* says."""

    def __init__(self, method: str, kind: str = "ValueError", size: int = 0) -> None:
        self.method, self.kind, self.text = method, kind, "it is broken" + size * "\N{ROCKET}"
        self._raise("__init__")

    def _raise(self, method: str) -> None:
        if self.method == method:
            raise {"ValueError": ValueError, "SystemExit": SystemExit, "Rude": _Rude}[self.kind](self.text)
        STORY.append(f"{method} went well")

    def setup(self, nanny: Nanny) -> None:
        nanny.env["RAISING"] = "1"
        self._raise("setup")

    async def teardown(self, nanny: Nanny) -> None:
        self._raise("teardown")

    def worker_started(self, info: WorkerStarted) -> None:
        self._raise("worker_started")

    async def worker_exiting(self, reason: str) -> None:
        self._raise("worker_exiting")


class _Rude(BaseException):
    def __str__(self) -> str:
        raise SystemExit("not even that")


class Awkward(NannyPlugin):
    """Whatever one looks at blocks for ever."""

    name = "awkward"

    def __getattribute__(self, name: str) -> Any:
        if name == "setup":
            threading.Event().wait()
        return super().__getattribute__(name)


class Blocking(NannyPlugin):
    """Blocks for ever wherever *method* says, in a thread or (async) in a coroutine."""

    def __init__(self, method: str, *, is_async: bool = False) -> None:
        self.method, self.is_async = method, is_async

    def _block(self, method: str) -> Any:
        STORY.append(f"{method} begins")
        if self.method != method:
            return None
        if self.is_async:
            return _stubborn()
        threading.Event().wait()
        return None

    def setup(self, nanny: Nanny) -> Any:
        return self._block("setup")

    def teardown(self, nanny: Nanny) -> Any:
        return self._block("teardown")

    def worker_started(self, info: WorkerStarted) -> Any:
        return self._block("worker_started")


async def _stubborn() -> None:
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            STORY.append("is not to be cancelled")


class LoopBlocking(NannyPlugin):
    """Blocks the event loop, as an async plugin must not."""

    async def setup(self, nanny: Nanny) -> None:
        await nanny.log_event("test", "blocking")
        threading.Event().wait()


class Leaking(NannyPlugin):
    """Leaves a thread, a descriptor, and an executor's worker (which no interpreter's end survives)."""

    def setup(self, nanny: Nanny) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.descriptor = os.open("/dev/null", os.O_RDONLY)
        threading.Thread(target=threading.Event().wait).start()
        ThreadPoolExecutor().submit(threading.Event().wait)


class ExitingLater(Leaking):
    """Exits in a task of its own, where nobody catches it."""

    async def worker_started(self, info: WorkerStarted) -> None:
        async def leave() -> None:
            sys.exit(3)

        self.task = asyncio.get_running_loop().create_task(leave())


class Environment(NannyPlugin):
    """Sets variables, sees what is set, takes one back."""

    def setup(self, nanny: Nanny) -> None:
        STORY.append(f"saw {dict(nanny.env)}")
        nanny.env["A"] = "1"
        nanny.env.update(B="2", C="3")
        del nanny.env["C"]
        STORY.append(f"set {dict(nanny.env)}")
        for name, value in [("", "x"), ("X=Y", "x"), ("X", "\0"), ("X", 1), (b"X", "x")]:
            try:
                nanny.env[name] = value
            except (TypeError, ValueError) as error:
                STORY.append(type(error).__name__)
        try:
            del nanny.env["NEVER"]
        except KeyError:
            STORY.append("KeyError")


class Slow(NannyPlugin):
    """Takes its time over a hook, which must not overlap with the next."""

    def worker_started(self, info: WorkerStarted) -> None:
        STORY.append(f"begin {info.generation}")
        time.sleep(0.05)
        STORY.append(f"end {info.generation}")


# --- Functions ------------------------------------------------------------------------------------------


def add(a: int, b: int = 0) -> int:
    """Return the sum."""
    return a + b


async def add_async(a: int, b: int = 0) -> int:
    """Return the sum."""
    await asyncio.sleep(0)
    return a + b


def facts(nanny: Nanny) -> dict[str, Any]:
    """Return all that the nanny object shows."""
    names = ["name", "status", "pid", "worker_address", "worker_dir", "local_directory", "memory_limit"]
    return {**{name: getattr(nanny, name) for name in names}, "env": dict(nanny.env)}


def who_am_i(dask_worker: Nanny) -> str:
    """Return how the nanny shows itself."""
    return repr(dask_worker)


def nanny_in_the_middle(a: int, nanny: Nanny, b: int, c: int = 3) -> list[Any]:
    """Return what it was given."""
    return [a, nanny.name, b, c]


def say(what: Any) -> Any:
    """Return the argument."""
    return what


def text(size: int) -> str:
    """Return a long text."""
    return "x" * size


def nothing_json_can_say(kind: str) -> Any:
    """Return something else."""
    circle: list[Any] = []
    circle.append(circle)
    return {"set": {1}, "nan": float("nan"), "circle": circle, "object": object()}[kind]


def fail(size: int = 0) -> None:
    """Raise after a deep recursion."""
    if size:
        fail(size - 1)
    raise ValueError("so deep")


def leave() -> None:
    """Try to end the agent."""
    sys.exit(3)


async def leave_async() -> None:
    """Try to end the agent."""
    sys.exit(3)


def die() -> None:
    """End the agent."""
    os._exit(7)


def wait_for(path: str) -> str:
    """Return when a file is there."""
    while not Path(path).exists():
        time.sleep(0.005)
    return path


async def wait_for_ever() -> None:
    """Never return; say that it was cancelled."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        STORY.append("cancelled")


def threads() -> list[str]:
    """Return the names of all threads."""
    return sorted(thread.name for thread in threading.enumerate())


def modules() -> list[str]:
    """Return the modules that are there."""
    return [name for name in sys.modules if sys.modules.get(name)]


def hosted() -> int:
    """Return how many plugins of this module there are, wherever they are kept."""
    gc.collect()
    return sum(isinstance(thing, NannyPlugin) for thing in gc.get_objects())


def extend_path(directory: str) -> None:
    """Let modules be found in *directory*."""
    sys.path.insert(0, directory)


def environment() -> dict[str, Any]:
    """Return what the process is like."""
    return {"environ": dict(os.environ), "argv": sys.argv, "path": sys.path, "cwd": str(Path.cwd())}


def ask(nanny: Nanny, method: str, kwargs: dict[str, Any]) -> str | None:
    """Ask in plain code, and return what came of it."""
    try:
        getattr(nanny, method)(**kwargs).result(5)
    except NannyError as error:
        return f"{error.name} {error.parameters}: {error}"
    return None


async def ask_async(nanny: Nanny, method: str, kwargs: dict[str, Any]) -> str | None:
    """Ask in async code, and return what came of it."""
    try:
        await getattr(nanny, method)(**kwargs)
    except NannyError as error:
        return f"{error.name} {error.parameters}: {error}"
    return None


async def block_in_the_loop(nanny: Nanny) -> None:
    """Do what must not be done in async code."""
    nanny.restart().result()


def wait_too_short(nanny: Nanny) -> None:
    """Give up on an answer that never comes."""
    nanny.restart().result(0.01)


def log_an_object(nanny: Nanny) -> None:
    """Log what JSON cannot say."""
    nanny.log_event("test", object()).result()


def fork(path: str) -> None:
    """Leave a child behind that has whatever a forked child has, and waits for a file."""
    if os.fork() == 0:
        while not Path(path).exists():
            time.sleep(0.005)
        os._exit(0)


async def https(port: int, certificate: str) -> str:
    """Speak TLS with asyncio, as a plugin may."""
    import ssl

    context = ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    text = await reader.read()
    writer.close()
    return text.decode()
