"""The nanny of a real instance, as a real client finds it."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from harness import eventually

from .lab import ClusterError, kill

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Host, Nannyd

    from .lab import Cluster

WHO = """
import os

def who(dask_worker):
    nanny = dask_worker
    return dict(pid=os.getpid(), worker=nanny.pid, name=nanny.name, nthreads=nanny.nthreads,
                address=nanny.worker_address, alive=nanny.is_alive(), status=nanny.status.name,
                nanny=nanny.address, scheduler=nanny.scheduler.address, plugins=list(nanny.plugins))

next(iter(client.run(who, nanny=True).values()))
"""
PLUGIN = """
import os
from distributed.diagnostics.plugin import NannyPlugin

class Noted(NannyPlugin):
    def __init__(self, note, restart=False, fail=None):
        self.note, self.restart, self.fail = note, restart, fail

    def setup(self, nanny):
        if self.fail:
            raise self.fail
        nanny.env["NOTE"] = self.note
        nanny.log_event("noted", self.note)

    def teardown(self, nanny):
        nanny.log_event("noted", "-" + self.note)
"""
NOTE = "list(client.run(lambda: os.environ.get('NOTE')).values())"


@pytest.fixture
def run(cluster: Cluster, nannyd: Host) -> Nannyd:
    run = cluster.nannyd(nannyd)
    run.ready()
    cluster.wait_for_workers(1)
    return run


def worker_of(cluster: Cluster) -> dict[str, Any]:
    ((address, worker),) = cluster.wait_for_workers(1).items()
    return {**worker, "address": address}


def who(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.run(WHO)
    return found


@pytest.mark.usefixtures("run")
def test_restart_and_restart_workers_give_a_new_worker(cluster: Cluster) -> None:
    first = worker_of(cluster)
    cluster.run("client.restart(timeout=60)")
    second = worker_of(cluster)
    assert second["pid"] != first["pid"]
    assert second["nanny"] == first["nanny"]
    restarted = cluster.run("client.restart_workers([address], timeout=60)", address=second["address"])
    assert set(restarted.values()) == {"OK"}
    assert worker_of(cluster)["pid"] != second["pid"]
    assert cluster.run("client.submit(lambda x: x + 1, 1).result()") == 2


@pytest.mark.usefixtures("run")
def test_functions_run_on_the_nanny_and_meet_it(cluster: Cluster) -> None:
    worker, met = worker_of(cluster), who(cluster)
    assert met.pop("pid") not in (worker["pid"], None)
    assert met == {
        "worker": worker["pid"],
        "name": worker["name"],
        "nthreads": worker["nthreads"],
        "address": worker["address"],
        "alive": True,
        "status": "running",
        "nanny": worker["nanny"],
        "scheduler": cluster.address,
        "plugins": [],
    }
    with pytest.raises(ClusterError, match="ZeroDivisionError"):
        cluster.run("client.run(lambda: 1 / 0, nanny=True)")
    later = """
        async def later(x):
            return x
        list(client.run(later, 5, nanny=True).values())
    """
    assert cluster.run(later) == [5]
    assert cluster.run("client.run(later, 5, nanny=True, wait=False)") is None


@pytest.mark.usefixtures("run")
def test_what_the_nanny_answers_is_read_without_nannyd(cluster: Cluster) -> None:
    kill_ = """
        async def kill():
            async with distributed.rpc(nanny) as there:
                await there.kill(timeout=-1)
        client.sync(kill)
    """
    with pytest.raises(ClusterError, match=r"RuntimeError: InvalidArgument \(parameter: timeout"):
        cluster.run(kill_, nanny=worker_of(cluster)["nanny"])
    changed = """
        def change(dask_worker):
            dask_worker.env["CHANGED"] = "yes"
            return dask_worker.env
        list(client.run(change, nanny=True).values())
    """
    assert cluster.run(changed) == [{"CHANGED": "yes"}]
    logged = "list(client.run(lambda dask_worker: dask_worker.log_event('it', {}), nanny=True).values())"
    assert cluster.run(logged) == [None]
    eventually(lambda: cluster.events("it") == [{}], "it is logged")


def test_plugin_comes_survives_the_agent_and_goes(cluster: Cluster, run: Nannyd) -> None:
    first = worker_of(cluster)
    cluster.run(PLUGIN + "client.register_plugin(Noted('a', restart=True), name='noted')")
    second = worker_of(cluster)
    assert second["pid"] != first["pid"]
    assert cluster.run(NOTE) == ["a"]
    met = who(cluster)
    assert met["plugins"] == ["noted"]
    kill(met["pid"])
    run.wait_for("agent-failed")
    kill(second["pid"])
    cluster.wait_for_workers(1, lambda worker: worker["pid"] != second["pid"])
    again = who(cluster)
    assert again["pid"] != met["pid"]
    assert again["plugins"] == ["noted"]
    assert cluster.run(NOTE) == ["a"]
    cluster.run("client.unregister_worker_plugin('noted', nanny=True)")
    assert who(cluster)["plugins"] == []
    cluster.run("client.restart(timeout=60)")
    assert cluster.run(NOTE) == [None]
    assert list(map(str, cluster.events("noted"))) == ["a", "a", "-a"]


def test_plugins_registered_before_the_nanny_came(cluster: Cluster, nannyd: Host) -> None:
    cluster.run(PLUGIN + "client.register_plugin(Noted('before'), name='noted')")
    cluster.run("client.register_plugin(Noted('b', fail=ValueError('in vain')), name='vain')")
    run = cluster.nannyd(nannyd)
    cluster.wait_for_workers(1)
    assert cluster.run(NOTE) == ["before"]
    assert who(cluster)["plugins"] == ["noted"]
    failed = run.wait_for("plugin-failed")
    assert "in vain" in failed["error"]


@pytest.mark.usefixtures("run")
def test_client_gets_what_a_plugin_raised(cluster: Cluster) -> None:
    worker = worker_of(cluster)
    with pytest.raises(ClusterError, match="FloatingPointError: of its own"):
        cluster.run(
            PLUGIN + "client.register_plugin(Noted('x', True, FloatingPointError('of its own')), name='n')"
        )
    with pytest.raises(ClusterError, match="KeyError"):
        cluster.run("client.unregister_worker_plugin('never', nanny=True)")
    cluster.run("client.restart(timeout=60)")
    assert worker_of(cluster)["pid"] != worker["pid"]
    assert cluster.run(NOTE) == [None]


@pytest.mark.usefixtures("run")
def test_what_plugins_do_to_the_nannys_process_reaches_the_next_worker(cluster: Cluster) -> None:
    code = """
    import os, sys
    from distributed.diagnostics.plugin import NannyPlugin

    class Rude(NannyPlugin):
        def setup(self, nanny):
            os.environ["RUDE"] = "yes"
            sys.path.insert(0, "/rude")

    client.register_plugin(Rude(), name="rude")
    client.restart(timeout=60)
    list(client.run(lambda: (os.environ.get("RUDE"), "/rude" in sys.path)).values())
    """
    assert cluster.run(code) == [("yes", True)]
    code = """
    client.unregister_worker_plugin("rude", nanny=True)
    client.restart(timeout=60)
    list(client.run(lambda: (os.environ.get("RUDE"), "/rude" in sys.path)).values())
    """
    assert cluster.run(code) == [(None, False)]


@pytest.mark.usefixtures("run")
def test_environ_of_dask(cluster: Cluster) -> None:
    cluster.run("import os; from distributed.diagnostics.plugin import Environ")
    cluster.run("client.register_plugin(Environ({'NOTE': 3}))")
    assert cluster.run(NOTE) == ["3"]


@pytest.mark.usefixtures("run")
def test_upload_directory_of_dask(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("uploaded_a", "uploaded_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("answer = 42")
        (tmp_path / name / f"{name}_inner.py").write_text("answer = 43")
    code = """
    import importlib, inspect
    from distributed.diagnostics.plugin import UploadDirectory
    known = inspect.signature(UploadDirectory).parameters
    restart = "restart_workers" if "restart_workers" in known else "restart"
    client.register_plugin(UploadDirectory(path + "/uploaded_a", **{restart: True}))
    client.register_plugin(UploadDirectory(path + "/uploaded_b", update_path=True, **{restart: True}))
    def answer(module):
        return importlib.import_module(module).answer
    [found for name in ("uploaded_a", "uploaded_b_inner") for found in client.run(answer, name).values()]
    """
    assert cluster.run(code, path=str(tmp_path)) == [42, 43]


@pytest.mark.usefixtures("run")
def test_pip_install_of_dask(cluster: Cluster, tmp_path: Path) -> None:
    wheel = tmp_path / "nannyd_test_wheel-1-py3-none-any.whl"
    info = "nannyd_test_wheel-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nannyd_test_wheel.py", "answer = 44")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nannyd-test-wheel\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    target = str(tmp_path / "installed")
    code = """
    import sys
    from distributed.diagnostics.plugin import PipInstall
    client.register_plugin(
        PipInstall([wheel], pip_options=["--no-index", "--no-deps", "--target", target], restart_workers=True)
    )
    def answer(target):
        sys.path.append(target)
        import nannyd_test_wheel
        return nannyd_test_wheel.answer
    list(client.run(answer, target).values())
    """
    worker = worker_of(cluster)
    assert cluster.run(code, wheel=str(wheel), target=target) == [44]
    assert worker_of(cluster)["pid"] != worker["pid"]


def test_logs_events_and_a_blocked_request(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, config='[dask]\nblocked-handlers = ["run"]\n')
    worker = worker_of(cluster)
    (logs,) = cluster.run("client.get_worker_logs(nanny=True)").values()
    assert any(str(worker["pid"]) in line for _, line in logs)
    assert {level for level, _ in logs} <= {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
    with pytest.raises(ClusterError, match="'run' handler has been explicitly disallowed in Nanny"):
        cluster.run("client.run(lambda: 1, nanny=True)")
    assert run.all("agent-started")


def test_with_tls(empty_cluster: Cluster, nannyd: Host, security: dict[str, str]) -> None:
    cluster = empty_cluster
    cluster.start_scheduler(security=security)
    tls = {"ca": "tls_ca_file", "cert": "tls_worker_cert", "key": "tls_worker_key"}
    run = cluster.nannyd(nannyd, *(f"--dask.tls.{key}={security[name]}" for key, name in tls.items()))
    worker = worker_of(cluster)
    assert worker["nanny"].startswith("tls://")
    cluster.run(PLUGIN + "client.register_plugin(Noted('secret'), name='noted')")
    cluster.run("client.restart(timeout=60)")
    assert cluster.run(NOTE) == ["secret"]
    assert who(cluster)["scheduler"] == cluster.address
    assert run.all("agent-started")


def test_terminate_ends_nannyd_cleanly(cluster: Cluster, run: Nannyd) -> None:
    code = """
    async def terminate():
        async with distributed.rpc(address) as nanny:
            return await nanny.terminate(reason="enough")
    client.sync(terminate)
    """
    assert cluster.run(code, address=worker_of(cluster)["nanny"]) == "OK"
    assert run.wait() == 0
    cluster.wait_for_workers(0)
