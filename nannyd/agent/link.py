"""What the agent knows of the supervisor, and asks of it; shared by all that were given a `nanny`.

May be used from every thread.  Questions and answers pass the channel in order; so what a plugin has set is
known to the supervisor before it hears that the plugin's method has returned.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class NannyError(Exception):
    """nannyd did not do what it was asked to; `name` is an error of its control interface: `TimedOut`, …"""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Say it in one line."""
        details = ", ".join(f"{key}: {value}" for key, value in parameters.items())
        super().__init__(f"{name} ({details})" if details else name)
        self.name = name
        self.parameters = dict(parameters)


@dataclass(frozen=True)
class Facts:
    """What the supervisor has told of itself and the worker."""

    state: str | None = None
    pid: int | None = None
    worker_address: str | None = None
    worker_dir: str | None = None
    local_directory: str | None = None
    memory_limit: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    """What only an extension understands."""


class Link:
    """Facts, questions and answers."""

    def __init__(
        self, name: str, facts: Mapping[str, Any], send: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """*send* puts an object on the channel, from whatever thread."""
        self.name = name
        self.loop_thread = threading.get_ident()
        """The thread in which nobody may wait."""
        self._send = send
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._changes: dict[int, tuple[str, str | None]] = {}
        """What the supervisor has not confirmed yet of changes of the environment."""
        self.learned: Callable[[], None] = lambda: None
        """Is called when there are new facts."""
        self.learn(facts)

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Take over new facts."""
        known = {key: facts[key] for key in Facts.__dataclass_fields__ if key in facts}
        self.facts = Facts(**known, other={key: facts[key] for key in facts if key not in known})
        self.learned()

    def ask(self, what: str, **parameters: Any) -> Future[dict[str, Any]]:
        """Ask the supervisor; the future gets what it answers, or a NannyError."""
        with self._lock:
            return self._ask(next(self._numbers), what, parameters)

    def set_env(self, owner: str, name: str, value: str | None) -> None:
        """Have the variable *name* in the next worker's environment, or (None) as it was without *owner*."""
        with self._lock:
            number = next(self._numbers)
            self._ask(number, "set_env", {"plugin": owner, "name": name, "value": value})
            self._changes[number] = (name, value)

    def take_back(self, owner: str) -> None:
        """Have all forgotten that *owner* has set, in an earlier life of the agent, too."""
        self.ask("take_back", plugin=owner)

    @property
    def env(self) -> dict[str, str]:
        """What all plugins together have set, the unconfirmed included."""
        with self._lock:
            env = dict(self.facts.env)
            for change in self._changes.values():
                _apply(env, *change)
        return env

    def take_answer(self, number: int, message: Mapping[str, Any]) -> None:
        """Hand an answer to who has asked."""
        with self._lock:
            asked = self._asked.pop(number, None)
            change = self._changes.pop(number, None)
            if change is not None and "ok" in message:
                # Until the next facts, which have it; the answer tells what another one has set.
                _apply(self.facts.env, change[0], message["ok"].get("value", change[1]))
        if asked is None:
            return
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            if "ok" in message:
                asked.set_result(message["ok"])
            else:
                error = message.get("error", {})
                asked.set_exception(NannyError(error.get("name", "unknown"), error.get("parameters", {})))

    def _ask(self, number: int, what: str, parameters: Mapping[str, Any]) -> Future[dict[str, Any]]:
        self._send({"ask": number, "what": what, "parameters": parameters})
        future: Future[dict[str, Any]] = Future()
        self._asked[number] = future
        return future


def _apply(env: dict[str, str], name: str, value: str | None) -> None:
    if value is None:
        env.pop(name, None)
    else:
        env[name] = value
