"""A real instance in a real cluster: what the supervisor makes of what happens to workers and scheduler."""

from __future__ import annotations

import ctypes
import signal
from typing import TYPE_CHECKING, Any

import pytest
from harness import Host, eventually, lives, send_signal

from nannyd.core.errors import ExitCode

from .lab import Cluster, ClusterError, kill

if TYPE_CHECKING:
    from harness import Nannyd


def only(workers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (worker,) = workers.values()
    return worker


def next_worker(cluster: Cluster, before: int) -> dict[str, Any]:
    return only(cluster.wait_for_workers(1, lambda worker: worker["pid"] != before))


def agentless(run: Nannyd) -> bool:
    return "agent-started" not in run.events()


def test_a_worker_that_is_killed_comes_back_under_its_name_and_its_end_is_told(
    cluster: Cluster, nannyd: Host
) -> None:
    run = cluster.nannyd(nannyd, name="w1")
    pid = run.ready()
    first = only(cluster.wait_for_workers())
    assert (first["name"], first["pid"]) == ("w1", pid)
    kill(pid)
    second = next_worker(cluster, pid)
    assert (second["name"], second["nanny"]) == ("w1", first["nanny"])
    eventually(cluster.events, "the end is told")
    (end,) = cluster.events()
    assert (end["pid"], end["result"], end["signal"], end["name"]) == (pid, "signal", "SIGKILL", "w1")
    with run.connect() as caller:
        dask = caller.get("Status")["dask"]
    assert dask == {"scheduler": cluster.address, "nanny": first["nanny"], "plugins": []}
    assert run.stop() == 0
    assert agentless(run)


def test_a_worker_that_listens_everywhere_is_found_at_one_place(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--dask.listen-address=tcp://0.0.0.0:0")
    run.ready()
    (address,) = cluster.wait_for_workers()
    assert not address.startswith("tcp://0.0.0.0:")
    assert not address.endswith(":0")
    assert cluster.run("client.gather(client.scatter([42], direct=True), direct=True)") == [42]
    assert run.stop() == 0


@pytest.mark.parametrize("how", ["scheduler", "retire"])
def test_who_is_not_wanted_any_more_ends_cleanly(cluster: Cluster, nannyd: Host, how: str) -> None:
    run = cluster.nannyd(nannyd)
    run.ready()
    (address,) = cluster.wait_for_workers()
    if how == "scheduler":
        cluster.end_scheduler(signal.SIGTERM)
    else:
        cluster.run("client.retire_workers([address])", address=address)
    assert run.wait() == 0
    assert run.events().count("worker-started") == 1


def test_the_worker_comes_back_to_a_scheduler_that_comes_back(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--restart.delay=0.1", "--restart.start-limit-burst=1")
    pid = run.ready()
    cluster.wait_for_workers()
    cluster.restart_scheduler()
    worker = only(cluster.wait_for_workers())
    assert worker["pid"] != pid
    assert run.stop() == 0
    assert agentless(run)


def test_without_a_scheduler_in_time_nannyd_gives_up(empty_cluster: Cluster, nannyd: Host) -> None:
    empty_cluster.address = "tcp://127.0.0.1:9"
    run = empty_cluster.nannyd(nannyd, "--dask.death-timeout=2s")
    assert run.wait() == ExitCode.NO_SCHEDULER
    assert run.events().count("scheduler-missing") == 1
    assert "giving-up" not in run.events()
    assert run.all("finished")[0]["reason"].endswith("(exit-code, by worker); no scheduler")
    assert run.events().count("worker-started") == 1


def test_a_worker_whose_lifetime_is_over_is_followed_by_another(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, config='[dask.worker]\nlifetime = "1s"\n')
    first, second = run.ready(), run.ready()
    assert first != second
    assert run.all("worker-ended")[0]["result"] == "success"
    assert run.stop() == 0


def second(nannyd: Host) -> dict[str, str | None]:
    """Return the environment of an instance beside the first one of a home."""
    directories = {
        "RUNTIME_DIRECTORY": nannyd.home.base / "run2",
        "STATE_DIRECTORY": nannyd.home.base / "state2",
    }
    for path in directories.values():
        path.mkdir()
    return {name: str(path) for name, path in directories.items()}


def test_a_worker_that_is_stopped_leaves_its_data_with_another(cluster: Cluster, nannyd: Host) -> None:
    keeper = cluster.nannyd(nannyd, name="keeper")
    leaver = cluster.nannyd(nannyd, name="leaver", environ=second(nannyd), systemd=True)
    pid = leaver.ready()  # only such a worker is drained
    workers = cluster.wait_for_workers(2)
    address = next(key for key, worker in workers.items() if worker["name"] == "leaver")
    submit = "x = client.submit(lambda: [42], workers=[address], allow_other_workers=True); x.result()"
    cluster.run(submit, address=address)
    send_signal(pid, signal.SIGSTOP)
    send_signal(pid, signal.SIGTERM)  # as a batch system does that ends a job
    # timeout(1) signals the process, then its group: at once, and so that both are heard.
    send_signal(leaver.pid, signal.SIGSTOP)
    leaver.signal(signal.SIGTERM)
    assert ctypes.CDLL(None).tgkill(leaver.pid, leaver.pid, signal.SIGTERM) == 0
    leaver.signal(signal.SIGCONT)
    for _ in range(2):
        leaver.wait_for("stop-requested")
    send_signal(pid, signal.SIGCONT)
    assert leaver.wait() == 0
    (stopping,) = leaver.all("stopping-worker")
    assert (stopping["reason"], stopping["grace"]) == ("SIGTERM", "54s")
    leaver.systemd.read_all()
    assert int(leaver.systemd.all("EXTEND_TIMEOUT_USEC")[-1]) > 60e6
    assert list(cluster.run("client.who_has(x)[x.key]")) == list(cluster.workers())
    assert cluster.run("x.result()") == [42]
    assert keeper.stop() == 0
    assert agentless(keeper)
    assert agentless(leaver)


def test_a_stop_does_not_wait_for_a_scheduler_that_is_gone(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--dask.on-connection-lost=restart", "--dask.drain-timeout=1h")
    run.ready()
    cluster.end_scheduler()
    assert run.stop() == 0


def test_a_second_sigterm_during_a_drain_kills(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--dask.drain-timeout=1h")
    pid = run.ready()
    cluster.run("x = client.submit(lambda: 1); x.result()")
    run.signal(signal.SIGTERM)
    run.wait_for("stopping-worker")
    send_signal(pid, signal.SIGSTOP)
    run.insist(signal.SIGTERM)
    assert run.wait() == 0
    assert run.all("killing-worker")[0]["reason"] == "a second SIGTERM"


def test_what_a_task_has_started_does_not_outlive_its_worker(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    pid = run.ready()
    cluster.wait_for_workers()
    start = "lambda: __import__('subprocess').Popen(['sleep', '300'], start_new_session=True).pid"
    child = cluster.run(f"client.submit({start}).result()")
    assert lives(child)
    kill(pid)
    run.ready()
    assert not lives(child)
    assert run.stop() == 0


def test_ends_that_nobody_could_be_told_of_are_told_later_in_order(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--restart.delay=0", "--restart.start-limit-burst=0")
    ended = [run.ready()]
    cluster.wait_for_workers()
    cluster.end_scheduler()
    ended.append(run.started())
    for _ in range(20):
        kill(ended[-1])
        ended.append(run.started())
    cluster.start_scheduler(port=int(cluster.address.rpartition(":")[2]))
    cluster.wait_for_workers()
    eventually(lambda: len(cluster.events()) >= 16, "they are told")
    assert [event["pid"] for event in cluster.events()] == ended[-17:-1]
    assert run.stop() == 0


def test_a_task_that_kills_its_workers_is_told_with_each_of_them(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--restart.delay=0")
    run.ready()
    with pytest.raises(ClusterError, match="KilledWorker"):
        cluster.run("client.submit(lambda: __import__('os').kill(__import__('os').getpid(), 11)).result()")
    # One that is killed before it has told nannyd what it has published has the next one publish it again.
    eventually(lambda: len({end["pid"] for end in cluster.events()}) == 4, "their ends are told")
    ends = cluster.events()
    assert all(end["worker"].startswith("tcp://") for end in ends)
    assert {end["signal"] for end in ends} == {"SIGSEGV"}
    assert run.stop() == 0


def test_the_event_loop_that_dask_is_configured_for_is_the_workers(cluster: Cluster, nannyd: Host) -> None:
    # In the place of the real one, which not every interpreter here has.
    loops = "import asyncio\nclass Loop(asyncio.SelectorEventLoop): pass\nnew_event_loop = Loop\n"
    (nannyd.home.base / "uvloop.py").write_text(loops)
    wish = {"DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "uvloop", "PYTHONPATH": str(nannyd.home.base)}
    run = cluster.nannyd(nannyd, environ=wish)
    pid = run.ready()
    kind = "client.run(lambda dask_worker: type(dask_worker.loop.asyncio_loop).__module__)"
    assert list(cluster.run(kind).values()) == ["uvloop"]
    kill(pid)
    run.ready()
    assert run.stop() == 0


# --- Through the agent ---------------------------------------------------------------------------------


def test_a_client_restarts_the_workers(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--agent.idle-timeout=0.5s")
    pid = run.ready()
    cluster.wait_for_workers()
    cluster.run("client.restart()")
    again = only(cluster.workers())
    assert again["pid"] != pid
    cluster.run("client.restart_workers(list(client.scheduler_info()['workers']))")
    assert only(cluster.workers())["pid"] not in (pid, again["pid"])
    assert run.all("restarting") == []  # by nobody's policy
    with run.connect() as caller:
        eventually(lambda: caller.get("Status")["agent"]["state"] == "inactive", "the agent rests")
    cluster.run("client.restart()")
    assert len(run.all("agent-started")) >= 2
    assert run.stop() == 0


def test_a_worker_that_hangs_is_restarted(empty_cluster: Cluster, nannyd: Host) -> None:
    empty_cluster.start_scheduler(config={"distributed.scheduler.worker-ttl": "1s"})
    run = empty_cluster.nannyd(nannyd, "--worker.stop-timeout=1s")
    pid = run.ready()
    empty_cluster.wait_for_workers()
    send_signal(pid, signal.SIGSTOP)
    next_worker(empty_cluster, pid)
    assert not lives(pid)
    assert run.stop() == 0


PLUGIN = """
class Plugin(distributed.NannyPlugin):
    name = "flag"
    def __init__(self, value):
        self.value = value
    def setup(self, nanny):
        nanny.env["FLAG"] = self.value
    def teardown(self, nanny):
        nanny.env.pop("FLAG", None)
"""
FLAG = "import os; client.submit(lambda: os.environ.get('FLAG'), pure=False).result()"


def test_plugins_that_were_there_before_the_nanny_came_are_set_up_before_the_worker(
    cluster: Cluster, nannyd: Host
) -> None:
    cluster.run(PLUGIN + "client.register_plugin(Plugin('one'))")
    run = cluster.nannyd(nannyd)
    run.ready()
    assert cluster.run(FLAG) == "one"
    with run.connect() as caller:
        assert caller.get("Status")["dask"]["plugins"] == ["flag"]
    assert "restarting" not in run.events()
    files = list(nannyd.home.state.rglob("plugin-*"))
    assert len(files) == 1
    assert run.stop() == 0
    assert not list(nannyd.home.state.rglob("plugin-*"))


def test_plugins_outlive_the_agent_and_go_when_they_are_removed(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    pid = run.ready()
    cluster.wait_for_workers()
    cluster.run(PLUGIN + "client.register_plugin(Plugin('two'))")
    kill(int(run.wait_for("agent-started")["agent_pid"]))
    run.wait_for("agent-failed")
    run.wait_for("agent-started")
    cluster.run("client.restart()")
    assert cluster.run(FLAG) == "two"
    cluster.run("client.unregister_worker_plugin('flag', nanny=True)")
    cluster.run("client.restart()")
    assert cluster.run(FLAG) is None
    with run.connect() as caller:
        assert caller.get("Status")["dask"]["plugins"] == []
    assert not list(nannyd.home.state.rglob("plugin-*"))
    assert run.stop() == 0
    assert pid


def test_a_plugin_that_fails_is_told_and_dask_goes_on(cluster: Cluster, nannyd: Host) -> None:
    broken = """
    class Broken(distributed.NannyPlugin):
        name = "broken"
        def setup(self, nanny):
            raise RuntimeError("no such thing")
    client.register_plugin(Broken())
    """
    cluster.run(broken)
    run = cluster.nannyd(nannyd)
    run.ready()
    assert "no such thing" in run.all("plugin-failed")[0]["message"]
    assert len(run.all("worker-started")) == 2
    cluster.run("client.unregister_worker_plugin('broken', nanny=True)")
    with pytest.raises(ClusterError, match="no such thing"):
        cluster.run("client.register_plugin(Broken())")
    cluster.run("client.unregister_worker_plugin('broken', nanny=True)")
    removing = """
    async def remove():
        async with distributed.rpc(nanny) as there:
            return await there.plugin_remove(name="broken")
    client.sync(remove)["exception_text"]
    """
    nanny = only(cluster.workers())["nanny"]
    assert cluster.run(removing, nanny=nanny) == "KeyError('broken')"
    assert run.stop() == 0


def test_where_no_worker_follows_an_agent_that_runs_tells_of_the_end(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    pid = run.ready()
    (address,) = cluster.wait_for_workers()
    cluster.run("client.run(lambda: None, nanny=True)")
    cluster.run("client.retire_workers([address])", address=address)
    assert run.wait() == 0
    (event,) = cluster.events()
    assert (event["pid"], event["result"]) == (pid, "success")
    assert 0 < event["memory"] < event["limit"]
