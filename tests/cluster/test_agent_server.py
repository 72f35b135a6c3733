"""The agent as Dask's nanny, asked by real clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agent_peer import AgentError

from .lab import NEWEST, ClusterError

if TYPE_CHECKING:
    from .nanny_peer import Nanny


def test_it_says_who_it_is(nanny: Nanny) -> None:
    nanny.specify()
    nanny.serve()
    identity = nanny.ask("identity")
    assert identity["type"] == "Nanny"
    assert identity["id"].startswith("Nanny-")


def test_kill_is_answered_with_nothing_when_the_worker_is_dead(nanny: Nanny) -> None:
    nanny.specify()
    nanny.serve()
    assert nanny.ask("kill", reason="test") is None
    assert nanny.ask("kill", reason="test", timeout=3) is None  # as older schedulers do
    assert nanny.agent.asked == [
        ("respawn", {"timeout": None, "reason": "test"}),
        ("respawn", {"timeout": 3, "reason": "test"}),
    ]


def test_every_request_of_the_nannys_reaches_the_supervisor(nanny: Nanny) -> None:
    records = [[3.0, "WARNING", "newest"], [2.0, "INFO", "older"], [1.0, "INFO", "oldest"]]
    nanny.agent.responses["get_logs"] = {"ok": {"records": records}}
    nanny.specify()
    nanny.serve()
    assert nanny.ask("restart", timeout=5) == "OK"
    assert nanny.ask("instantiate").name == "running"
    assert nanny.ask("get_logs", n=2) == (("WARNING", "newest"), ("INFO", "older"))
    assert nanny.ask("get_logs", start=2.5, timestamps=True) == ((3.0, "WARNING", "newest"),)
    assert nanny.ask("close_gracefully", reason="worker-lifetime-reached") is None
    assert nanny.ask("terminate", reason="test") == "OK"
    assert [what for what, _ in nanny.agent.asked] == [
        "restart",
        "instantiate",
        "get_logs",
        "get_logs",
        "close_gracefully",
        "close",
    ]


def test_restart_says_when_it_takes_too_long_or_fails(nanny: Nanny) -> None:
    nanny.agent.responses["restart"] = None
    nanny.specify()
    nanny.serve()
    assert nanny.ask("restart", timeout=0.1) == "timed out"
    nanny.agent.responses["restart"] = {"error": {"name": "Closing", "parameters": {}}}
    answer = nanny.ask("restart")
    assert answer["status"] == "error"
    assert "Closing" in answer["exception_text"]


def test_a_blocked_request_is_refused_as_dask_does(nanny: Nanny) -> None:
    nanny.specify(blocked_handlers=["run"])
    nanny.serve()
    with pytest.raises(ClusterError, match="'run' handler has been explicitly disallowed in Nanny"):
        nanny.ask("run", function=b"")
    assert nanny.ask("kill") is None


@pytest.mark.parametrize("zygote", [NEWEST], indirect=True)  # nothing in it depends on the version
def test_busy_while_somebody_is_served_and_at_rest_when_asked(nanny: Nanny) -> None:
    nanny.agent.responses["respawn"] = None
    nanny.specify()
    nanny.serve()
    asking = nanny.begin("kill")
    nanny.agent.until(lambda: nanny.agent.asked)
    assert nanny.agent.said == [{"say": "busy"}]
    assert nanny.agent.do("rest") == {"rests": False}
    nanny.agent.respond_all("respawn")
    assert asking() is None
    assert nanny.ask("identity")["type"] == "Nanny"
    nanny.agent.until(lambda: nanny.agent.said == [{"say": "busy"}, {"say": "idle"}])
    assert nanny.agent.do("rest") == {"rests": True}
    asking = nanny.begin("identity")
    nanny.await_knock()
    nanny.serve()
    assert asking()["type"] == "Nanny"


def test_a_function_that_blocks_does_not_make_the_agent_deaf(nanny: Nanny) -> None:
    nanny.specify()
    nanny.serve()
    release, block = os.pipe()
    with os.fdopen(release, "rb"), os.fdopen(block, "wb", buffering=0) as end:
        code = """
        import os
        from distributed.protocol.pickle import dumps
        path = f"/proc/{pid}/fd/{fd}"
        async def block():
            async with distributed.rpc(address) as nanny:
                return await nanny.run(function=dumps(lambda: open(path, "rb").read(1)), wait=True)
        client.sync(block)["result"]
        """
        asking = nanny.begin_run(code, address=nanny.address, pid=os.getpid(), fd=release)
        nanny.agent.until(lambda: {"say": "busy"} in nanny.agent.said)
        assert nanny.agent.do("ping") == {}
        assert nanny.agent.do("rest") == {"rests": False}
        end.write(b"x")
        assert asking() == b"x"


def test_exits_are_published(nanny: Nanny) -> None:
    nanny.specify()
    end = {"worker": "tcp://127.0.0.1:1", "pid": 7, "result": "memory", "memory": 5, "limit": 4}
    assert nanny.agent.do("publish", exits=[end]) == {}
    assert nanny.cluster.events("nannyd") == [end]
    assert nanny.cluster.events("worker-restart-memory") == [
        {"worker": "tcp://127.0.0.1:1", "pid": 7, "rss": 5}
    ]


def test_a_plugin_of_nannyds_own_meets_the_nanny_it_knows(nanny: Nanny) -> None:
    nanny.specify()
    nanny.agent.add("plugins:Plain")
    assert nanny.agent.story() == ["plain setup of w1"]
    assert "distributed" not in nanny.agent.call("plugins:modules")
    nanny.serve()
    assert "distributed" in nanny.agent.call("plugins:modules")


def test_preloads_with_dask_setup_meet_dasks(nanny: Nanny) -> None:
    (nanny.base / "preloaded.py").write_text(
        "def dask_setup(nanny):\n    nanny.env['MET'] = f'{nanny.status.name} {nanny.scheduler.address}'\n"
    )
    nanny.specify(preload=[str(nanny.base / "preloaded.py")])
    assert nanny.agent.do("setup", again=False)["failed"] == []
    met = {"plugin": f"preload {nanny.base}/preloaded.py", "name": "MET"}
    value = f"running {nanny.cluster.address}"
    assert ("set_env", {**met, "value": value}) in nanny.agent.asked


def test_a_bad_certificate_is_told_and_may_be_mended(nanny: Nanny, security: dict[str, str]) -> None:
    bad = {name: str(nanny.base / name) for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key")}
    nanny.specify(security=bad, nanny=nanny.address.replace("tcp:", "tls:"))
    nanny.agent.give(nanny.listening)
    with pytest.raises(AgentError, match="FileNotFoundError"):
        nanny.agent.do("serve")
    for name, path in security.items():
        if name in bad:
            Path(bad[name]).write_bytes(Path(path).read_bytes())
    nanny.serve()
