"""`nannyctl` and systemd agree; other users are told what they lack."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .instances import CONFIGURATION, as_user, rude, run_command, shell, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from .instances import Nannyd, NannydFactory, UnitFactory

MIB = 1 << 20
SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n[restart]\ndelay = 0\n"
LIMITED = SLEEP + "[memory]\nlimit = '64M'\n"


def nannyctl(*words: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command, as root or as *user*."""
    return run_command(*as_user(user), "nannyctl", *words, check=False)


def done(*words: str, user: str | None = None) -> str:
    """Run a command that must succeed in silence on standard error, and return what it printed."""
    result = nannyctl(*words, user=user)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def listed(name: str, *words: str, user: str | None = None) -> dict[str, Any]:
    """Return what the list has on one instance."""
    found = json.loads(nannyctl("list", "--json", "--timeout=20s", *words, user=user).stdout)
    (one,) = [one for one in found if one["name"] == name]
    assert isinstance(one, dict)
    return one


# Stopping and starting are systemd's jobs


def test_stop_and_start_are_jobs_of_systemd(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "Restart=always")
    first = instance.main_pid
    assert done("stop", "w") == ""
    assert (instance.show("ActiveState"), instance.show("Result")) == ("inactive", "success")
    assert not Path(f"/proc/{first}").exists()
    one = listed("w")
    assert (one["state"], one["activeState"], one["workerProcessId"]) == ("inactive", "inactive", None)
    assert (one["reason"], one["ending"]) == ("stopped", "stopped")
    assert nannyctl("status", "w").returncode == 3
    assert done("stop", "w") == ""
    assert instance.show("NRestarts") == "0"

    assert done("start", "w") == ""
    assert instance.show("ActiveState") == "active"
    assert listed("w")["processId"] == instance.main_pid != first
    assert nannyctl("status", "w").returncode == 0


def test_stop_with_a_reason_is_told_to_nannyd_and_is_a_job_all_the_same(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "Restart=always\nRestartSec=0")
    assert done("stop", "w", "--reason=moving house", "--timeout=10") == ""
    assert (instance.show("ActiveState"), instance.show("Result")) == ("inactive", "success")
    assert "moving house" in instance.wait_for_event("stop-requested")["MESSAGE"]


