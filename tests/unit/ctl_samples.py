"""Instances as `nannyctl` would have found them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nannyd.core.paths import Scope
from nannyd.ctl import replies
from nannyd.ctl.instances import Instance
from nannyd.ctl.units import Unit

MIB = 1 << 20
NOW = 1_763_874_917.0


def micro(seconds_ago: float) -> int:
    """Return an instant as replies have it."""
    return round((NOW - seconds_ago) * 1e6)


def last_exit(**changes: Any) -> dict[str, Any]:
    """Return an Exit."""
    return {
        "generation": 1,
        "result": "memory",
        "who": "nannyd",
        "how": "was killed by SIGTERM",
        "detail": "memory.terminate: 190.0 MiB of 200.0 MiB (95.0 %)",
        "exitStatus": None,
        "signal": "SIGTERM",
        "at": micro(60),
        "uptime": 6.365,
        "memoryPeak": 199 * MIB,
        "wasReady": True,
        **changes,
    }


def memory(**changes: Any) -> dict[str, Any]:
    """Return a Memory."""
    return {
        "mode": "cgroup",
        "weaker": None,
        "limit": 200 * MIB,
        "where": "memory.limit of /etc/nannyd/worker1.toml",
        "warn": 160 * MIB,
        "terminate": 190 * MIB,
        "max": 200 * MIB,
        "workingSet": 50 * MIB,
        "anon": 49 * MIB,
        "shmem": 0,
        "kernel": MIB,
        "swap": 0,
        "peak": 80 * MIB,
        **changes,
    }


def worker(**changes: Any) -> dict[str, Any]:
    """Return a Process."""
    return {
        "processId": 834,
        "startedAt": micro(59),
        "readyAt": micro(58),
        "status": "",
        "address": "",
        "directory": "",
        "localDirectory": "/var/lib/nannyd/worker1/scratch/worker-a",
        "controlGroup": "/system.slice/nannyd@worker1.service/worker-2",
        **changes,
    }


def status_reply(**changes: Any) -> dict[str, Any]:
    """Return a reply to Status()."""
    return {
        "instance": "worker1",
        "version": "0.1.0",
        "processId": 826,
        "startedAt": micro(3600),
        "unit": "nannyd@worker1.service",
        "state": "running",
        "activeState": "active",
        "goal": "up",
        "sentence": "worker 834 running, 50.0 of 200.0 MiB (25 %), 1 restart",
        "generation": 2,
        "restarts": 1,
        "restartsByResult": {"memory": 1},
        "nextStartAt": None,
        "startLimitHit": False,
        "worker": worker(),
        "memory": memory(),
        "lastExit": last_exit(),
        "logLevel": 6,
        **changes,
    }


def running(name: str = "worker1", **changes: Any) -> Instance:
    """Return an instance that answers."""
    return Instance(
        name,
        Scope.SYSTEM,
        directory=Path("/run/nannyd") / name,
        unit=Unit(name, Scope.SYSTEM, active_state="active", sub_state="running", main_pid=826),
        status=replies.status(status_reply(**changes)),
        was_started=True,
    )


def down(name: str = "worker1", **unit: Any) -> Instance:
    """Return an instance of which only systemd knows."""
    values = {"changed_at": round(NOW) - 300, "exec_code": 1, "result": "success", **unit}
    return Instance(name, Scope.SYSTEM, unit=Unit(name, Scope.SYSTEM, **values), was_started=True)
