"""What a task may do to the supervisor of its worker, and who knocks when no agent can answer."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, Host, descriptors_of, eventually, send_signal

from .lab import NEWEST, ClusterError

if TYPE_CHECKING:
    from .lab import Cluster

SAY = """
def say(messages, descriptors=()):
    import os, socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        for message in messages:
            socket.send_fds(sock, [message.encode()], descriptors)
"""
NONSENSE = [
    "",
    "{",
    "null",
    "[]",
    "[" * 20_000,
    '{"scheduler": 1}',
    '{"scheduler": ""}',
    '{"scheduler": "\\u0007"}',
    '{"published": 17}',
    '{"published": -1}',
    '{"published": true}',
    '{"published": 1e400}',
    '{"plugins": {}}',
    '{"plugins": [1]}',
    '{"plugins": [{"name": "a"}]}',
    '{"plugins": [{"name": "a", "digest": "../../etc/passwd"}]}',
    '{"plugins": [' + ",".join(['{"name": "a", "digest": "b"}'] * 300) + "]}",
    '{"closing": 7}',
    '{"closing": "' + "x" * 2000 + '"}',
]


def test_nonsense_of_a_task_is_ignored_and_told_once(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    run.ready()
    cluster.wait_for_workers()
    before = descriptors_of(run.pid)
    cluster.run(SAY)
    cluster.run("client.run(say, messages)", messages=[f"X_NANNYD_DASK={text}" for text in NONSENSE])
    stores = """
    def store():
        import os, socket
        store = "FDSTORE=1\\nFDNAME=nanny"
        said = ('{}', '{"nanny": 1}', '{"nanny": "tcp://127.0.0.1:1"}')
        stored = ["FDSTORE=1", store, *(f"{store}\\nX_NANNYD_DASK={text}" for text in said)]
        with socket.socket() as listening, socket.socket() as idle, open("/dev/null") as null:
            listening.listen()
            for descriptors in ([], [null.fileno()], [idle.fileno()], [listening.fileno()], [0, 0]):
                say(stored, descriptors)
    client.run(store)
    """
    cluster.run(stores)
    run.wait_for("dask-nonsense")
    with run.connect() as caller:
        status = caller.get("Status")
        assert status["dask"]["scheduler"] == cluster.address
        assert status["state"] == "running"
    eventually(lambda: descriptors_of(run.pid).keys() == before.keys(), "all descriptors are closed")
    assert run.events().count("dask-nonsense") == 1
    assert cluster.run("client.submit(lambda: 1).result()") == 1
    assert run.stop() == 0


def knock(address: str) -> socket.socket:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


@pytest.mark.parametrize("zygote", [NEWEST], indirect=True)  # nothing in it depends on the version
def test_who_knocks_is_turned_away_when_the_agent_cannot_answer_again_and_again(
    empty_cluster: Cluster, nannyd: Host, security: dict[str, str], tmp_path: Path
) -> None:
    empty_cluster.start_scheduler(security=security)
    certificate = tmp_path / "copy.pem"
    certificate.write_bytes(Path(security["tls_worker_cert"]).read_bytes())
    tls = f'[dask.tls]\nca = "{security["tls_ca_file"]}"\nkey = "{security["tls_worker_key"]}"\n'
    run = empty_cluster.nannyd(nannyd, config=f'{tls}cert = "{certificate}"\n')
    run.ready()
    with run.connect() as caller:
        address = caller.get("Status")["dask"]["nanny"]
    certificate.unlink()
    with knock(address) as first:
        assert first.recv(1) == b""  # after three attempts
    for _ in range(4):
        assert "FileNotFoundError" in run.wait_for("plugin-failed")["message"]
    certificate.write_bytes(Path(security["tls_worker_cert"]).read_bytes())
    before = list(empty_cluster.wait_for_workers())
    empty_cluster.run("client.restart()")
    assert list(empty_cluster.wait_for_workers()) != before
    assert run.stop() == 0


ASK = """
async def ask():
    async with distributed.rpc(nanny) as there:
        return (await there.identity())["type"]
client.sync(ask)
"""
PLUGIN = """
class Plugin(distributed.NannyPlugin):
    name = "lasting"
