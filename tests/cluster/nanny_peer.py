"""The agent's server, with the test in the place of the supervisor and a real client that asks."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from agent_peer import FACTS, Agent
from harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .lab import Cluster

_ASK = """
import asyncio

async def ask():
    security = client.security.get_connection_args("client")
    async with distributed.rpc(address, connection_args=security) as nanny:
        return await asyncio.wait_for(getattr(nanny, op)(**parameters), 20)

client.sync(ask)
"""


class Nanny:
    """One agent and the socket that waits for it."""

    def __init__(self, cluster: Cluster, directory: str, base: Path) -> None:
        """*directory* holds the parts of nannyd that an agent gets."""
        self.cluster = cluster
        self.base = base
        self.listening = socket.create_server(("127.0.0.1", 0))
        scheme = cluster.address.partition("://")[0]
        self.address = f"{scheme}://127.0.0.1:{self.listening.getsockname()[1]}"
        self.agent = Agent(directory, base, python=cluster.python, environ={})

    def specify(self, *, preload: Sequence[str] = (), **changes: Any) -> None:
        """Send the specification; *changes* are arguments of the extension."""
        arguments = {
            "security": self.cluster.security,
            "blocked_handlers": None,
            "config": {},
            "name": "w1",
            "nthreads": 2,
            "scheduler": self.cluster.address,
            "nanny": self.address,
            **changes,
        }
        self.agent.specify(
            extension={"target": "nannyd.dask.server:Extension", "arguments": arguments},
            facts={**FACTS, "local_directory": str(self.base)},
            preload=list(preload),
            preload_argv=[[] for _ in preload],
        )

    def serve(self) -> None:
        """Have it serve."""
        self.agent.give(self.listening)
        assert self.agent.do("serve") == {}

    def ask(self, op: str, **parameters: Any) -> Any:
        """Return what a client's request gives, while the agent is answered what it asks."""
        return self.begin(op, **parameters)()

    def begin(self, op: str, **parameters: Any) -> Callable[[], Any]:
        """Begin a request; what is returned waits for its end, and is the supervisor meanwhile."""
        return self.begin_run(_ASK, address=self.address, op=op, parameters=parameters)

    def begin_run(self, code: str, **values: Any) -> Callable[[], Any]:
        """Begin to run *code* at the client, as `begin`."""
        ended, end = socket.socketpair()
        outcome: list[Any] = []

        def body() -> None:
            try:
                outcome.append(self.cluster.run(code, **values))
            except BaseException as error:  # noqa: BLE001 (it is the test's)
                outcome.append(error)
            end.close()

        def wait() -> Any:
            with ended:
                self.agent.until_readable(ended)
            thread.join()
            if isinstance(outcome[0], BaseException):
                raise outcome[0]
            return outcome[0]

        thread = threading.Thread(target=body)
        thread.start()
        return wait

    def await_knock(self) -> None:
        """Wait until somebody has connected whom nobody has accepted."""
        assert select.select([self.listening], [], [], PATIENCE)[0]

    def close(self) -> None:
        """End it."""
        self.agent.close()
        self.listening.close()
