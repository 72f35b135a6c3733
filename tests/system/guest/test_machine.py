"""The machine is what nannyd, and the other tests, take it for."""

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).with_name("probe.py")
CGROUPS = Path("/sys/fs/cgroup")

Probe = Callable[..., dict[str, Any]]


@pytest.fixture
def probe(unit: Any, journal: Any) -> Probe:
    """Return a function that runs a probe as nannyd's user in a unit like nannyd's."""

    def run_probe(name: str, *more_settings: str) -> dict[str, Any]:
        settings = "\n".join(more_settings)
        text = f"""
[Service]
Type=oneshot
User=_nannyd
Delegate=memory pids
DelegateSubgroup=supervisor
OOMScoreAdjust=-500
NoNewPrivileges=yes
ExecStart=/usr/bin/python3 {PROBE} {name}
{settings}
"""
        unit("probe.service", text)
        found: dict[str, Any] = json.loads(journal.wait_for("{", "probe.service"))
        print(name, settings, found)
        return found

    return run_probe


def test_pid_1_is_systemd_257(run: Any) -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert run("systemctl", "--version").stdout.startswith("systemd 257 ")


def test_system_is_up_without_a_failed_unit(run: Any, eventually: Any) -> None:
    eventually(
        lambda: run("systemctl", "is-system-running", check=False).stdout.strip() != "starting",
        "the end of the boot",
    )
    assert run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_cgroups_are_version_2_with_memory_and_pids() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [kind for _, place, kind, *_ in mounts if place == str(CGROUPS)] == ["cgroup2"]
    assert {"memory", "pids", "cpu"} <= set((CGROUPS / "cgroup.controllers").read_text().split())


def test_cgroup_files_that_nannyd_uses_exist(unit: Any) -> None:
    sleeper = unit("sleeper.service", "[Service]\nExecStart=sleep infinity\nDelegate=memory pids\n")
    present = {path.name for path in sleeper.cgroup.iterdir()}
    assert {
        "cgroup.kill",
        "cgroup.events",
        "memory.high",
        "memory.max",
        "memory.oom.group",
        "memory.peak",
        "memory.events",
        "memory.reclaim",
        "pids.max",
    } <= present


def test_glibc_can_spawn_into_a_cgroup() -> None:
    version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    assert tuple(map(int, version.removeprefix("glibc ").split("."))) >= (2, 39)
    assert hasattr(ctypes.CDLL(None), "pidfd_spawn")


def test_core_dumps_are_noticed(run: Any, request: pytest.FixtureRequest) -> None:
    request.applymarker("dumps_core")
    run("sh", "-c", "kill -SEGV $$", check=False)
    assert "signal=11 command=sh" in Path("/run/core-dumps").read_text()


def test_unprivileged_process_is_woken_when_a_child_crosses_memory_high(probe: Probe) -> None:
    found = probe("tripwire")
    assert found["woken"]
    assert found["events"]["high"] > 0
    assert found["events"]["oom_kill"] == 0
    assert found["status"] == -9


def test_unprivileged_process_spawns_into_its_own_leaf(probe: Probe) -> None:
    found = probe("spawn")
    assert found["cgroup"] == found["wanted"]


def test_restricted_namespaces_forbid_to_spawn_into_a_leaf(probe: Probe) -> None:
    """RestrictNamespaces= makes clone3(2) fail with ENOSYS: its flags lie behind a pointer."""
    assert probe("spawn", "RestrictNamespaces=yes") == {"errno": "ENOTSUP"}


def test_unprivileged_process_raises_its_oom_score_and_takes_it_back(probe: Probe) -> None:
    """The kernel keeps what systemd set as the minimum: a worker forked in between may do so too."""
    assert probe("oom-score") == {
        "start": "-500",
        "raise to 0": "ok",
        "lower to -500": "ok",
        "lower to -501": "EACCES",
        "end": "-500",
    }


def test_unprivileged_process_sees_what_is_delegated_to_it(probe: Probe) -> None:
    found = probe("delegation")
    assert found["user.delegate"] == "1"
    assert found["trusted.delegate"] == "ENODATA"
    assert found["memory.high"] == "0:0 644"  # the unit's own limits stay systemd's
    user = f"{found['uid']}:{found['uid']}"
    assert {found[name] for name in ("directory", "supervisor")} == {f"{user} 755"}
    assert found["cgroup.procs"] == found["cgroup.subtree_control"] == f"{user} 644"
