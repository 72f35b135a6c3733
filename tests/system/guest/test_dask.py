"""An instance that is a member of a Dask cluster, as an administrator has it: under systemd, in its cgroup.

Each test has a real scheduler in the guest.  What needs neither systemd nor a cgroup is tested on the host.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster.lab import Cluster, Zygote

from .instances import run_command, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import Nannyd, NannydFactory

MIB = 1 << 20
PYTHONS = {"2024.12.1": "/usr/bin/python3", "newest": "/opt/dask/bin/python"}  # Debian's, and one of its own
LIMIT = 320 * MIB


@pytest.fixture(scope="module")
def zygotes() -> Iterator[dict[str, Zygote]]:
    made = {version: Zygote(version, python) for version, python in PYTHONS.items()}
    yield made
    for zygote in made.values():
        zygote.close()


@pytest.fixture
def empty_cluster(
    request: pytest.FixtureRequest, zygotes: dict[str, Zygote], tmp_path: Path
) -> Iterator[Cluster]:
    """A cluster of Debian's version, unless the test says otherwise, without a scheduler yet."""
    cluster = Cluster(zygotes[getattr(request, "param", "2024.12.1")], tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    empty_cluster.start_scheduler()
    return empty_cluster


def member(cluster: Cluster, more: str = "", *, agent: str = "") -> str:
    """Return the configuration of a worker of *cluster*; *more* stands in [dask], *agent* in [agent]."""
    python = "" if cluster.python == "/usr/bin/python3" else f'python = "{cluster.python}"'
    return f"""
        [dask]
        scheduler = "{cluster.address}"
        nthreads = 1
        {more}
        [worker]
        {python}
        [memory]
        limit = "{LIMIT // MIB}MiB"
        [agent]
        {agent}
        """


def agents(instance: Nannyd) -> list[str]:
    """Return the processes of the agent."""
    leaf = instance.cgroup / "agent"
    return (leaf / "cgroup.procs").read_text().split() if leaf.exists() else []


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("empty_cluster", PYTHONS, indirect=True)
def test_unit_is_a_member_of_the_cluster_when_it_is_active(cluster: Cluster, nannyd: NannydFactory) -> None:
    instance = nannyd(member(cluster))
    ((address, worker),) = cluster.workers().items()
    assert (worker["name"], worker["nthreads"], worker["pid"]) == ("w", 1, instance.worker)
    assert worker["memory_limit"] == LIMIT
    assert worker["local_directory"].startswith(f"{instance.state}/scratch/")
    assert worker["nanny"] != address
    assert cluster.run("client.submit(pow, 2, 10).result()") == 1024
    version = "client.submit(lambda: distributed.__version__).result()"
    assert cluster.run(version) == cluster.run("distributed.__version__")
    assert (instance.leaf / "memory.max").read_text() == f"{LIMIT}\n"
    assert agents(instance) == []
    # The nanny answers where it is registered: through the socket that the supervisor holds.
    asked = "client.run(lambda dask_worker: (dask_worker.address, dask_worker.pid), nanny=True)"
    assert cluster.run(asked) == {address: (worker["nanny"], instance.worker)}
    assert len(agents(instance)) == 1
    assert instance.worker == worker["pid"]


def test_worker_at_its_limit_is_ended_and_the_cluster_learns_why(
    cluster: Cluster, nannyd: NannydFactory
) -> None:
    instance = nannyd(member(cluster))
    worker = instance.worker
    code = """
        def eat(path):
            try:
                open(path, "x").close()
            except FileExistsError:
                return "the second time"
            held = []
            while True:
                held.append(b"x" * 2 ** 20)
        client.submit(eat, path).result()
        """
    assert cluster.run(code, path=f"{instance.state}/eaten") == "the second time"
    assert instance.worker != worker
    (event,) = wait_until(cluster.events, "what the cluster was told")
    assert (event["result"], event["who"], event["pid"]) == ("memory", "nannyd", worker)
    assert (event["name"], event["limit"]) == ("w", LIMIT)
    assert 0.9 * LIMIT < event["memory"] <= event["memory-peak"] <= LIMIT
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WORKER_PID"]) == ("memory", str(worker))
    assert agents(instance) == []


def test_stop_moves_the_data_to_the_others(cluster: Cluster, nannyd: NannydFactory) -> None:
    first = nannyd(member(cluster), name="first")
    code = """
        def count(number):
            open(path, "a").write("x")
            return number
        futures = client.map(count, range(20))
        distributed.wait(futures)
        """
    cluster.run(code, path=f"{first.state}/count")
    second = nannyd(member(cluster), name="second")
    first.stop()
    assert (first.show("ActiveState"), first.show("Result")) == ("inactive", "success")
    assert first.events("stopping-worker")[0]["GRACE"] == "54s"  # of 30 s, and of as many for the data
    assert cluster.run("client.gather(futures)") == list(range(20))
    assert (first.state / "count").read_text() == "x" * 20  # nothing was computed again
    assert [worker["pid"] for worker in cluster.workers().values()] == [second.worker]


def test_what_an_administrator_sees(cluster: Cluster, nannyd: NannydFactory) -> None:
    instance = nannyd(member(cluster))
    status = run_command("systemctl", "status", "--no-pager", "--full", instance.name).stdout
    assert re.search(rf'Status: "worker {instance.worker} running, [\d.]+ of 320\.0 MiB', status), status
    said = instance.journal.messages(instance.name, SYSLOG_IDENTIFIER="w")
    assert any(cluster.address in line for line in said), said
    assert not [line for line in said if "Traceback" in line]
    listed = json.loads(run_command("nannyctl", "--json", "status", "w").stdout)
    assert "running" in json.dumps(listed)
    explained = run_command("nannyd", "explain", "w").stdout
    assert re.search(rf"dask\.scheduler.*{re.escape(cluster.address)}.*/etc/nannyd/w\.toml", explained)


def test_scheduler_that_is_closed_ends_the_unit_cleanly(cluster: Cluster, nannyd: NannydFactory) -> None:
    instance = nannyd(member(cluster))
    cluster.end_scheduler(signal.SIGTERM)
    instance.wait_for("inactive")
    assert (instance.show("Result"), instance.show("ExecMainStatus")) == ("success", "0")
    assert instance.show("NRestarts") == "0"


def test_scheduler_that_is_killed_finds_its_worker_again_when_it_is_back(
    cluster: Cluster, nannyd: NannydFactory
) -> None:
    instance = nannyd(member(cluster))
    supervisor = instance.main_pid
    cluster.restart_scheduler()
    ((_, worker),) = cluster.wait_for_workers().items()
    assert (worker["name"], instance.main_pid) == ("w", supervisor)
    assert cluster.run("client.submit(pow, 2, 3).result()") == 8
    assert instance.show("NRestarts") == "0"


def test_who_finds_no_scheduler_gives_up_and_systemd_does_not_insist(
    empty_cluster: Cluster, nannyd: NannydFactory
) -> None:
    empty_cluster.address = "tcp://127.0.0.1:9"
    instance = nannyd(member(empty_cluster, 'death-timeout = "3s"'), start=False)
    assert instance.start(check=False).returncode != 0
    instance.wait_for("failed")
    assert (instance.show("ExecMainStatus"), instance.show("NRestarts")) == ("68", "0")
    assert instance.events("scheduler-missing")


def test_worker_whose_event_loop_hangs_is_replaced_and_not_leaked(
    empty_cluster: Cluster, nannyd: NannydFactory
) -> None:
    cluster = empty_cluster
    cluster.start_scheduler(config={"distributed.scheduler.worker-ttl": "1s"})  # it makes 5 s of it
    instance = nannyd(member(cluster))
    hung = instance.worker
    cluster.run(
        """
        def hang():
            loop = distributed.get_worker().loop
            loop.add_callback(loop.call_later, 0.3, __import__("time").sleep, 3600)
        client.submit(hang).result()
        """
    )
    wait_until(lambda: gone(hung), "the end of the hung worker")
    cluster.wait_for_workers(true=lambda worker: worker["pid"] != hung)
    assert cluster.run("client.submit(pow, 2, 4).result()") == 16
    assert len(list(instance.cgroup.glob("worker-*"))) == 1


def test_restart_by_the_client_takes_the_processes_of_tasks_and_leaves_no_agent(
    cluster: Cluster, nannyd: NannydFactory
) -> None:
    instance = nannyd(member(cluster, agent='idle-timeout = "1s"'))
    worker = instance.worker
    code = "client.submit(lambda: __import__('subprocess').Popen(['setsid', 'sleep', '300']).pid).result()"
    child = cluster.run(code)
    assert not gone(child)
    assert agents(instance) == []
    cluster.run("client.restart(timeout=60)")
    assert gone(child)
    assert gone(worker)
    ((_, after),) = cluster.workers().items()
    assert after["pid"] == instance.worker
    assert instance.show("NRestarts") == "0"
    wait_until(lambda: agents(instance) == [], "no agent at rest")
    # It is not the agent that listens.
    assert list(cluster.run("client.get_worker_logs(nanny=True)")) == [next(iter(cluster.workers()))]


def test_member_of_a_cluster_with_certificates(
    empty_cluster: Cluster, nannyd: NannydFactory, tmp_path: Path
) -> None:
    cluster = empty_cluster
    place = Path("/run/certificates")
    place.mkdir(exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command, *names], cwd=place, check=True, capture_output=True)
    run_command("chown", "-R", "_nannyd", place)
    cert, key = str(place / "cert.pem"), str(place / "key.pem")
    roles = ("scheduler", "worker", "client")
    security = {"tls_ca_file": cert, "require_encryption": True}
    security |= {
        f"tls_{role}_{kind}": path for role in roles for kind, path in (("cert", cert), ("key", key))
    }
    assert cluster.start_scheduler(security=security).startswith("tls://")
    tls = f'\n[dask.tls]\nca = "{cert}"\ncert = "{cert}"\nkey = "{key}"\nrequire-encryption = true'
    instance = nannyd(member(cluster) + tls)
    ((address, worker),) = cluster.workers().items()
    assert address.startswith("tls://")
    assert worker["nanny"].startswith("tls://")
    cluster.run("client.restart(timeout=60)")
    assert instance.worker != worker["pid"]
    assert not [entry for entry in instance.journal.entries() if "PRIVATE KEY" in str(entry)]
