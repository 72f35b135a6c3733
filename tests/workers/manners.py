"""Plugins, preloads and functions with the manners that a nanny must live with."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from nannyd.agent import NannyPlugin
from nannyd.core import wire


def note(path: str, text: str) -> None:
    """Append a line to a file that the test reads."""
    with Path(path).open("a") as file:
        file.write(text + "\n")


class Noting(NannyPlugin):
    """Writes down everything that it is told."""

    def __init__(self, path: str, label: str = "noting", restart: bool = False) -> None:  # noqa: FBT001, FBT002
        self.path, self.label, self.restart = path, label, restart
        self.name = label

    def setup(self, nanny: Any) -> None:
        note(self.path, f"{self.label} setup {nanny.name} {nanny.pid}")

    def teardown(self, nanny: Any) -> None:
        note(self.path, f"{self.label} teardown")

    def worker_started(self, info: Any) -> None:
        note(self.path, f"{self.label} worker_started {info.pid}")

    def worker_exiting(self, reason: Any) -> None:
        note(self.path, f"{self.label} worker_exiting {reason}")

    def worker_exited(self, info: Any) -> None:
        note(self.path, f"{self.label} worker_exited {info.pid} {info.result}")

    def memory_warning(self, reading: Any) -> None:
        note(self.path, f"{self.label} memory_warning {reading.working_set}")


class Variable(NannyPlugin):
    """Sets a variable of the next worker."""

    restart = True

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value

    def setup(self, nanny: Any) -> None:
        nanny.env[self.key] = self.value


class Learning(NannyPlugin):
    """Sets a variable when a worker has ended."""

    def setup(self, nanny: Any) -> None:
        self.nanny = nanny

    def worker_exited(self, info: Any) -> None:
        self.nanny.env["LEARNT"] = "much"


class Broken(NannyPlugin):
    """Cannot be set up."""

    def setup(self, nanny: Any) -> None:
        raise ValueError("not today")


class Moody(Noting):
    """In its setup it does what the file *mood* says, and waits for that if it is a FIFO.

    Of several words each setup takes one, but the last stays.
    """

    def __init__(self, path: str, label: str, mood: str) -> None:
        super().__init__(path, label)
        self.mood = Path(mood)

    def setup(self, nanny: Any) -> None:
        note(self.path, f"{self.label} is in a mood")
        mood, _, rest = self.mood.read_text().partition(" ")
        if rest:
            self.mood.write_text(rest)
        if mood == "raise":
            raise ValueError("not today")
        if mood == "die":
            os._exit(3)
        super().setup(nanny)


class Blocking(NannyPlugin):
    """Blocks all of the agent when a worker is ready."""

    async def worker_started(self, info: Any) -> None:
        time.sleep(3600)


async def block() -> None:
    time.sleep(3600)


async def die_when_pinged() -> None:
    """Block the agent, and end it when it is asked whether it still answers."""
    with socket.socket(fileno=os.dup(wire.CHANNEL_FD)) as channel:
        channel.setblocking(True)
        while b'"ping"' not in channel.recv(1 << 16, socket.MSG_PEEK):
            time.sleep(0.01)
    os._exit(7)


def eat(size: int) -> int:
    """Take memory until there is none."""
    return len(bytearray(os.urandom(1 << 20) * (size >> 20)))


def add(a: int, b: int = 1) -> int:
    return a + b


def fail() -> None:
    raise KeyError("nothing there")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # noqa: TID251


def seen(nanny: Any) -> dict[str, str]:
    """Return what plugins have set, as the agent sees it."""
    return dict(nanny.env)


def pid() -> int:
    return os.getpid()


def set_variable(nanny: Any, name: str) -> None:
    nanny.env[name] = "mine"
    nanny.log_event("manners", "set").result(10)  # by then nannyd has heard of it


async def restart_worker(nanny: Any) -> Any:
    return await nanny.restart(reason="a function asked for it")


async def slow() -> str:
    await asyncio.sleep(3600)
    return "never"
