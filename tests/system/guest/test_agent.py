"""The agent in the unit: a leaf and a memory limit of its own, beside a worker that does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .instances import RUDE, run_command, wait_until

if TYPE_CHECKING:
    from .instances import Nannyd, NannydFactory

WORKERS = RUDE.parent
CONFIG = f"""
[worker]
command = ["/usr/bin/sleep", "infinity"]
[nanny]
env = {{ PYTHONPATH = "{WORKERS}" }}
plugins = [{{ class = "manners:Noting", kwargs = {{ path = "/var/lib/nannyd/w/notes" }} }}]
[agent]
memory-limit = "64M"
"""


def call(instance: Nannyd, method: str, **parameters: Any) -> dict[str, Any]:
    socket = f"/run/nannyd/{instance.instance}/control"
    command = (
        "varlinkctl",
        "call",
        "--json=short",
        socket,
        f"io.nannyd.Nanny.{method}",
        json.dumps(parameters),
    )
    answer: dict[str, Any] = json.loads(run_command(*command).stdout)
    return answer


def test_the_agent_has_a_leaf_and_a_limit_of_its_own(nannyd: NannydFactory) -> None:
    instance = nannyd(CONFIG)
    worker = instance.worker
    agent = call(instance, "Status")["agent"]
    assert (agent["state"], agent["plugins"]) == ("running", ["noting"])
    leaf = instance.cgroup / "agent"
    assert (leaf / "cgroup.procs").read_text().split() == [str(agent["processId"])]
    assert (leaf / "memory.max").read_text() == f"{64 << 20}\n"
    assert (leaf / "memory.swap.max").read_text() == "0\n"
    assert 0 < agent["memory"] < 64 << 20
    assert str(agent["processId"]) not in (instance.leaf / "cgroup.procs").read_text()
    instance.stop()
    notes = (instance.state / "notes").read_text().splitlines()
    assert (notes[0], notes[-1]) == ("noting setup w None", "noting teardown")
    assert f"noting worker_started {worker}" in notes


def test_a_plugin_that_leaks_ends_the_agent_alone(nannyd: NannydFactory) -> None:
    instance = nannyd(CONFIG)
    worker = instance.worker
    socket = f"/run/nannyd/{instance.instance}/control"
    eat = json.dumps({"target": "manners:eat", "arguments": {"args": [256 << 20]}})
    failed = run_command("varlinkctl", "call", socket, "io.nannyd.Nanny.Call", eat, check=False)
    assert "AgentFailed" in failed.stderr
    told = instance.wait_for_event("agent-failed")
    assert "out of memory (agent.memory-limit)" in told["DETAIL"]
    wait_until(lambda: call(instance, "Status")["agent"]["state"] == "running", "it is back")
    assert call(instance, "Status")["agent"]["plugins"] == ["noting"]
    assert instance.worker == worker
    assert instance.show("Result") == "success"


def test_nothing_is_left_of_the_agent_after_a_crash_of_nannyd(nannyd: NannydFactory) -> None:
    instance = nannyd(CONFIG)
    agent = call(instance, "Status")["agent"]["processId"]
    instance.kill("SIGKILL")
    wait_until(lambda: not Path(f"/proc/{agent}").exists(), "the old agent is gone")
    instance.wait_for_event("agent-started", 2)
    assert instance.worker
