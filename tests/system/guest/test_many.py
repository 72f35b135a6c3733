"""Twenty instances on one machine, and its reboot; how they are after it, `after_reboot.py` looks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .instances import Journal, Nannyd, run_command, shell, switches

AGAIN = Path("/mnt/share/again")
CHECKS = "tests/system/guest/after_reboot.py"
COUNT = 20
NAMES = [f"many{number:02}" for number in range(COUNT - 1)]
CRASHING = "crashing"
WORKER = """
    trap 'touch $STATE_DIRECTORY/ended-$BOOT; exit 0' TERM
    read BOOT < /proc/sys/kernel/random/boot_id
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
START_TIMEOUT = 240.0


def instance_of(name: str, journal: Journal) -> Nannyd:
    return Nannyd(f"nannyd@{name}.service", journal)


def are_up(instances: list[Nannyd]) -> bool:
    states = run_command("systemctl", "is-active", *(one.name for one in instances), check=False).stdout
    return states.split() == ["active"] * len(instances)


@pytest.mark.last
@pytest.mark.timeout(300)  # 20 s on a quiet machine
def test_twenty_enabled_instances_come_up_and_one_that_crashes_disturbs_none(journal: Journal) -> None:
    """They stay, for a machine that goes down under them and comes up again."""
    steady = [instance_of(name, journal) for name in NAMES]
    crashing = instance_of(CRASHING, journal)
    everyone = [*steady, crashing]
    for instance in everyone:
        instance.clear()
        instance.configure(CRASHES if instance is crashing else STEADY)
    AGAIN.write_text(CHECKS)
    began = time.monotonic()
    run_command("systemctl", "enable", "--now", *(one.name for one in everyone), timeout=START_TIMEOUT)
    assert are_up(everyone)
    print(f"{COUNT} instances started in {time.monotonic() - began:.1f} s")
    neighbour = steady[0]
    worker, began, before = neighbour.worker, time.monotonic(), switches(neighbour.main_pid)
    crashing.wait_for_event("worker-failed", len(crashing.events("worker-failed")) + 5)
    seconds, woken = time.monotonic() - began, switches(neighbour.main_pid) - before
    assert woken <= 3 + seconds / 15  # the watchdog's
    assert neighbour.worker == worker
    for instance in steady:
        assert instance.status.startswith("worker ")
        assert "restart" not in instance.status
