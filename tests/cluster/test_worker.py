"""The Dask worker of an instance, in the bootstrap of Python workers, at a real scheduler."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import send_signal

if TYPE_CHECKING:
    from .lab import Cluster
    from .peer import Supervisor


def free_ports(count: int) -> list[int]:
    """Return *count* ports in a row that were free a moment ago."""
    for first in range(20000, 30000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for port, sock in enumerate(sockets, first):
                sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return list(range(first, first + count))
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no ports")


# --- registration ---------------------------------------------------------------------------------------


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
    cluster.wait_for_workers(0)


def test_nothing_is_different_for_whoever_looks_at_the_worker(
    cluster: Cluster, supervisor: Supervisor
) -> None:
    supervisor.start().ready()
    (found,) = cluster.run(
        """
        def look(dask_worker):
            import distributed.proctitle
            kind = type(dask_worker)
            return kind.__module__, kind.__qualname__, repr(dask_worker)[:8], distributed.proctitle._enabled
        list(client.run(look).values())
        """
    )
    assert found == ("distributed.worker", "Worker", "<Worker ", True)


def test_the_nanny_gets_a_socket_once_and_keeps_it(cluster: Cluster, supervisor: Supervisor) -> None:
    first = supervisor.start()
    first.ready()
    address = first.facts["nanny"]
    with supervisor.listening() as listening:
        host, port = listening.getsockname()
        assert address == f"tcp://{host}:{port}"
        with socket.create_connection((host, port)) as caller, listening.accept()[0] as accepted:
            assert accepted.getpeername() == caller.getsockname()
    first.running.process.kill()
    second = supervisor.start()
    second.ready()
    assert "nanny" not in second.facts
    assert second.running.descriptors == []
    (worker,) = cluster.wait_for_workers(
        true=lambda worker: worker["pid"] == second.running.process.pid
    ).values()
    assert worker["nanny"] == address


def test_where_nanny_and_worker_listen_is_chosen(cluster: Cluster, supervisor: Supervisor) -> None:
    taken, free, other_taken, other_free = free_ports(4)
    with socket.create_server(("127.0.0.1", taken)), socket.create_server(("127.0.0.1", other_taken)):
        life = supervisor.start(
            nanny={"interface": "lo", "port": f"{taken}:{free}", "protocol": "tcp"},
            options={"interface": "lo", "port": [other_taken, other_free]},
        )
        life.ready()
    assert life.facts["nanny"] == f"tcp://127.0.0.1:{free}"
    assert set(cluster.wait_for_workers()) == {f"tcp://127.0.0.1:{other_free}"}
    life.stop()
    wide = supervisor.start(
        life={"nanny": None}, nanny={"host": "0.0.0.0", "contact_address": "tcp://localhost:1"}
    )
    wide.ready()
    with socket.socket(fileno=wide.running.descriptors.pop()) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"
        assert wide.facts["nanny"] == f"tcp://localhost:{listening.getsockname()[1]}"


def test_no_free_port_is_a_failed_start(cluster: Cluster, supervisor: Supervisor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        life = supervisor.start(nanny={"host": "127.0.0.1", "port": taken.getsockname()[1]})
        assert life.running.ends() == 1
    assert "Address already in use" in life.running.error()


def test_certificates(empty_cluster: Cluster, supervisor: Supervisor, security: dict[str, str]) -> None:
    address = empty_cluster.start_scheduler(security=security)
    life = supervisor.start(security={**security, "tls_min_version": 1.3, "require_encryption": True})
    life.ready()
    (worker,) = empty_cluster.wait_for_workers()
    assert (address[:6], worker[:6], life.facts["nanny"][:6]) == ("tls://", "tls://", "tls://")
    versions = empty_cluster.run("client.run(lambda dask_worker: dask_worker.security.tls_min_version.name)")
    assert set(versions.values()) == {"TLSv1_3"}
    assert life.stop() == 0
    stranger = supervisor.start(security={"require_encryption": True})
    assert stranger.running.ends() == 1


@pytest.mark.parametrize("wrong", ["tls_ca_file", "tls_worker_cert", "tls_worker_key"])
def test_a_bad_certificate_is_a_failed_start(
    empty_cluster: Cluster, supervisor: Supervisor, security: dict[str, str], wrong: str, tmp_path: Path
) -> None:
    empty_cluster.start_scheduler(security=security)
    missing = str(tmp_path / "missing.pem")
    life = supervisor.start(security={**security, wrong: missing})
    assert life.running.ends() == 1
    assert "No such file" in life.running.error()


def test_why_a_scheduler_is_waited_for_is_said_once(cluster: Cluster, supervisor: Supervisor) -> None:
    many = {"distributed.comm.timeouts.connect": 0.2}
    life = supervisor.start(scheduler="tcp://127.0.0.1:1", death_timeout=6, config=many)
    assert life.says("closing") == "death-timeout"
    lines = [line for line in life.running.stderr().splitlines() if "Waiting to connect to" in line]
    silent = [line for line in lines if "it does not answer" in line]  # an attempt that had no time
    assert [line for line in lines if line not in silent[:1]] == [lines[-1]]
    assert lines[-1].endswith("(Connection refused)")


def test_the_schedulers_file_may_come_late_and_change(
    empty_cluster: Cluster, supervisor: Supervisor, tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    first = supervisor.start(scheduler=None, scheduler_file=str(file))
    first.logs("Waiting for the scheduler's file")
    address = empty_cluster.start_scheduler()
    text = json.dumps({"type": "Scheduler", "address": address})
    file.write_text(text[:20])
    file.write_text(text)
    first.ready()
    empty_cluster.end_scheduler()
    assert first.running.ends() == 0
    file.write_text(json.dumps({"address": empty_cluster.start_scheduler()}))
    second = supervisor.start(scheduler=None, scheduler_file=str(file))
    second.ready()
    assert second.facts["scheduler"] == empty_cluster.address


def test_a_name_that_is_taken_is_waited_for(cluster: Cluster, supervisor: Supervisor) -> None:
    first = supervisor.start()
    first.ready()
    second = supervisor.start(options={"preload": ["dask_classes"]})
    second.logs("Waiting for the name 'w1' to become free")
    assert first.stop() == 0
    second.ready()
    assert cluster.wait_for_workers()
    assert second.running.stderr().count("dask_setup of Worker") == 1


def test_a_hung_predecessor_is_unregistered(cluster: Cluster, supervisor: Supervisor) -> None:
    first = supervisor.start()
    address = first.ready()["X_NANNYD_ADDRESS"]
    send_signal(first.running.process.pid, signal.SIGSTOP)
    second = supervisor.start(life={"unregister": address})
    second.ready()
    assert "Waiting for the name" not in second.running.stderr()
    assert address not in cluster.workers()


def test_a_scheduler_that_comes_late_is_waited_for(cluster: Cluster, supervisor: Supervisor) -> None:
    cluster.end_scheduler()
    life = supervisor.start()
    life.logs("Waiting to connect to")
    cluster.start_scheduler(port=int(cluster.address.rpartition(":")[2]))
    life.ready()
    waiting = supervisor.start(scheduler="tcp://127.0.0.1:1")
    waiting.says("scheduler")
    assert waiting.stop() == 0


@pytest.mark.parametrize("where", ["address", "file"])
def test_death_timeout(empty_cluster: Cluster, supervisor: Supervisor, where: str) -> None:
    place: dict[str, Any] = {"scheduler": "tcp://127.0.0.1:1"}
    if where == "file":
        place = {"scheduler": None, "scheduler_file": "/nonexistent"}
    life = supervisor.start(**place, death_timeout=0.3)
    assert life.says("closing") == "death-timeout"
    assert life.running.ends() == 1


@pytest.mark.parametrize("limit", [None, 60.0])
def test_a_timeout_of_something_else_is_no_death_timeout(
    cluster: Cluster, supervisor: Supervisor, limit: float | None
) -> None:
    life = supervisor.start(worker_class="dask_classes.Broken", death_timeout=limit)
    assert life.running.ends() == 1
    assert "closing" not in life.facts
    assert "no answer from the shop" in life.running.error().splitlines()[-1]


def test_why_a_worker_cannot_start_is_said(cluster: Cluster, supervisor: Supervisor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        life = supervisor.start(options={"host": "127.0.0.1", "port": taken.getsockname()[1]})
        assert life.running.ends() == 1
    assert "Address already in use" in life.running.error().splitlines()[-1]


def test_registration_blocks_nobody_for_longer_than_the_start(
    cluster: Cluster, supervisor: Supervisor
) -> None:
    supervisor.start().ready()
    starting = "client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler._starting_nannies))"
    assert cluster.run(starting) == 0


# --- plugins of the nanny ------------------------------------------------------------------------------


def test_plugins_are_brought_to_the_supervisor_before_the_worker_lives(
    cluster: Cluster, supervisor: Supervisor
) -> None:
    cluster.run(
        """
        class Plugin(distributed.NannyPlugin):
            name = "mine"
            def __init__(self, number): self.number = number
        client.register_plugin(Plugin(1))
        """
    )
    first = supervisor.start()
    (plugin,) = first.says("plugins")
    data = Path(plugin["path"]).read_bytes()
    assert plugin["name"] == "mine"
    assert plugin["digest"] == hashlib.sha256(data).hexdigest()
    assert cluster.run("import pickle; pickle.loads(data).number", data=data) == 1
    first.logs("Waiting for the nanny's plugins")
    starting = "client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler._starting_nannies))"
    assert cluster.run(starting) == 0
    assert cluster.workers() == {}
    assert first.stop() == 0

    second = supervisor.start()
    second.ready()
    assert "plugins" not in second.facts
    second.stop()

    cluster.run("client.unregister_worker_plugin('mine', nanny=True)")
    third = supervisor.start()
    third.ready()
    assert third.facts["plugins"] == []


# --- why workers end ------------------------------------------------------------------------------------


def test_exits_are_published(cluster: Cluster, supervisor: Supervisor) -> None:
    memory = {"worker": "tcp://127.0.0.1:9", "pid": 7, "result": "memory", "memory": 123, "name": "w1"}
    signalled = {"worker": "tcp://127.0.0.1:8", "pid": 8, "result": "signal", "signal": "SIGKILL"}
    life = supervisor.start(life={"exits": [memory, signalled]})
    life.ready()
    assert life.facts["published"] == 2
    assert cluster.events() == [memory, signalled]
    event = {"worker": "tcp://127.0.0.1:9", "pid": 7, "rss": 123}
    assert cluster.events("worker-restart-memory") == [event]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("close", "scheduler-close"),
        ("kill", "worker-handle-scheduler-connection-broken"),
        ("retire", "scheduler-close-worker"),
        ("lifetime", "worker-lifetime-reached"),
        ("task", "worker-close"),
    ],
)
def test_a_worker_that_closes_itself_says_why(
    cluster: Cluster, supervisor: Supervisor, how: str, reason: str
) -> None:
    life = supervisor.start(options={"lifetime": "1 s"} if how == "lifetime" else {})
    life.ready()
    if how in ("close", "kill"):
        cluster.end_scheduler(signal.SIGTERM if how == "close" else signal.SIGKILL)
    elif how == "retire":
        cluster.run("client.retire_workers()")
    elif how == "task":
        cluster.run("client.run(lambda dask_worker: dask_worker.loop.add_callback(dask_worker.close))")
    assert life.says("closing") == reason
    assert life.running.ends() == 0
    assert life.running.count("X_NANNYD_ERROR") == 0


def test_a_dying_process_just_dies(cluster: Cluster, supervisor: Supervisor) -> None:
    life = supervisor.start()
    life.ready()
    cluster.run("future = client.submit(lambda: __import__('os')._exit(3), retries=0)")
    assert life.running.ends() == 3
    assert "closing" not in life.facts


# --- the end ---------------------------------------------------------------------------------------------


def test_what_a_drained_worker_holds_survives(cluster: Cluster, supervisor: Supervisor) -> None:
    first, second = supervisor.start(), supervisor.start(options={"name": "w2"}, life={"nanny": None})
    first.ready()
    second.ready()
    cluster.wait_for_workers(2)
    before = cluster.run(
        """
        import random
        futures = client.map(lambda _: random.random(), range(20), workers=["w1"], allow_other_workers=True)
        distributed.wait(futures)
        held = client.has_what()
        client.gather(futures)
        """
    )
    assert first.stop(timeout=8.0, drain=5.0) == 0
    assert cluster.run("client.gather(futures)") == before
    assert "could not be moved" not in first.running.stderr()
    assert "closing" not in first.facts


def test_a_worker_that_cannot_be_drained_ends_all_the_same(cluster: Cluster, supervisor: Supervisor) -> None:
    alone = supervisor.start()
    alone.ready()
    cluster.run("future = client.submit(lambda: 1); future.result()")
    assert alone.stop(timeout=8.0, drain=5.0) == 0
    alone.logs("no other worker takes it")


def test_a_busy_worker_ends_in_time(cluster: Cluster, supervisor: Supervisor) -> None:
    life = supervisor.start(options={"nthreads": 2})
    life.ready()
    cluster.run(
        """
        import threading, time
        def work(): threading.Event().wait()
        futures = client.map(lambda _: work(), range(2), pure=False)
        def busy(dask_worker): return len(dask_worker.state.executing) == 2
        while not all(client.run(busy).values()): time.sleep(0.01)
        """
    )
    assert life.stop(timeout=4.0) == 0
    assert "did not end within" not in life.running.stderr()


# --- class, options and configuration ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dask_classes.Own", "dask_classes:Own"])
def test_a_class_of_ones_own(cluster: Cluster, supervisor: Supervisor, name: str) -> None:
    supervisor.start(worker_class=name).ready()
    classes = cluster.run("list(client.run(lambda dask_worker: type(dask_worker).__qualname__).values())")
    assert classes == ["Own"]


def test_who_is_to_be_silent_is_so_from_the_start_to_the_end(
    cluster: Cluster, supervisor: Supervisor
) -> None:
    life = supervisor.start(options={"silence_logs": logging.WARNING})
    life.ready()
    assert life.stop() == 0
    assert "INFO" not in life.running.stderr()


def test_what_is_no_worker_class_is_said(cluster: Cluster, supervisor: Supervisor) -> None:
    life = supervisor.start(worker_class="dask_classes.Missing")
    assert life.running.ends() == 1
    assert "worker class 'dask_classes:Missing'" in life.running.error()


def test_configuration_is_laid_over_dasks_own_before_it_is_read(
    cluster: Cluster, supervisor: Supervisor
) -> None:
    life = supervisor.start(
        config={
            "logging": {"distributed.nanny": "info"},
            "logging.distributed.worker": "warning",
            "distributed.worker.memory.spill": 0.41,
            "distributed": {"worker": {"memory": {"pause": 0.52}}, "admin": {"log-length": 3}},
            "array.chunk-size": "1 MiB",
        },
        options={"memory_limit": 1 << 30, "silence_logs": None},
    )
    life.ready()
    (found,) = cluster.run(
        """
        def look(dask_worker):
            memory = dask_worker.memory_manager
            get = dask.config.get
            return (memory.memory_spill_fraction, memory.memory_pause_fraction, get("array.chunk-size"),
                    dask_worker._deque_handler.deque.maxlen, get("distributed.worker.memory.target"))
        list(client.run(look).values())
        """
    )
    assert found == (0.41, 0.52, "1 MiB", 3, 0.6)
    assert "Registered to" not in life.running.stderr()
    assert "Start Nanny at" in life.running.stderr()
