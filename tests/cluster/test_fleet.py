"""Twenty instances on four hosts, killed, out of memory and cut off while they work: nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
WORKERS = 20
KILLS = 8


@pytest.mark.timeout(180)
def test_no_result_is_lost_by_a_fleet_in_trouble() -> None:
    command = [sys.executable, "-m", "benchmarks.fleet", f"--workers={WORKERS}", f"--kills={KILLS}"]
    process = subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=150)
    finally:
        process.send_signal(signal.SIGKILL)  # what it has started goes with it
        process.wait()
    assert process.returncode == 0
    outcome = json.loads(said)
    assert outcome["tasks"] > 500
    assert outcome["wrong"] == 0
    assert len(outcome["again"]) == KILLS
    assert outcome["missing"] == 0
    # One that was just being ended for its memory has that as its result, kill -9 or not.
    assert sum(outcome["ends"].values()) > KILLS
    assert min(outcome["ends"]["signal"], outcome["ends"]["memory"]) >= 1
    assert outcome["statuses"] == [0] * WORKERS
