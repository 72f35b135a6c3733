"""One life after another of a Dask worker, with the test in the place of its supervisor."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from bootstrap_peer import Running
from harness import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from .lab import Cluster

TARGET = "nannyd.dask.worker:DaskWorker"


class Supervisor:
    """Starts lives, and keeps for the next what a supervisor keeps."""

    def __init__(self, cluster: Cluster, directory: str, base: Path) -> None:
        """*directory* holds the parts of nannyd that a worker gets; *base* is for everything else."""
        self.cluster = cluster
        self.plugins: list[dict[str, str]] = []
        self.nanny: str | None = None
        self._directory = directory
        self._base = base
        self._lives: list[Life] = []

    def start(self, **changes: Any) -> Life:
        """Start a life; *changes* are keyword arguments of the worker, `life` and `options` in part."""
        life = {
            "nanny": self.nanny,
            "known": {plugin["name"]: plugin["digest"] for plugin in self.plugins},
            "unregister": None,
            "exits": [],
            "directory": str(self._base),
            **changes.pop("life", {}),
        }
        options = {"name": "w1", "nthreads": 1, "memory_limit": None, "dashboard": False}
        kwargs = {
            "scheduler": self.cluster.address,
            "scheduler_file": None,
            "worker_class": None,
            "options": {**options, **changes.pop("options", {})},
            "config": {},
            "security": self.cluster.security,
            "nanny": {},
            "death_timeout": None,
            "life": life,
        }
        assert not changes.keys() - kwargs.keys() - {"pickled", "stop_timeout"}
        scratch = self._base / f"worker-{len(self._lives)}"
        scratch.mkdir()
        running = Running.launch(self._directory, self._base, python=self.cluster.python, target=TARGET)
        stop_timeout = changes.pop("stop_timeout", 5.0)
        running.specify(
            target=TARGET,
            kwargs={**kwargs, **changes},
            local_directory=str(scratch),
            stop_timeout=stop_timeout,
        )
        self._lives.append(Life(self, running))
        return self._lives[-1]

    def listening(self) -> socket.socket:
        """Return the nanny's socket that a life has handed over."""
        (fd,) = [fd for life in self._lives for fd in life.running.descriptors]
        return socket.socket(fileno=os.dup(fd))

    def close(self) -> None:
        """Kill what is left."""
        for life in self._lives:
            life.running.close()


class Life:
    """One process."""

    def __init__(self, supervisor: Supervisor, running: Running) -> None:
        """*running* has been specified."""
        self.running = running
        self._supervisor = supervisor

    @property
    def facts(self) -> dict[str, Any]:
        """What it has said of Dask so far, each key as it was said last."""
        facts: dict[str, Any] = {}
        for fields in self.running.said:
            facts |= json.loads(fields.get("X_NANNYD_DASK", "{}"))
        self._supervisor.plugins = facts.get("plugins", self._supervisor.plugins)
        self._supervisor.nanny = facts.get("nanny", self._supervisor.nanny)
        return facts

    def ready(self) -> dict[str, str]:
        """Wait until it is ready, and return with which words it said so."""
        try:
            said = self.running.hears("READY", "1")
        except TimeoutError:
            raise AssertionError(f"it is not ready: {self.running.said}\n{self.running.stderr()}") from None
        assert self.facts is not None
        return said

    def says(self, key: str) -> Any:
        """Wait until it has said *key*, and return what."""
        while key not in self.facts:
            self.running.hears("X_NANNYD_DASK")
        return self.facts[key]

    def stop(self, timeout: float = 4.0, reason: str = "stop", drain: float = 0.0) -> int:
        """Ask for its end, and return the exit status."""
        line = json.dumps({"stop": {"timeout": timeout, "reason": reason, "drain": drain}})
        self.running.channel.sendall(line.encode() + b"\n")
        return self.running.ends()

    def logs(self, words: str) -> None:
        """Wait until *words* are on its standard error."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.running.stderr():
            assert time.monotonic() < deadline, self.running.stderr()
            time.sleep(0.01)
