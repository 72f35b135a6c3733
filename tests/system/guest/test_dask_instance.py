"""An instance in a Dask cluster under systemd, with the distributed of Debian and the newest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from .instances import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import NannydFactory

TOML = """
[dask]
scheduler = "{address}"
nthreads = 1
[worker]
python = "{python}"
[memory]
limit = "300M"
"""


class Cluster:
    """A scheduler and a client of one version, in a process of their own."""

    def __init__(self, python: str) -> None:
        self.python = python
        program = str(Path(__file__).with_name("dask_cluster.py"))
        self._process = subprocess.Popen(
            [python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, expression: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return self._answer()

    def worker(self, without: str | None = None) -> str:
        """Return the address of the only worker, when that is not *without*."""

        def found() -> str | None:
            addresses = self.ask("list(client.scheduler_info()['workers'])")
            return addresses[0] if len(addresses) == 1 and addresses[0] != without else None

        address = wait_until(found, "a worker", timeout=30)
        assert address is not None
        return address

    def close(self) -> None:
        """Close the scheduler on purpose."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(params=["/usr/bin/python3", "/opt/dask/bin/python"], ids=["Debian's", "newest"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        yield cluster


def test_a_member_lives_dies_for_its_memory_and_ends_with_its_cluster(
    cluster: Cluster, nannyd: NannydFactory
) -> None:
    member = nannyd(TOML.format(address=cluster.address, python=cluster.python))
    first = cluster.worker()
    pid = member.worker
    greedy = "client.submit(lambda: [bytearray(1 << 20) for _ in range(400)] and None, retries=0)"
    cluster.ask(f"distributed.fire_and_forget({greedy})")
    member.wait_for_event("worker-failed", timeout=30)
    second = cluster.worker(without=first)
    events = wait_until(lambda: cluster.ask("[e for _, e in client.get_events('nannyd')]"), "its end")
    end = events[0]
    assert (end["worker"], end["pid"], end["limit"]) == (first, pid, 300 << 20)
    assert end["result"] in ("memory", "oom-kill")
    assert end["memory-peak"] > 200 << 20
    assert second != first
    cluster.close()
    member.wait_for("inactive", timeout=30)
    assert member.show("Result") == "success"
    assert not member.events("agent-started")


def test_a_stop_by_systemd_is_a_drain(cluster: Cluster, nannyd: NannydFactory) -> None:
    member = nannyd(TOML.format(address=cluster.address, python=cluster.python))
    cluster.worker()
    member.stop()
    assert (member.show("ActiveState"), member.show("Result")) == ("inactive", "success")
    assert cluster.ask("list(client.scheduler_info()['workers'])") == []
    assert member.events("stopping-worker")[0]["GRACE"] == "54s"


def test_who_finds_no_cluster_gives_up_and_systemd_does_not_insist(nannyd: NannydFactory) -> None:
    alone = TOML.format(address="tcp://127.0.0.1:9", python="/usr/bin/python3")
    member = nannyd(alone.replace("nthreads", 'death-timeout = "3s"\nnthreads'), start=False)
    assert member.start(check=False).returncode != 0
    member.wait_for("failed")
    assert (member.show("ExecMainStatus"), member.show("NRestarts")) == ("68", "0")
    assert member.events("scheduler-missing")
