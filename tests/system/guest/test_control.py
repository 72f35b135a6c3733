"""The control socket, as systemd's own varlinkctl sees it, and as other users do."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .instances import PATIENCE, run_command, shell, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from .instances import Nannyd, NannydFactory

SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n[restart]\ndelay = 0\n"
SOCKET = "/run/nannyd/w/control"
NANNY = "io.nannyd.Nanny"

LOOK = ("Status", "Why", "History", "Plan", "Explain", "GetLogs")
OPERATE = ("Restart", "Kill", "Instantiate")
ALL = ("LogEvent", "Reload", "CloseGracefully")
PARAMETERS = {"LogEvent": {"topic": "t", "message": "m"}, "Kill": {"timeout": 0}}


def varlinkctl(
    *arguments: str, by: tuple[str, ...] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    return run_command(*by, "varlinkctl", *arguments, check=check)


def call(method: str, *, by: tuple[str, ...] = (), socket: str = SOCKET, **parameters: Any) -> dict[str, Any]:
    name = method if "." in method else f"{NANNY}.{method}"
    done = varlinkctl("call", "--json=short", socket, name, json.dumps(parameters), by=by)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def refused(method: str, *, by: tuple[str, ...] = (), socket: str = SOCKET) -> str:
    """Return what varlinkctl says of a call that fails; empty if it does not."""
    parameters = json.dumps(PARAMETERS.get(method, {}))
    done = varlinkctl("call", "--json=short", socket, f"{NANNY}.{method}", parameters, by=by, check=False)
    return done.stderr if done.returncode != 0 else ""


# varlinkctl


def test_varlinkctl_reads_the_interfaces_and_finds_them_valid(nannyd: NannydFactory, tmp_path: Path) -> None:
    nannyd(SLEEP)
    info = varlinkctl("info", SOCKET).stdout
    assert "nannyd@w" in info
    for interface in (NANNY, "io.systemd.service", "org.varlink.service"):
        assert interface in info
        described = varlinkctl("introspect", "--json=short", SOCKET, interface).stdout
        text = json.loads(described)["description"] if described.startswith("{") else described
        file = tmp_path / "interface.varlink"
        file.write_text(text)
        assert varlinkctl("validate-idl", str(file)).returncode == 0
        assert f"interface {interface}" in text


def test_varlinkctl_calls_and_is_answered(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    status = call("Status")
    assert (status["state"], status["unit"]) == ("running", instance.name)
    assert status["processId"] == instance.main_pid
    assert status["memory"]["mode"] == "cgroup"
    assert status["memory"]["peak"] > 0
    assert status["worker"]["controlGroup"].endswith("/worker-1")
    before = status["worker"]["processId"]
    assert call("Restart", reason="a test")["processId"] == instance.worker != before
    assert call("Why")["exit"]["detail"] == "Restart: a test"
    assert call("io.systemd.service.Ping") == {}
    assert (
        "InvalidParameter"
        in varlinkctl("call", SOCKET, f"{NANNY}.Kill", '{"nonsense": 1}', check=False).stderr
    )


def test_varlinkctl_follows_what_happens(nannyd: NannydFactory, tmp_path: Path) -> None:
    instance = nannyd(SLEEP)
    heard = tmp_path / "heard"
    with heard.open("w") as file:
        follower = subprocess.Popen(
            ["varlinkctl", "call", "--more", "--json=short", SOCKET, f"{NANNY}.Monitor", "{}"], stdout=file
        )

    def events() -> list[str]:
        answers = heard.read_text().replace("\x1e", "").split("\n")  # a JSON text sequence (RFC 7464)
        return [json.loads(answer)["event"]["event"] for answer in answers if answer]

    wait_until(lambda: events() == ["monitoring"], "the first answer")
    run_command("kill", "-KILL", str(instance.worker))
    wait_until(lambda: events()[1:] == ["worker-failed", "worker-started", "worker-ready"], "what happened")
    instance.stop()
    assert follower.wait(PATIENCE) == 0
    assert events()[-1] == "finished"


# Rights


STRANGER = ("runuser", "-u", "bob", "--")
OPERATOR = ("runuser", "-u", "bob", "-G", "nannyd", "--")
OWN_USER = ("runuser", "-u", "_nannyd", "--")


def test_a_stranger_is_refused_in_words_and_may_only_ask_what_is_served(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    worker = instance.worker
    assert NANNY in varlinkctl("info", SOCKET, by=STRANGER).stdout
    for method in (*LOOK, *OPERATE, *ALL, "Terminate"):
        assert "NotPermitted" in refused(method, by=STRANGER), method
    done = varlinkctl("call", SOCKET, f"{NANNY}.Status", "{}", by=STRANGER, check=False)
    assert "root or the user _nannyd, or membership in the group nannyd" in done.stdout + done.stderr
    denied = varlinkctl("call", SOCKET, "io.systemd.service.GetEnvironment", "{}", by=STRANGER, check=False)
    assert "PermissionDenied" in denied.stderr or "denied" in denied.stderr
    assert instance.worker == worker


def test_members_of_the_group_look_restart_kill_and_read_the_log(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    worker = instance.worker
    for method in (*LOOK, *OPERATE):
        assert refused(method, by=OPERATOR) == "", method
    for method in (*ALL, "Terminate"):
        assert "NotPermitted" in refused(method, by=OPERATOR), method
    assert instance.worker != worker
    called = instance.wait_for_event("called")
    assert called["PEER_UID"] == run_command("id", "-u", "bob").stdout.strip()


def test_the_daemons_user_and_root_may_do_all(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    for by in (OWN_USER, ()):
        for method in (*LOOK, *OPERATE, "LogEvent", "Reload"):
            assert refused(method, by=by) == "", method
    assert refused("Terminate", by=OWN_USER) == ""
    instance.wait_for("inactive")
    assert instance.show("Result") == "success"


@pytest.mark.parametrize(
    ("name", "user"),
    [("w", "_nannyd"), ("w", "root"), ("w", "alice"), ("w", "hidden"), ("x", "_nannyd"), ("x", "hidden")],
)
def test_a_worker_may_only_look(nannyd: NannydFactory, name: str, user: str) -> None:
    """At its own instance, or at another one."""
    settings, program = f"User={user}\n", "varlinkctl"
    if user == "alice":
        settings += "SupplementaryGroups=nannyd\n"
    if user == "hidden":  # by /proc, from nannyd: who executes what it cannot read may not be looked at
        settings, program = "ProtectProc=invisible\n", "/usr/local/bin/unreadable"
        run_command("install", "--mode=711", "/usr/bin/varlinkctl", program)
    script = f"""
        for method in Status Restart Kill Terminate Reload LogEvent; do
            if {program} call {SOCKET} {NANNY}.$method '{{}}' > answer 2>&1
            then echo $method may
            elif grep -q -e NotPermitted answer; then echo $method may not
            else echo $method; cat answer; fi
        done > $STATE_DIRECTORY/answers
        exec sleep infinity
    """
    if name != "w":
        nannyd(SLEEP, settings)
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\n", settings, name=name)
    answers = instance.state / "answers"
    wait_until(lambda: answers.exists() and len(answers.read_text().splitlines()) >= 6, "the answers")
    assert answers.read_text().splitlines() == [
        "Status may",
        *(f"{method} may not" for method in ("Restart", "Kill", "Terminate", "Reload", "LogEvent")),
    ]


def test_another_users_instance_cannot_be_reached(nannyd: NannydFactory) -> None:
    nannyd(SLEEP, "User=alice\nGroup=alice", name="hers")
    socket = "/run/nannyd/hers/control"
    for method in (*LOOK, *OPERATE, *ALL):
        assert "NotPermitted" in refused(method, by=STRANGER, socket=socket)
    assert call("Status", by=("runuser", "-u", "alice", "--"), socket=socket)["state"] == "running"


def test_drain_ends_with_the_worker_and_systemd_does_not_start_it_again(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    assert refused("CloseGracefully") == ""
    wait_until(lambda: "not to be restarted" in instance.status, "the status sentence")
    run_command("kill", "-KILL", str(instance.worker))
    instance.wait_for("inactive")
    assert (instance.show("Result"), instance.show("NRestarts")) == ("success", "0")


@pytest.mark.parametrize("method", ["CloseGracefully", "Terminate", "success"])
def test_a_clean_end_before_the_first_worker_is_ready_is_one_for_systemd_too(
    nannyd: NannydFactory, method: str
) -> None:
    policy = "ready = 'notify'\n[restart]\nmode = 'on-failure'\n"
    instance = nannyd(
        f"[worker]\ncommand = {shell('read line < $STATE_DIRECTORY/end')}\n{policy}", start=False
    )
    instance.state.mkdir(parents=True, exist_ok=True)
    os.mkfifo(instance.state / "end", 0o666)
    (instance.state / "end").chmod(0o666)
    run_command("systemctl", "start", "--no-block", instance.name)
    wait_until(lambda: "starting" in instance.status, "the start of a worker")
    assert instance.show("ActiveState") == "activating"
    if method != "success":
        assert refused(method) == ""
    if method != "Terminate":
        (instance.state / "end").write_text("\n")
    instance.wait_for("inactive")
    assert (instance.show("Result"), instance.show("NRestarts")) == ("success", "0")


def test_the_log_level_is_systemds_to_set(nannyd: NannydFactory) -> None:
    nannyd(SLEEP)
    call("io.systemd.service.SetLogLevel", level=3)
    assert call("Status")["logLevel"] == 3


def leaves(instance: Nannyd) -> list[str]:
    return sorted(path.name for path in instance.cgroup.glob("*/"))


def test_kill_leaves_nothing_of_the_life_that_is_over(nannyd: NannydFactory) -> None:
    instance = nannyd(f"[worker]\ncommand = {shell('sleep 99 & setsid sleep 99 & sleep 99')}\n")
    assert leaves(instance) == ["supervisor", "worker-1"]
    exit_ = call("Kill", timeout=0)["exit"]
    assert (exit_["result"], exit_["who"]) == ("signal", "nannyd")
    wait_until(lambda: leaves(instance) == ["supervisor", "worker-2"], "the second life alone")
