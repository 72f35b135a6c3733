"""The laboratory itself: a test that cannot see a wrong version or a wrong answer proves nothing."""

from __future__ import annotations

import pytest

from .lab import NEWEST, Cluster, ClusterError


def test_the_cluster_is_of_the_version_it_says_and_survives_its_scheduler(cluster: Cluster) -> None:
    version = cluster.run("client.run_on_scheduler(lambda: distributed.__version__)")
    assert (version == cluster.version) is (cluster.version != NEWEST)
    assert cluster.workers() == {}
    cluster.run("client.log_event('nannyd', {'a': offset + 1})", offset=1)
    assert cluster.events() == [{"a": 2}]
    with pytest.raises(ClusterError, match="ZeroDivisionError"):
        cluster.run("1 / 0")
    address = cluster.address
    assert cluster.restart_scheduler() == address
    assert cluster.events() == []


def test_a_cluster_may_have_certificates(empty_cluster: Cluster, security: dict[str, str]) -> None:
    assert empty_cluster.start_scheduler(security=security).startswith("tls://")
    assert empty_cluster.workers() == {}
