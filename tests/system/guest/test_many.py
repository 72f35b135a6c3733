"""Twenty instances on one machine, and its reboot; how they are after it, `after_reboot.py` looks."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from .instances import Journal, Nannyd, run_command, shell, wait_until

AGAIN = Path("/mnt/share/again")
CHECKS = "tests/system/guest/after_reboot.py"
COUNT = 20
NAMES = [f"many{number:02}" for number in range(COUNT - 1)]
CRASHING = "crashing"
WORKER = """
    trap 'touch $STATE_DIRECTORY/ended-$BOOT; exit 0' TERM
    BOOT=$(cat /proc/sys/kernel/random/boot_id)
    touch $STATE_DIRECTORY/began-$BOOT
    systemd-notify --ready
    sleep 1000 & wait
"""
STEADY = f"[worker]\ncommand = {shell(WORKER)}\nready = 'notify'\n"
CRASHES = """
[worker]
command = ["/bin/false"]
[restart]
delay = "100ms"
growth = 1
start-limit-burst = 0
"""


def instance_of(name: str, journal: Journal) -> Nannyd:
    return Nannyd(f"nannyd@{name}.service", journal)


def switches(instance: Nannyd) -> int:
    lines = Path(f"/proc/{instance.main_pid}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["voluntary_ctxt_switches"])


def are_up(instances: list[Nannyd]) -> bool:
    states = run_command("systemctl", "is-active", *(one.name for one in instances), check=False).stdout
    return states.split() == ["active"] * len(instances)


@pytest.mark.last
def test_twenty_enabled_instances_come_up_and_one_that_crashes_disturbs_none(journal: Journal) -> None:
    """They stay, for a machine that goes down under them and comes up again."""
    steady = [instance_of(name, journal) for name in NAMES]
    crashing = instance_of(CRASHING, journal)
    for instance in (*steady, crashing):
        shutil.rmtree(instance.state, ignore_errors=True)
        instance.configure(CRASHES if instance is crashing else STEADY)
    AGAIN.write_text(CHECKS)
    began = time.monotonic()
    run_command("systemctl", "enable", "--now", *(one.name for one in (*steady, crashing)), timeout=120)
    assert are_up([*steady, crashing])
    print(f"{COUNT} instances started in {time.monotonic() - began:.1f} s")
    neighbour = steady[0]
    worker, crashes = neighbour.worker, len(crashing.events("worker-failed"))
    before = switches(neighbour)
    wait_until(lambda: len(crashing.events("worker-failed")) >= crashes + 5, "five crashes more")
    assert switches(neighbour) - before <= 4  # the watchdog, the status
    assert neighbour.worker == worker
    for instance in steady:
        assert instance.status.startswith("worker ")
        assert "restart" not in instance.status
