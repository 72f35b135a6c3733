"""What became of the instances that `test_many` left enabled and running: the machine was rebooted.

Not named test_…, for it is only to be run in the second boot, which `test_many` asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .instances import run_command, wait_until
from .test_many import CRASHING, NAMES, START_TIMEOUT, are_up, instance_of

if TYPE_CHECKING:
    from .instances import Journal

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_every_instance_is_back_after_the_reboot(journal: Journal) -> None:
    steady = [instance_of(name, journal) for name in NAMES]
    crashing = instance_of(CRASHING, journal)
    wait_until(lambda: are_up([*steady, crashing]), "all instances to be up", timeout=START_TIMEOUT)
    told = run_command("journalctl", "--boot", "--output=json", "NANNYD_EVENT=worker-failed").stdout
    assert {json.loads(line)["NANNYD_INSTANCE"] for line in told.splitlines()} == {CRASHING}
    for instance in steady:
        marks = sorted(path.name.split("-", 1) for path in instance.state.glob("*-*"))
        boots = {boot for _, boot in marks}
        assert len(boots) == 2
        (earlier,) = boots - {BOOT}
        assert marks == sorted([["began", earlier], ["ended", earlier], ["began", BOOT]])
        assert instance.status.startswith("worker ")
        assert "restart" not in instance.status
        names = [path.name for path in (instance.state / "scratch").iterdir()]
        assert len(names) == 2  # the directory of the present worker, and its owner
    crashing.wait_for_event("worker-failed", 3)
