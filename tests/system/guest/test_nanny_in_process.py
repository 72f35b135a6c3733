"""`nannyd.dask.Nanny` in a service of somebody's that has a cgroup of its own, and in one that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import UnitFactory

UNIT = """
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /run/lodger.py
DynamicUser=yes
StateDirectory=lodger
DELEGATION
"""
PROGRAM = """
import asyncio, json, os, pathlib
import distributed
from nannyd.dask import Nanny

def cgroup(pid):
    return pathlib.Path(f"/proc/{pid}/cgroup").read_text().split("::")[1].strip()

def eat():
    held = bytearray(400 << 20)
    for offset in range(0, len(held), 4096):
        held[offset] = 1

async def main():
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": ":0"}
    found = {"own": cgroup("self")}
    async with (
        distributed.Scheduler(allowed_failures=0, **options) as s,
        distributed.Client(s.address, asynchronous=True) as c,
        Nanny(s.address, name="one", memory_limit="300 MiB") as one,
        Nanny(s.address, name="two", memory_limit=0) as two,
    ):
        found["workers"] = [cgroup(nanny.pid) for nanny in (one, two)]
        leaf = pathlib.Path("/sys/fs/cgroup" + cgroup(one.pid), "memory.max")
        found["wall"] = leaf.read_text().strip() if leaf.exists() else ""
        try:
            await c.submit(eat, workers=["one"], allow_other_workers=False)
        except distributed.KilledWorker:
            found["killed"] = True
        while not (events := s.get_events("nannyd")):
            await asyncio.sleep(0.02)
        found["event"] = events[0][1]
        found["after"] = cgroup("self")
    path = pathlib.Path(os.environ["STATE_DIRECTORY"], "found")
    path.write_text(json.dumps(found))

asyncio.run(main())
"""
DELEGATED = "Delegate=memory pids\nDelegateSubgroup=supervisor"


@pytest.fixture
def program() -> Iterator[Path]:
    """Return a file that a service finds, too."""
    path = Path("/run/lodger.py")
    yield path
    path.unlink()


@pytest.mark.parametrize("delegation", [DELEGATED, "Delegate=memory pids"])
def test_a_cgroup_is_used_where_it_is_the_programs_alone(
    unit: UnitFactory, program: Path, delegation: str
) -> None:
    program.write_text(PROGRAM)
    unit("lodger.service", UNIT.replace("DELEGATION", delegation))
    path = Path("/var/lib/private/lodger/found")
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    event = found["event"]
    assert (event["result"], event["limit"]) == ("memory", 300 << 20)
    assert found["killed"]
    assert found["after"] == found["own"]
    if delegation == DELEGATED:
        base = "/system.slice/lodger.service"
        assert found["own"] == f"{base}/supervisor"
        assert found["workers"] == [f"{base}/worker-1", f"{base}/worker-2"]
        assert found["wall"] == str(300 << 20)
        assert event["memory-peak"] > 280 << 20
    else:
        assert found["workers"] == [found["own"]] * 2
        assert event["memory-peak"] is None
