"""The agent as Dask's nanny, asked by real clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .lab import ClusterError

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
