"""A scheduler and a client for each test, of each version of distributed that is supported."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import Host

from nannyd.supervisor import library

from .lab import VERSIONS, Cluster, Zygote
from .nanny_peer import Nanny
from .peer import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", params=VERSIONS)
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    """Return what forks processes of one version."""
    zygote = Zygote(request.param)
    yield zygote
    zygote.close()


@pytest.fixture
def empty_cluster(zygote: Zygote, tmp_path: Path) -> Iterator[Cluster]:
    """Return a cluster whose scheduler is the test's to start."""
    cluster = Cluster(zygote, tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    """Return a cluster with a scheduler."""
    empty_cluster.start_scheduler()
    return empty_cluster


@pytest.fixture
def nannyd(empty_cluster: Cluster) -> Iterator[Host]:
    """Start `nannyd run`, whose workers the scheduler outlives; afterwards nothing is left of it."""
    with Host() as host:
        yield host


@pytest.fixture(scope="session")
def security(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return keyword arguments of `distributed.Security`, with real certificates for every role."""
    directory = tmp_path_factory.mktemp("certificates")
    ca, cert, key = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    request = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-batch"]
    sign = ["openssl", "x509", "-req", "-CA", ca, "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    for command in (
        [*request, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", ca],
        [*request, "-subj", "/CN=localhost", "-keyout", key, "-out", "cert.csr"],
        [*sign, "-in", "cert.csr", "-out", cert],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    roles = ("scheduler", "worker", "client")
    return {
        "tls_ca_file": ca,
        **{f"tls_{role}_cert": cert for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    }


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a directory that holds nothing but what the supervisor gives its workers of nannyd."""
    return str(library.install(tmp_path_factory.mktemp("only nannyd's"), dask=True))


@pytest.fixture
def nanny(cluster: Cluster, parts: str, tmp_path: Path) -> Iterator[Nanny]:
    """Return an agent whose supervisor is the test."""
    nanny = Nanny(cluster, parts, tmp_path)
    yield nanny
    nanny.close()


@pytest.fixture
def supervisor(empty_cluster: Cluster, parts: str, tmp_path: Path) -> Iterator[Supervisor]:
    """Return what starts Dask workers in the supervisor's way."""
    supervisor = Supervisor(empty_cluster, parts, tmp_path)
    yield supervisor
    supervisor.close()