def test_restart_is_of_the_worker_where_nannyd_runs(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    supervisor, worker = instance.main_pid, instance.worker
    assert done("restart", "w", "--reason=why not") == ""
    assert instance.main_pid == supervisor
    assert instance.worker != worker
    assert instance.show("ActiveState") == "active"


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_what_is_being_stopped_is_started_after_that(nannyd: NannydFactory, verb: str) -> None:
    instance = nannyd(
        f"[worker]\ncommand = {rude('--ignore-sigterm')}\nready = 'notify'\nstop-timeout = '3s'\n"
    )
    first = instance.main_pid
    run_command("systemctl", "stop", "--no-block", instance.name)
    instance.wait_for("deactivating")
    assert done(verb, "w") == ""
    assert instance.show("ActiveState") == "active"
    assert instance.main_pid != first


def test_what_was_stopped_is_restarted_by_systemd_and_patterns_leave_it_alone(nannyd: NannydFactory) -> None:
    up, down = nannyd(SLEEP, name="wa"), nannyd(SLEEP, name="wb")
    run_command("systemctl", "enable", down.name)
    try:
        done("stop", "wb")
        worker = up.worker
        done("restart", "w*")
        assert up.worker != worker
        assert down.show("ActiveState") == "inactive"
        done("restart", "wb")
        assert down.show("ActiveState") == "active"
    finally:
        run_command("systemctl", "disable", down.name)


def test_drained_instance_ends_with_its_worker(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    assert done("drain", "w", "--reason=upgrade") == ""
    assert instance.show("ActiveState") == "active"
    one = listed("w")
    assert (one["state"], one["activeState"], one["ending"]) == ("draining", "active", None)
    text = done("status", "w")
    assert " Active: active (draining) since " in text
    assert "\n    Reason: it ends when its worker does\n" in text
    assert done("kill", "w", "--timeout=5") == ""
    instance.wait_for("inactive")
    assert instance.show("Result") == "success"
    assert instance.show("NRestarts") == "0"


@pytest.mark.parametrize("enabled", [False, True], ids=["forgotten by systemd", "loaded"])
def test_why_one_is_down_is_told_apart(nannyd: NannydFactory, enabled: bool) -> None:  # noqa: FBT001
    once = f"[worker]\ncommand = {shell('exit 0')}\nready = 'exec'\n[restart]\nmode = 'on-failure'\n"
    configurations = {"succeeded": once}
    some = {
        name: nannyd(configurations.get(name, SLEEP), name=name)
        for name in ("stopped", "terminated", "drained", "succeeded")
    }
    if enabled:
        run_command("systemctl", "enable", *(one.name for one in some.values()))
    try:
        run_command("systemctl", "stop", some["stopped"].name)
        control = "/run/nannyd/terminated/control"
        run_command("varlinkctl", "call", control, "io.nannyd.Nanny.Terminate", '{"reason": "moving house"}')
        done("drain", "drained")
        done("kill", "drained", "--timeout=0")
        for one in some.values():
            one.wait_for("inactive")
        told = {name: listed(name) for name in some}
        reasons = {name: (one["ending"], one["reason"]) for name, one in told.items()}
        assert reasons == {
            "stopped": ("stopped", "stopped"),
            "terminated": ("terminated", "terminated over its socket: moving house"),
            "drained": ("drained", "drained: it was killed by SIGKILL"),
            "succeeded": ("succeeded", "its worker succeeded: it exited with status 0"),
        }
        line = r"^  drained +inactive .* drained: it was killed by SIGKILL, [\w ]+ ago$"
        assert re.search(line, done("list", "--timeout=20s"), re.MULTILINE)
        assert "its worker succeeded: it exited with status 0" in done("why", "succeeded")
        # What is told is how it ended last, not once upon a time.
        some["drained"].start()
        assert listed("drained")["ending"] is None
        some["drained"].stop()
        assert listed("drained")["reason"] == "stopped"
    finally:
        if enabled:
            run_command("systemctl", "disable", *(one.name for one in some.values()))


def test_masked_ones_are_listed_as_such(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, start=False)
    mask = Path("/etc/systemd/system", instance.name)
    mask.symlink_to("/dev/null")
    try:
        one = listed("w")
        assert (one["state"], one["activeState"], one["reason"]) == (
            "masked",
            "inactive",
            "its unit is masked",
        )
        assert re.search("^  w +masked .* its unit is masked$", done("list", "--timeout=20s"), re.MULTILINE)
        assert nannyctl("status", "w").returncode == 3
        failed = nannyctl("start", "w")
        assert failed.returncode == 1
        assert failed.stderr.endswith("w: systemd did not start it: its unit is masked\n")
    finally:
        mask.unlink()
        run_command("systemctl", "daemon-reload")


def test_status_of_several_has_the_exit_status_that_systemctl_has(nannyd: NannydFactory) -> None:
    nannyd(SLEEP, name="up")
    nannyd(SLEEP, name="down").stop()
    for names in (("up",), ("up", "down"), ("down", "none"), ("none", "down"), ("up", "none")):
        units = [f"nannyd@{name}.service" if name != "none" else "nonesuch.service" for name in names]
        theirs = run_command("systemctl", "status", *units, check=False).returncode
        assert nannyctl("status", *names).returncode == theirs, names


def test_one_client_of_root_does_not_shut_out_the_others(nannyd: NannydFactory) -> None:
    nannyd(SLEEP)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            line = stack.enter_context(socket.socket(socket.AF_UNIX))
            line.connect("/run/nannyd/w/control")
        assert listed("w")["state"] == "running"


# What is not running


def test_failed_ones_are_listed_with_their_reason_and_can_be_started_again(nannyd: NannydFactory) -> None:
    broken = nannyd("[memory]\nlimit = 'lots'\n", name="broken", start=False)
    assert broken.start(check=False).returncode != 0
    crashing = nannyd(
        f"[worker]\ncommand = {rude('--die-after-ready', '0')}\n"
        "[restart]\ndelay = 0\ngrowth = 1\nstart-limit-burst = 2\nstart-limit-interval = '1h'\n",
        name="crashing",
        start=False,
    )
    crashing.start(check=False)
    crashing.wait_for("failed")
    assert listed("broken")["reason"] == "the configuration is wrong"
    one = listed("crashing")
    assert (one["state"], one["activeState"]) == ("failed", "failed")
    assert one["reason"].startswith("gave up: the worker was started too often: worker ")
    coloured = run_command("env", "SYSTEMD_COLORS=1", "nannyctl", "list", "--json", "crashing").stdout
    assert json.loads(coloured)[0]["reason"] == one["reason"]
    text = nannyctl("list", "--timeout=20s").stdout
    assert re.search(r"^× broken +failed .* the configuration is wrong, [\w ]+ ago$", text, re.MULTILINE)
    status = nannyctl("status", "crashing")
    assert status.returncode == 3
    assert "Reason: gave up: the worker was started too often" in status.stdout
    why = nannyctl("why", "crashing").stdout
    assert "giving up: 2 starts within 1h" in why
    assert re.search(r"^ +Result: success, by worker$", why, re.MULTILINE)  # from the journal: nannyd is gone
    (told,) = json.loads(nannyctl("why", "crashing", "--json").stdout)
    assert (told["exit"]["generation"], told["exit"]["exitStatus"], told["exit"]["wasReady"]) == (2, 0, True)
    assert told["exit"]["memoryPeak"] > 0

    failed = nannyctl("start", "broken")
    assert failed.returncode == 1
    assert failed.stderr.endswith(
        "broken: systemd did not start it: the configuration is wrong; nannyd check broken says where\n"
    )
    broken.configure(SLEEP)
    assert done("restart", "broken") == ""
    assert broken.show("ActiveState") == "active"


def test_what_was_never_started_is_listed_with_all_only() -> None:
    path = CONFIGURATION / "fallow.toml"
    path.write_text(SLEEP)
    try:
        assert "fallow" not in nannyctl("list").stdout
        assert listed("fallow", "--all")["reason"] == "never started"
    finally:
        path.unlink()
    unknown = nannyctl("start", "fallow")
    assert (unknown.returncode, unknown.stderr) == (1, "there is no instance fallow\n")


def test_hung_one_is_shown_and_its_restart_is_advised(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "WatchdogSec=0")
    instance.kill("SIGSTOP")
    try:
        one = listed("w", "--timeout=2s")
        assert (one["state"], one["processId"]) == ("not answering", instance.main_pid)
        refused = nannyctl("restart", "w")
        assert refused.returncode == 1
        assert refused.stderr == (
            "w: not answering; systemctl restart nannyd@w.service ends it and starts it anew\n"
        )
    finally:
        instance.kill("SIGCONT")


# What is seen of one that runs


def test_status_has_the_memory_and_the_processes_of_the_leaf(nannyd: NannydFactory) -> None:
    instance = nannyd(
        f"[worker]\ncommand = {rude('--eat', '20M', '--double-fork')}\n[memory]\nlimit = '64M'\n"
    )
    worker = instance.worker
    (found,) = json.loads(done("status", "w", "--json"))
    pids = {int(line) for line in (instance.leaf / "cgroup.procs").read_text().split()}
    assert {process["processId"] for process in found["processes"]} == pids
    assert found["status"]["worker"]["processId"] == worker
    wait_until(lambda: listed("w")["memoryWorkingSet"] > 20 * MIB, "20 MiB to be used")
    text = done("status", "w")
    assert text.startswith("● w - nannyd@w.service\n    Active: active (running) since ")
    assert re.search(rf" Processes: ├─{worker} +[\d.]+ MiB ", text)
    assert "; watched by cgroup\n" in text


def test_reload_level_plan_and_metrics(nannyd: NannydFactory) -> None:
    instance = nannyd(LIMITED)
    instance.configure(LIMITED.replace("64M", "96M"))
    assert "memory.limit" in done("reload", "w")
    assert int((instance.leaf / "memory.max").read_text()) == 96 * MIB
    assert done("log-level", "w") == "info\n"
    assert done("log-level", "w", "debug") == ""
    assert done("log-level", "w") == "debug\n"
    assert 'limit = "100663296B"' in done("plan", "w")
    assert "memory.limit" in done("explain", "w")
    assert f'nannyd_memory_limit_bytes{{instance="w"}} {96 * MIB}\n' in done("metrics")


# Users


@pytest.fixture
def operator() -> Iterator[str]:
    """A member of the group nannyd."""
    run_command("usermod", "--append", "--groups=nannyd", "bob")
    yield "bob"
    run_command("gpasswd", "--delete", "bob", "nannyd")


def refused(*words: str, user: str) -> str:
    result = nannyctl(*words, user=user)
    assert (result.returncode, result.stdout) == (1, ""), result
    return result.stderr


def test_others_see_what_systemd_tells_everybody_and_are_told_what_they_lack(nannyd: NannydFactory) -> None:
    instance: Nannyd = nannyd(SLEEP, "User=alice")
    worker = instance.worker
    one = listed("w", user="bob")
    assert (one["state"], one["activeState"], one["processId"]) == ("running", "active", instance.main_pid)
    lacks = "not permitted; needs root or the user alice, or membership in the group nannyd"
    assert one["reason"] == lacks
    status = nannyctl("status", "w", user="bob")
    assert status.returncode == 0
    assert f'Status: "worker {worker} running' in status.stdout
    for verb in ("restart", "kill", "drain", "monitor", "why", "plan", "explain"):
        assert refused(verb, "w", user="bob").startswith("w: not permitted; needs root or the user alice"), (
            verb
        )
    metrics = nannyctl("metrics", "w", user="bob")
    assert (metrics.returncode, metrics.stderr) == (1, f"w: {lacks}\n")
    assert 'nannyd_up{instance="w"} 1.0' in metrics.stdout
    assert instance.worker == worker
    assert done("restart", "w", user="alice") == ""
    assert instance.worker != worker


def test_operators_may_look_and_restart_but_not_stop(nannyd: NannydFactory, operator: str) -> None:
    instance = nannyd(SLEEP)
    worker = instance.worker
    assert listed("w", user=operator)["workerProcessId"] == worker
    assert done("restart", "w", user=operator) == ""
    assert instance.worker != worker
    assert done("kill", "w", "--timeout=0", "--reason=me", user=operator) == ""
    assert "not permitted; needs " in refused("drain", "w", user=operator)
    assert "w: systemd did not stop it" in refused("stop", "w", user=operator)
    assert instance.show("ActiveState") == "active"
    instance.stop()
    assert refused("start", "w", user=operator).endswith("\nw: systemd did not start it\n")
    assert refused("log-level", "w", user=operator).startswith("w: it does not run (")


def test_what_a_user_runs_in_the_foreground_is_found_and_stopped(unit: UnitFactory) -> None:
    """No systemd runs it as an instance; its directory is one in /tmp."""
    runs = unit("fg.service", "[Service]\nUser=bob\nExecStart=/usr/bin/nannyd run fg -- sleep infinity\n")
    wait_until(lambda: nannyctl("status", "fg", user="bob").returncode == 0, "fg to run")
    one = listed("fg", user="bob")
    assert (one["scope"], one["unit"], one["processId"]) == ("user", None, runs.main_pid)
    assert "fg" not in done("list", user="alice")
    worker = one["workerProcessId"]
    assert done("restart", "fg", user="bob") == ""
    assert listed("fg", user="bob")["workerProcessId"] != worker
    assert done("stop", "fg", user="bob") == ""
    runs.wait_for("inactive")
    assert runs.show("Result") == "success"
    gone = nannyctl("restart", "fg", user="bob")
    assert (gone.returncode, gone.stderr) == (1, "there is no instance fg\n")


def test_a_user_has_instances_of_her_own_beside_those_of_the_system(
    nannyd: NannydFactory, her_home: Path
) -> None:
    nannyd(SLEEP, name="both")
    for name in ("own", "both"):
        (her_home / f"{name}.toml").write_text(SLEEP)
    assert listed("own", "--all", user="alice")["reason"] == "never started"
    assert done("start", "own", user="alice") == ""
    one = listed("own", user="alice")
    assert (one["scope"], one["unit"], one["state"]) == ("user", "nannyd@own.service", "running")
    theirs, hers = json.loads(done("list", "--json", "both", user="alice"))
    assert (theirs["scope"], theirs["state"]) == ("system", "running")
    assert (hers["scope"], hers["state"]) == ("user", "inactive")
    assert done("start", "both", "--user", user="alice") == ""
    assert done("restart", "own", "both", user="alice") == ""
    assert not re.search("^. own ", done("list", "--timeout=20s"), re.MULTILINE)

    assert done("stop", "own", "both", user="alice") == ""
    state = run_command(*as_user("alice"), "systemctl", "--user", "is-active", "nannyd@own", check=False)
    assert state.stdout == "inactive\n"
    assert listed("own", user="alice")["state"] == "inactive"
