"""The Dask worker of an instance, in the bootstrap of Python workers, at a real scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Cluster
    from .peer import Supervisor


def test_worker_registers_with_what_it_was_given(cluster: Cluster, supervisor: Supervisor) -> None:
    life = supervisor.start(options={"nthreads": 3, "resources": {"GPU": 2}, "memory_limit": 1 << 30})
    said = life.ready()
    ((address, worker),) = cluster.wait_for_workers().items()
    assert said["X_NANNYD_ADDRESS"] == address
    assert said["X_NANNYD_DIRECTORY"] == worker["local_directory"]
    assert worker["name"] == "w1"
    assert worker["nthreads"] == 3
    assert worker["resources"] == {"GPU": 2}
    assert worker["memory_limit"] == 1 << 30
    assert worker["nanny"] == life.facts["nanny"]
    assert worker["pid"] == life.running.process.pid
    assert life.facts["scheduler"] == cluster.address
    assert cluster.run("client.submit(lambda x: x + 1, 1).result()") == 2
    assert life.stop() == 0
    assert "closing" not in life.facts
    assert cluster.workers() == {}
