"""One worker's life under `nannyd run`: how it starts, ends, and what follows."""
from __future__ import annotations
from harness import Host

def test_a_command_lives_and_stops(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", systemd=True)
    run.ready()
    run.systemd.wait_for("READY", "1")
    assert run.stop() == 0
    run.systemd.wait_for("STOPPING", "1")
    print(run.systemd.said())
    print(run.story())
