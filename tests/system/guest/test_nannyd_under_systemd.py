"""What nannyd says to systemd, and what systemd makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import rude, run_command, shell, wait_until

if TYPE_CHECKING:
    from .instances import Nannyd, NannydFactory

MIB = 1 << 20
SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n"
NO_DELEGATION = "Delegate=no\nDelegateSubgroup="


def alive(pid: int | str) -> bool:
    return Path(f"/proc/{pid}").exists()


def lines(instance: Nannyd, identifier: str = "nannyd") -> list[str]:
    return instance.journal.messages(instance.name, SYSLOG_IDENTIFIER=identifier)


# Memory without a leaf


def test_without_delegation_memory_is_polled_and_the_status_says_why(nannyd: NannydFactory) -> None:
    vices = "--double-fork", "--print-pids", "/var/lib/nannyd/w/pids", "--eat", "90M", "--rate", "60M"
    instance = nannyd(
        f"""
        [worker]
        command = {rude(*vices)}
        [memory]
        limit = "80M"
        [restart]
        delay = "10s"
        """,
        NO_DELEGATION,
    )
    wait_until(lambda: "memory only polled: " in instance.status, "the status to tell")
    assert f"{instance.show('ControlGroup')} was not delegated" in instance.status
    record = instance.wait_for_event("worker-failed")
    assert (record["RESULT"], record["WHO"]) == ("memory", "nannyd")
    processes = (instance.state / "pids").read_text().split()
    assert len(processes) == 2
    wait_until(lambda: not any(map(alive, processes)), "the end of the child that left")


def test_cgroup_mode_without_delegation_is_a_failure_that_says_why(nannyd: NannydFactory) -> None:
    instance = nannyd(
        SLEEP + "[memory]\nlimit = '64M'\nmode = 'cgroup'\n", f"{NO_DELEGATION}\nRestart=no", start=False
    )
    assert instance.start(check=False).returncode != 0
    record = instance.wait_for_event("start-failed")
    assert "memory.mode is cgroup, but /system.slice/" in record["MESSAGE"]
    assert record["MESSAGE"].endswith("was not delegated (systemd: Delegate=memory pids)")
    assert instance.show("ExecMainStatus") == "71"


# Reload


def test_reload_succeeds_or_fails_as_a_whole(nannyd: NannydFactory) -> None:
    configuration = SLEEP + "[memory]\nlimit = '64M'\n"
    instance = nannyd(configuration)
    worker, wall = instance.worker, instance.leaf / "memory.max"

    instance.configure(configuration.replace("64M", "96M"))
    instance.reload()
    assert int(wall.read_text()) == 96 * MIB
    assert "memory.limit" in instance.wait_for_event("reloaded")["CHANGES"]

    instance.configure(
        configuration.replace("64M", "'lots'").replace("''", "'") + "[restart]\ndelay = 'soon'\n"
    )
    failed = instance.reload(check=False)
    assert failed.returncode != 0
    assert int(wall.read_text()) == 96 * MIB
    assert instance.show("ActiveState") == "active"
    record = instance.wait_for_event("reload-failed")
    for text in ("memory.limit: 'lots' is not a size", "restart.delay: 'soon' is not a duration"):
        assert text in record["PROBLEMS"]
        said = [entry for entry in instance.journal.entries(instance.name) if text in entry["MESSAGE"]]
        assert {entry["PRIORITY"] for entry in said} == {"3"}

    instance.configure(configuration)
    instance.reload()
    assert int(wall.read_text()) == 64 * MIB
    assert instance.worker == worker


def test_sighup_reloads(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    instance.configure(SLEEP + "[restart]\ndelay = '7s'\n")
    instance.kill("SIGHUP")
    assert "restart.delay" in instance.wait_for_event("reloaded")["CHANGES"]


# Watchdog, timeouts


@pytest.mark.dumps_core
def test_hung_supervisor_is_replaced_and_its_worker_is_gone_before_the_next(nannyd: NannydFactory) -> None:
    script = """
        touch $STATE_DIRECTORY/pids
        for pid in $(cat $STATE_DIRECTORY/pids); do [ ! -e /proc/$pid ] || echo found $pid; done
        setsid sleep 300 & echo $! $$ >>$STATE_DIRECTORY/pids
        trap "" TERM
        wait
    """
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\nstop-timeout = '1s'\n", "WatchdogSec=3")
    supervisor = instance.main_pid
    wait_until(lambda: (instance.state / "pids").exists() and (instance.state / "pids").read_text(), "pids")
    processes = (instance.state / "pids").read_text().split()
    instance.kill("SIGSTOP")
    instance.wait_for_event("worker-ready", 2)
    assert instance.main_pid != supervisor
    assert not any(map(alive, processes))
    assert instance.show("NRestarts") == "1"
    assert "watchdog timeout" in " ".join(lines(instance, "systemd")).lower()
    assert lines(instance, "w") == []


def test_start_may_take_longer_than_the_unit_allows(nannyd: NannydFactory) -> None:
    instance = nannyd(
        f"[worker]\ncommand = {rude('--ready-after', '5.5')}\nready = 'notify'\n", "TimeoutStartSec=5"
    )
    assert instance.show("NRestarts") == "0"
    said = re.search(r"is ready after ([\d.]+)s", instance.wait_for_event("worker-ready")["MESSAGE"])
    assert said is not None
    assert float(said[1]) > 5


def test_back_off_before_the_first_ready_may_take_longer_too(nannyd: NannydFactory) -> None:
    script = "[ -e $STATE_DIRECTORY/tried ] && exec sleep 99; touch $STATE_DIRECTORY/tried; exit 3"
    instance = nannyd(
        f"[worker]\ncommand = {shell('sleep 0.2; ' + script)}\nready = 'notify'\n[restart]\ndelay = '5.5s'\n",
        "TimeoutStartSec=5",
        start=False,
    )
    run_command("systemctl", "start", "--no-block", instance.name)
    instance.wait_for_event("worker-started", 2)
    assert instance.show("ActiveState") == "activating"
    assert instance.show("NRestarts") == "0"


def test_stop_may_take_longer_than_the_unit_allows(nannyd: NannydFactory) -> None:
    script = """
        end() { systemd-notify EXTEND_TIMEOUT_USEC=9000000; sleep 4; touch $STATE_DIRECTORY/orderly; exit 0; }
        trap end TERM
        systemd-notify --ready
        while :; do sleep 0.1; done
    """
    instance = nannyd(
        f"[worker]\ncommand = {shell(script)}\nready = 'notify'\nstop-timeout = '3s'\n", "TimeoutStopSec=1"
    )
    instance.stop()
    assert (instance.state / "orderly").exists()
    assert instance.show("Result") == "success"
    record = instance.wait_for_event("worker-ended")
    assert (record["RESULT"], record["WHO"], record["EXIT_STATUS"]) == ("success", "nannyd", "0")


# Ends


def test_every_error_of_a_bad_configuration_is_told_and_nothing_is_tried_again(nannyd: NannydFactory) -> None:
    instance = nannyd(
        "[worker]\ncomand = ['x']\nnice = 'very'\n[memory]\nlimit = 'lots'\n", "RestartSec=0", start=False
    )
    assert instance.start(check=False).returncode != 0
    assert instance.show("ExecMainStatus") == "78"
    assert instance.show("NRestarts") == "0"
    assert instance.show("ActiveState") == "failed"
    told = instance.journal.entries(instance.name, SYSLOG_IDENTIFIER="nannyd")
    for text in (
        "/etc/nannyd/w.toml: worker.comand: is not a setting; did you mean worker.command?",
        "/etc/nannyd/w.toml: worker.nice: 'very' is not ",
        "/etc/nannyd/w.toml: memory.limit: 'lots' is not a size",
    ):
        assert [entry["PRIORITY"] for entry in told if entry["MESSAGE"].startswith(text)] == ["3"]


def test_start_limit_ends_the_unit_for_good(nannyd: NannydFactory) -> None:
    instance = nannyd(
        "[worker]\ncommand = ['/bin/false']\n[restart]\ndelay = 0\nstart-limit-burst = 3\n", "RestartSec=0"
    )
    instance.wait_for("failed")
    assert instance.show("ExecMainStatus") == "69"
    assert instance.show("NRestarts") == "0"
    assert len(instance.events("worker-started")) == 3
    record = instance.wait_for_event("start-limit-hit")
    assert record["PRIORITY"] == "3"
    assert "3 starts within 5min" in record["MESSAGE"]


def test_worker_that_is_through_is_the_end_of_the_unit_where_the_policy_says_so(
    nannyd: NannydFactory,
) -> None:
    instance = nannyd("[worker]\ncommand = ['/bin/true']\n[restart]\nmode = 'on-failure'\n")
    instance.wait_for("inactive")
    assert instance.show("Result") == "success"


# What it costs to be there


def test_idle_supervisor_is_small(nannyd: NannydFactory) -> None:
    """In cgroup mode, with a limit, logging to the journal, as the unit is shipped."""
    instance = nannyd(SLEEP + "[memory]\nlimit = '64M'\n")

    def figures() -> dict[str, int]:
        status = Path(f"/proc/{instance.main_pid}/status").read_text()
        return {key: int(size) for key, size in re.findall(r"^(\w+):\s+(\d+)(?: kB)?$", status, re.MULTILINE)}

    before = figures()
    instance.reload()
    after = figures()
    told = [f"{name} {before[name]} KiB ({after[name]})" for name in ("VmRSS", "RssAnon", "RssFile")]
    print(f"idle supervisor (after a reload): {', '.join(told)}")
    assert after["VmRSS"] < 20.5 * 1024
    assert after["Threads"] == 1
