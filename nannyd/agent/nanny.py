"""The object that plugins, preloads and called functions are given: `nanny`.

Stable: names are added, never renamed or removed.  It may be used from every thread of the agent.  What
takes time returns an `Answer`: asked at once, whether or not somebody waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Generator, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from nannyd.agent.link import NannyError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from nannyd.agent.link import Link

__all__ = ["Answer", "Environment", "Nanny", "NannyError"]


class Answer(Awaitable[None]):
    """What nannyd will answer: `await answer` in async code, `answer.result()` in plain code.

    Both raise NannyError if nannyd refuses or fails.  Nobody has to wait: what was asked is under way.
    """

    def __init__(self, future: Future[dict[str, Any]], link: Link) -> None:
        """Stand for *future*."""
        self._future = future
        self._link = link

    def result(self, timeout: float | None = None) -> None:
        """Wait for the answer, at most *timeout* seconds (then TimeoutError); not in async code."""
        if threading.get_ident() == self._link.loop_thread:
            raise RuntimeError("result() would block the event loop of all plugins; await the answer instead")
        import concurrent.futures

        try:
            self._future.result(timeout)
        except concurrent.futures.TimeoutError:  # until Python 3.11 not the builtin one
            raise TimeoutError(f"no answer within {timeout} s") from None

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the answer."""
        import asyncio

        yield from asyncio.wrap_future(self._future).__await__()


class Environment(MutableMapping[str, str]):
    """What plugins add to the environment of the next worker.

    A change is made in the name of the plugin, shows in `nannyctl explain`, and lasts until the plugin is
    removed or nannyd ends; a running worker keeps the environment that it has.  Deleting a variable lets it
    be what it was without this plugin.  Reading shows what all plugins have set, no more.
    """

    def __init__(self, link: Link, owner: str) -> None:
        """*owner* is who makes changes."""
        self._link = link
        self._owner = owner
        self._own: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        """Return the value of *name*."""
        return self._link.env[name]

    def __setitem__(self, name: object, value: object) -> None:
        """Set *name* for the next worker."""
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"environment variable {name!r}: name and value must be str, not {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"environment variable {name!r}: no name, or a character that cannot be in one")
        self._own[name] = None
        self._link.set_env(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        """Let *name* be what it was."""
        if name not in self._link.env:
            raise KeyError(name)
        self._own.pop(name, None)
        self._link.set_env(self._owner, name, None)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._link.env)

    def __len__(self) -> int:
        """Return the number of variables."""
        return len(self._link.env)

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        """Travel as what is read here."""
        return dict, (dict(self),)

    def __repr__(self) -> str:
        """Show names only: a value may be a secret."""
        return f"<environment of the next worker: {', '.join(self)}>"

    def take_back(self) -> None:
        """Undo what was set through this object."""
        while self._own:
            self._link.set_env(self._owner, self._own.popitem()[0], None)

    def take_all_back(self) -> None:
        """Undo what was set by this owner, before a crash of the agent, too."""
        self.take_back()
        self._link.take_back(self._owner)


class Nanny:
    """The nanny of one worker, as its plugins see it."""

    def __init__(self, link: Link, owner: str) -> None:
        """*owner* is who asks: the name of a plugin, or `preload mod`, or `call pkg.mod:f`."""
        self._link = link
        self._owner = owner
        self.env = Environment(link, owner)
        """What plugins add to the environment of the next worker."""

    @property
    def name(self) -> str:
        """The instance's name."""
        return self._link.name

    @property
    def status(self) -> str | None:
        """What the worker is doing, in systemd's words: `running`, `auto-restart`, `stop-sigterm`, …"""
        return self._link.facts.state

    @property
    def pid(self) -> int | None:
        """The worker's process; None while there is none."""
        return self._link.facts.pid

    @property
    def worker_address(self) -> str | None:
        """Where the worker can be reached, in the form in which it has said so."""
        return self._link.facts.worker_address

    @property
    def worker_dir(self) -> str | None:
        """The private scratch directory of the worker, removed after its end."""
        return self._link.facts.worker_dir

    @property
    def local_directory(self) -> str | None:
        """The directory in which the scratch directories of this instance are made."""
        return self._link.facts.local_directory

    @property
    def memory_limit(self) -> int | None:
        """The worker's memory limit in bytes; None for none."""
        return self._link.facts.memory_limit

    def log_event(self, topic: str, msg: Any) -> Answer:
        """Record an event in the journal and for every follower; *msg* is text, or what JSON can say."""
        return Answer(self._link.ask("log_event", topic=topic, message=msg), self._link)

    def restart(self, timeout: float | None = None, reason: str | None = None) -> Answer:
        """End the worker and start the next one; answered when that is ready."""
        return self._ask("restart", timeout=timeout, reason=reason or self._owner)

    def kill(self, timeout: float | None = None, reason: str | None = None) -> Answer:
        """End the worker: ask it, and after *timeout* seconds kill it; answered when nobody is left of it."""
        return self._ask("kill", timeout=timeout, reason=reason or self._owner)

    def instantiate(self, timeout: float | None = None) -> Answer:
        """Start the worker, if it is not running; answered when it is ready."""
        return self._ask("instantiate", timeout=timeout)

    def close(self, reason: str | None = None) -> Answer:
        """End the worker, then nannyd."""
        return self._ask("close", reason=reason or self._owner)

    @property
    def owner(self) -> str:
        """In whose name it asks."""
        return self._owner

    def __repr__(self) -> str:
        """Say whose nanny it is, for whom."""
        return f"<Nanny of {self.name} for {self._owner}>"

    def _ask(self, what: str, **parameters: Any) -> Answer:
        return Answer(self._link.ask(what, **parameters), self._link)
