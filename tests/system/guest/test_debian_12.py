"""Debian 12, with systemd 252 and nannyd by pip: its package cannot be installed there.

It is run with --suite bookworm.  Where systemd knows no DelegateSubgroup= the supervisor is started in the
unit's own cgroup, and must leave it before anything can be made of that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .instances import CGROUPS, rude, run_command, wait_until

if TYPE_CHECKING:
    from .instances import NannydFactory

UNIT = Path("/etc/systemd/system/nannyd@.service")
UNKNOWN = ("DelegateSubgroup", "RestartMaxDelaySec", "RestartSteps")
"""What came with systemd 254."""
RUDE = rude("--fork-and-leave", 3, "--double-fork", "--setsid", "--ignore-sigterm")
FORKS = f"[worker]\ncommand = {RUDE}\nstop-timeout = '1s'\n"


def cgroup_of(pid: int) -> Path:
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def pids_of(leaf: Path) -> list[str]:
    """Return the processes of FORKS, when all are there."""
    pids = (leaf / "cgroup.procs").read_text().split()
    return pids if len(pids) == 4 else []


def test_package_is_refused_for_a_named_reason_and_leaves_nothing() -> None:
    refused = run_command("apt-get", "install", "--yes", "/mnt/share/nannyd.deb", check=False)
    assert refused.returncode != 0
    assert " nannyd : Depends: python3-pydantic-settings (>= 2.8) but it is not installable" in refused.stdout
    assert run_command("dpkg-query", "--show", "nannyd", check=False).returncode != 0
    assert not Path("/usr/lib/nannyd").exists()
    assert run_command("dpkg", "--audit").stdout == ""


def test_systemd_warns_of_what_it_does_not_know_and_of_nothing_else() -> None:
    assert run_command("systemctl", "--version").stdout.startswith("systemd 252 ")
    said = run_command("systemd-analyze", "verify", "--man=no", str(UNIT)).stderr.splitlines()
    unknown = [re.search(r"Unknown key '(\w+)' in section \[Service\], ignoring", line) for line in said]
    assert tuple(sorted(found[1] if found else "?" for found in unknown)) == UNKNOWN, said


def test_supervisor_places_itself_and_the_kernel_watches_the_worker(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\ncommand = {rude()}\n[memory]\nlimit = '100M'\n[restart]\ndelay = 0\n")
    assert "polled" not in instance.status
    assert " of 100.0 MiB " in instance.status
    assert cgroup_of(instance.main_pid) == instance.cgroup / "supervisor"
    assert (instance.cgroup / "cgroup.procs").read_text() == ""
    assert cgroup_of(instance.worker) == instance.leaf == instance.cgroup / "worker-1"
    assert int((instance.leaf / "memory.max").read_text()) == 100 << 20
    run_command("kill", "-KILL", str(instance.worker))
    instance.wait_for_event("worker-ready", 2)
    assert instance.leaf == instance.cgroup / "worker-2"


def test_operator_finds_it(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\ncommand = {rude()}\n")
    assert f"process {instance.worker} (life 1)" in run_command("nannyctl", "status", "w").stdout


def test_memory_is_limited(nannyd: NannydFactory) -> None:
    eats = rude("--eat", "200M", "--rate", "50M")
    instance = nannyd(f"[worker]\ncommand = {eats}\n[memory]\nlimit = '100M'\n[restart]\ndelay = 0\n")
    instance.wait_for_event("memory-terminate")
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WHO"]) == ("memory", "nannyd")
    instance.wait_for_event("worker-ready", 2)


def test_reload_works_and_fails_as_it_should(nannyd: NannydFactory) -> None:
    configuration = "[worker]\ncommand = ['sleep', 'infinity']\n[memory]\nlimit = '{}'\n"
    instance = nannyd(configuration.format("100M"))
    worker = instance.worker
    for _ in range(2):  # systemd runs ExecReload= in a cgroup beside the supervisor's
        instance.configure(configuration.format("64M"))
        instance.reload()
        assert " of 64.0 MiB " in instance.status
        instance.configure(configuration.format("lots"))
        assert instance.reload(check=False).returncode != 0
        assert " of 64.0 MiB " in instance.status
    assert instance.worker == worker
    assert instance.show("ActiveState") == "active"


def test_stop_leaves_nothing(nannyd: NannydFactory) -> None:
    instance = nannyd(FORKS)
    cgroup, leaf = instance.cgroup, instance.leaf
    pids = wait_until(lambda: pids_of(leaf), "its forks")
    instance.stop()
    assert instance.show("Result") == "success"
    assert not cgroup.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not Path("/run/nannyd", instance.instance).exists()


def test_killed_supervisor_comes_back_with_a_worker_of_its_own(nannyd: NannydFactory) -> None:
    instance = nannyd(FORKS)
    before = wait_until(lambda: pids_of(instance.leaf), "its forks")
    instance.kill()
    instance.wait_for_event("worker-ready", 2)
    assert instance.show("NRestarts") == "1"
    assert cgroup_of(instance.main_pid) == instance.cgroup / "supervisor"
    assert not set(before) & set(wait_until(lambda: pids_of(instance.leaf), "its forks"))


def test_python_class_is_a_worker(nannyd: NannydFactory) -> None:
    """Its interpreter is the system's, which has no nannyd."""
    examples = Path("/root/src/packaging/examples")
    instance = nannyd(f"""
        [worker]
        class = "ticker:Ticker"
        args = [60]
        working-directory = "{examples}"
        python = "/usr/bin/python3"
    """)
    assert instance.worker
    instance.stop()
    assert instance.show("Result") == "success"


def test_name_with_an_escape_is_one_like_others(nannyd: NannydFactory) -> None:
    """As it is not from systemd 255 to 260: see test_names.py."""
    instance = nannyd(f"[worker]\ncommand = {rude()}\n", name=r"x\x20y")
    instance.reload()
    assert Path("/run/nannyd", r"x\x20y", "control").exists()
    instance.stop()
    assert instance.show("Result") == "success"