client.register_plugin(Plugin())
"""


@pytest.mark.parametrize("zygote", [NEWEST], indirect=True)  # nothing in it depends on the version
def test_an_agent_that_has_stopped_is_replaced_when_somebody_comes(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    run.ready()
    (worker,) = cluster.wait_for_workers().values()
    cluster.run(PLUGIN)
    send_signal(int(run.wait_for("agent-started")["agent_pid"]), signal.SIGSTOP)
    assert cluster.run(ASK, nanny=worker["nanny"]) == "Nanny"
    assert "it does not answer" in run.wait_for("agent-failed")["message"]
    assert run.stop() == 0


@pytest.mark.parametrize("zygote", [NEWEST], indirect=True)
def test_an_agent_that_stops_while_it_is_asked_is_replaced(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    run.ready()
    cluster.wait_for_workers()
    stop = """
        import os, signal, time
        client.run(lambda: (os.kill(os.getpid(), signal.SIGSTOP), time.sleep(60)), nanny=True)
    """
    with pytest.raises(ClusterError, match="CommClosedError"):
        cluster.run(stop)
    assert "it does not answer" in run.wait_for("agent-failed")["message"]
    assert cluster.run("[*client.run(lambda: 1, nanny=True).values()]") == [1]
    # But what keeps Python's lock may do so for longer than an agent that serves nobody may be silent:
    cluster.run("import ctypes; client.run(lambda: ctypes.PyDLL(None).sleep(10), nanny=True)")
    assert len(run.all("agent-failed")) == 1
    assert run.stop() == 0


@pytest.mark.parametrize("zygote", [NEWEST], indirect=True)
def test_an_agent_that_is_killed_again_and_again_still_answers(empty_cluster: Cluster, nannyd: Host) -> None:
    empty_cluster.start_scheduler(config={"distributed.comm.timeouts.connect": "10s"})
    run = empty_cluster.nannyd(nannyd)
    run.ready()
    empty_cluster.wait_for_workers()
    for _ in range(6):
        empty_cluster.run("import os; client.run(lambda: os._exit(1), nanny=True, on_error='ignore')")
    assert empty_cluster.run("[*client.run(lambda: 1, nanny=True).values()]") == [1]
    assert len(run.all("agent-started")) == 7
    assert run.stop() == 0


def test_a_worker_that_is_not_to_reconnect_ends_nannyd_with_it(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd, "--dask.reconnect=false")
    run.ready()
    cluster.wait_for_workers()
    cluster.end_scheduler()
    assert run.wait() == 0
    assert run.events().count("worker-started") == 1


@pytest.mark.parametrize("word", ["end", "restart"])
def test_what_follows_is_the_administrators_to_say(cluster: Cluster, nannyd: Host, word: str) -> None:
    run = cluster.nannyd(nannyd, f"--dask.on-scheduler-close={word}", f"--dask.on-connection-lost={word}")
    pid = run.ready()
    cluster.wait_for_workers()
    cluster.end_scheduler(signal.SIGTERM)
    if word == "end":
        assert run.wait() == 0
        return
    assert run.started() != pid
    assert run.stop() == 0


def test_the_clients_own_words_reach_the_nanny(cluster: Cluster, nannyd: Host) -> None:
    run = cluster.nannyd(nannyd)
    pid = run.ready()
    cluster.wait_for_workers()
    rpc = """
    def call(nanny, what, **kwargs):
        async def do():
            async with distributed.core.rpc(nanny) as there:
                return await getattr(there, what)(**kwargs)
        return client.sync(do)
    """
    cluster.run(rpc)
    with run.connect() as caller:
        nanny = caller.get("Status")["dask"]["nanny"]

    def call(what: str, **kwargs: Any) -> Any:
        return cluster.run("call(nanny, what, **kwargs)", nanny=nanny, what=what, kwargs=kwargs)

    logs = call("get_logs", n=1000)
    assert any(f"worker {pid} is ready" in line for _, line in logs)
    assert call("kill") is None
    call("instantiate")
    assert [worker["pid"] for worker in cluster.wait_for_workers().values()] != [pid]
    call("terminate")
    assert run.wait() == 0
