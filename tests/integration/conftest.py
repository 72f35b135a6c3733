"""What the integration tests share: a place to run nannyd in, which must be as it was afterwards."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent_peer import Agent
from harness import Host
from varlink_peer import Service

from nannyd.supervisor import library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session", autouse=True)
def signals_that_arrive() -> None:
    """Take back what a shell ignores for a job in the background, or nohup: what is started inherits it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def nannyd() -> Iterator[Host]:
    """Start `nannyd run`; afterwards no process, socket or scratch directory is left of it."""
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Service]]:
    """Start varlink_service.py with options; afterwards it ends, and has complained of nothing."""
    services: list[Service] = []

    def start(**options: Any) -> Service:
        base = Path(tempfile.mkdtemp(prefix="nannyd-test-"))  # pytest's are nobody else's to enter
        base.chmod(0o777)
        services.append(Service(base, **options))
        return services[-1]

    yield start
    wrong = "".join(service.close() for service in services)
    left = [service.path for service in services if service.path.exists()]
    for service in services:
        shutil.rmtree(service.path.parent)
    assert not wrong
    assert not left


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    """Return one with the limits of nannyd, where its user is root."""
    return serve()


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a directory that holds nothing but what the supervisor gives its agent of nannyd."""
    return str(library.install(tmp_path_factory.mktemp("only nannyd's"), dask=True))


@pytest.fixture
def launch_agent(tmp_path: Path, parts: str) -> Iterator[Callable[..., Agent]]:
    """Start the agent's process; nothing is specified yet."""
    started: list[Agent] = []

    def launch(**options: Any) -> Agent:
        environ = options.pop("environ", {})
        started.append(Agent(parts, tmp_path, environ=environ, **options))
        return started[-1]

    yield launch
    for agent in started:
        agent.close()


@pytest.fixture
def agent(launch_agent: Callable[..., Agent]) -> Agent:
    """Return an agent that hosts nothing yet."""
    agent = launch_agent()
    agent.specify()
    return agent
