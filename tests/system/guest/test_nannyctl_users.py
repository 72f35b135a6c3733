"""`nannyctl` of root: the instances of all users, who may be hostile."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .instances import Unit, as_user, run_command, wait_until
from .test_nannyctl import SLEEP, done, listed, nannyctl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .instances import NannydFactory, UnitFactory

ALICE, BOB = "alice", "bob"


def found(*words: str) -> dict[str, dict[str, Any]]:
    """Return the whole list by name, with time enough for every service manager to answer."""
    return {one["name"]: one for one in json.loads(done("list", "--json", "--timeout=20s", *words))}


@pytest.fixture
def foreground(unit: UnitFactory) -> Callable[..., Unit]:
    """Run an instance as bob in the foreground: its directory is one in /tmp."""

    def run(name: str, command: str = "sleep infinity") -> Unit:
        run = f"/usr/bin/nannyd run {name} -- {command}"
        made = unit(f"{name}.service", f"[Service]\nUser=bob\nExecStart={run}\n")
        wait_until(lambda: nannyctl("status", name, user=BOB).returncode == 0, f"{name} to run")
        return made

    return run


def test_root_sees_and_steers_the_instances_of_all(
    nannyd: NannydFactory, her_home: Path, foreground: Callable[..., Unit]
) -> None:
    nannyd(SLEEP)
    (her_home / "own.toml").write_text(SLEEP)
    done("start", "own", user=ALICE)
    runs = foreground("fg")
    some = found()
    assert {"w", "alice/own", "bob/fg"} <= some.keys()
    assert (some["alice/own"]["scope"], some["alice/own"]["user"], some["w"]["user"]) == ("user", ALICE, None)
    assert some["bob/fg"]["processId"] == runs.main_pid
    text = done("list", "--timeout=20s")
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["w", "alice/own", "bob/fg"]

    for name in ("alice/own", "bob/fg"):
        worker = some[name]["workerProcessId"]
        assert f"● {name}" in done("status", name)
        assert done("restart", name) == ""
        assert found(name)[name]["workerProcessId"] != worker
        assert "Result: success" in done("why", name)
        assert 'command = ["' in done("plan", name)
        assert "worker.command" in done("explain", name)
        assert done("log-level", name) == "info\n"
        assert done("reload", name) == f"{name}: nothing changed\n"
        assert f'instance="{name}"' in done("metrics", name)
        assert done("exec", name, "--", "id", "-un") == name.partition("/")[0] + "\n"
        assert done("kill", name) == ""

    # As in a path, a pattern does not mean what lies deeper.
    wait_until(lambda: all(one["workerProcessId"] for one in found().values()), "the next workers")
    workers = {name: one["workerProcessId"] for name, one in found().items()}
    done("restart", "*")
    assert {name for name, one in found().items() if one["workerProcessId"] != workers[name]} == {"w"}
    assert found("alice/*").keys() == {"alice/own"}
    assert {"alice/own", "bob/fg"} <= found("*/*").keys()
    uid = pwd.getpwnam(ALICE).pw_uid
    assert found(f"{uid}/own").keys() == {"alice/own"}
    assert "own" in done("status", "alice/own", user=ALICE)
    refused = nannyctl("status", "alice/own", user=BOB)
    assert refused.returncode == 4
    assert (
        refused.stderr == "there is no instance alice/own that you may see; root sees those of other users\n"
    )

    done("drain", "bob/fg")
    assert found("bob/fg")["bob/fg"]["state"] == "draining"
    done("kill", "bob/fg")
    runs.wait_for("inactive")
    done("stop", "alice/own")
    assert (found()["alice/own"]["state"], found()["alice/own"]["reason"]) == ("inactive", "stopped")


def test_systemds_jobs_for_another_user_are_her_managers(her_home: Path) -> None:
    (her_home / "own.toml").write_text(SLEEP)
    assert found("--all")["alice/own"]["reason"] == "never started"
    assert done("start", "alice/own") == ""
    active = (*as_user(ALICE), "systemctl", "--user", "is-active", "nannyd@own")
    assert run_command(*active).stdout == "active\n"
    assert "Started nannyd@own.service" in done("logs", "alice/own")
    assert done("stop", "alice/own") == ""
    assert run_command(*active, check=False).stdout == "inactive\n"
    assert nannyctl("status", "alice/own").returncode == 3

    (her_home / "broken.toml").write_text("[memory]\nlimit = 'lots'\n")
    failed = nannyctl("start", "alice/broken")
    assert failed.returncode == 1
    assert failed.stderr.endswith("alice/broken: systemd did not start it: the configuration is wrong\n")
    one = found()["alice/broken"]
    assert (one["state"], one["reason"]) == ("failed", "the configuration is wrong")
    units = her_home.parent / "systemd/user"
    units.mkdir(parents=True)
    (units / "nannyd@veiled.service").symlink_to("/dev/null")
    one = found()["alice/veiled"]
    assert (one["state"], one["reason"]) == ("masked", "its unit is masked")
    plan = nannyctl("plan", "alice/broken")
    assert (plan.returncode, plan.stderr) == (
        1,
        "alice/broken: it does not run; what would be in force, alice can ask\n",
    )


def test_variables_of_somebody_else_do_no_harm(her_home: Path, foreground: Callable[..., Unit]) -> None:
    """As after su(1), which leaves XDG_RUNTIME_DIR, and runuser(1), which leaves HOME."""
    (her_home / "own.toml").write_text(SLEEP)
    done("start", "alice/own")
    foreground("fg")
    alice = pwd.getpwnam(ALICE)
    Path(alice.pw_dir).chmod(0o700)
    hers = ("env", f"HOME={alice.pw_dir}", f"XDG_RUNTIME_DIR=/run/user/{alice.pw_uid}")
    root = run_command(*hers, "nannyctl", "list", "--json", "--timeout=20s").stdout
    assert {"alice/own", "bob/fg"} <= {one["name"] for one in json.loads(root)}
    bob = run_command("runuser", "-u", BOB, "--", *hers, "nannyctl", "list", "--json", "--timeout=20s").stdout
    (one,) = [one for one in json.loads(bob) if one["scope"] == "user"]
    assert (one["name"], one["state"]) == ("fg", "running")
    for variable in ("--unset=XDG_RUNTIME_DIR", "XDG_RUNTIME_DIR=/run/user/0"):
        alone = ("runuser", "-u", ALICE, "--", "env", f"HOME={alice.pw_dir}", variable, "nannyctl")
        (one,) = json.loads(run_command(*alone, "list", "--json", "--timeout=20s").stdout)
        assert (one["name"], one["state"], one["unit"]) == ("own", "running", "nannyd@own.service")
        run_command(*alone, "stop", "own")
        assert found()["alice/own"]["state"] == "inactive"
        run_command(*alone, "start", "own")
    done("stop", "alice/own")


def test_a_service_manager_that_hangs_is_not_waited_for(nannyd: NannydFactory, her_home: Path) -> None:
    nannyd(SLEEP)
    (her_home / "own.toml").write_text(SLEEP)
    done("start", "alice/own")
    manager = Unit(f"user@{pwd.getpwnam(ALICE).pw_uid}.service")
    manager.kill("SIGSTOP")
    try:
        before = time.monotonic()
        listing = nannyctl("list", "--timeout=10s")
        assert time.monotonic() - before < 20, "systemctl waits for 25 seconds"
        assert re.search("^  alice/own +running", listing.stdout, re.MULTILINE)
        said = "the service manager of alice does not answer: what does not run there is not known\n"
        assert (listing.returncode, listing.stderr) == (0, said)
        assert nannyctl("list", "w").stderr == "", "it cannot have one of hers"
    finally:
        manager.kill("SIGCONT")
    done("stop", "alice/own")


# Hostile ones

HOSTILE = """
import json, os, socket, sys, time
kind, place = sys.argv[1:]
os.umask(0o077)
os.makedirs(place, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(place + "/control")
listener.listen(8)
print("listening", flush=True)
kept = []
while True:
    peer, _ = listener.accept()
    kept.append(peer)
    try:
        if kind == "endless":
            while True:
                peer.sendall(b" " * 65536)
        elif kind == "drip":
            while True:
                peer.sendall(b" ")
                time.sleep(0.01)
        elif kind == "escape":
            peer.sendall(json.dumps({"error": "a\\x1b[31m\\u009b2J", "parameters": {}}).encode() + b"\\0")
    except OSError:
        pass
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Let bob listen where an instance of his would, in a way of his own."""
    running: list[subprocess.Popen[bytes]] = []
    base = Path(f"/tmp/nannyd-{pwd.getpwnam(BOB).pw_uid}")
    run_command("runuser", "-u", BOB, "--", "mkdir", "--parents", "--mode=700", str(base))

    def start(kind: str, name: str) -> None:
        command = ["runuser", "-u", BOB, "--", "python3", "-I", "-c", HOSTILE, kind, f"{base}/{name}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"

    yield start
    for process in running:
        with process:
            os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(base)


def test_hostile_sockets_do_no_harm(nannyd: NannydFactory, hostile: Callable[[str, str], None]) -> None:
    nannyd(SLEEP)
    for kind in ("silent", "endless", "drip", "escape"):
        hostile(kind, kind)
    text = done("list", "--timeout=3s")
    assert "\x1b" not in text
    assert "\x9b" not in text
    some = {one["name"]: one for one in json.loads(done("list", "--json", "--timeout=3s"))}
    assert some["w"]["state"] == "running"
    reasons = {name: one["reason"] for name, one in some.items()}
    assert reasons["bob/silent"] == reasons["bob/drip"] == "not answering"
    assert reasons["bob/endless"] == "its reply is longer than 64 KiB"
    assert reasons["bob/escape"].startswith("a")
    for verb in ("status", "why", "kill", "restart", "logs", "metrics", "plan", "monitor", "exec"):
        words = ("--", "id") if verb == "exec" else ()
        result = nannyctl(verb, "bob/escape", *words)
        # Who refuses is there, for status.
        assert result.returncode in ((0,) if verb == "status" else (1, 125)), (verb, result)
        assert not {"\x1b", "\x9b"} & set(result.stdout + result.stderr)


def test_links_lead_root_nowhere(nannyd: NannydFactory, unit: UnitFactory) -> None:
    """Who could have root's client act on what is not his would use it against others."""
    instance = nannyd(SLEEP)
    worker = instance.worker
    bob = pwd.getpwnam(BOB)
    base = Path(f"/tmp/nannyd-{bob.pw_uid}")
    shutil.rmtree(base, ignore_errors=True)
    made = (
        f"mkdir -m 700 {base} {base}/socket && ln -s /run/nannyd/w {base}/directory"
        f" && ln -s /run/nannyd/w/control {base}/socket/control"
    )
    run_command("runuser", "-u", BOB, "--", "sh", "-c", made)
    try:
        some = found()
        assert {some[f"bob/{name}"]["workerProcessId"] for name in ("directory", "socket")} == {None}
        for name in ("directory", "socket"):
            for verb in ("kill", "restart", "drain"):
                assert nannyctl(verb, f"bob/{name}").returncode == 1
            done("stop", f"bob/{name}")
        assert instance.worker == worker
        assert listed("w")["state"] == "running"
        shutil.rmtree(base)
        base.symlink_to("/run/nannyd")
        assert "bob/w" not in found()
        base.unlink()
        base.mkdir(mode=0o777)
        assert not [name for name in found() if name.startswith("bob/")]
    finally:
        if base.is_symlink():
            base.unlink()
        shutil.rmtree(base, ignore_errors=True)


def test_a_program_run_as_another_user_has_nothing_of_roots(her_home: Path, tmp_path: Path) -> None:
    """Her systemctl could be anything: she may trace it."""
    (her_home / "own.toml").write_text(SLEEP)
    told = Path("/tmp/told")
    fake = Path("/usr/local/bin/systemctl")
    fake.write_text(
        "#!/bin/sh\n"
        '[ "$(id -un)" = alice ] || exec /usr/bin/systemctl "$@"\n'
        f"{{ env; id -un; id -Gn; ls -l /proc/$$/fd; ps -o tty= -p $$; }} > {told} 2>&1\n"
        'exec /usr/bin/systemctl "$@"\n'
    )
    fake.chmod(0o755)
    told.touch()
    told.chmod(0o666)
    try:
        environ = ("env", "SECRET_OF_ROOT=x")
        run_command(
            *environ, "script", "--quiet", "--command", "nannyctl list --all --timeout=20s", "/dev/null"
        )
        text = told.read_text()
    finally:
        fake.unlink()
        told.unlink()
    assert "SECRET_OF_ROOT" not in text
    lines = text.splitlines()
    assert lines[-1].strip() == "?"
    assert lines.count("alice") == 2, "user and groups"
    assert not [line for line in lines if "/dev/pts" in line]
