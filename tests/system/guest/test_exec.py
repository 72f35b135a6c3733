"""Commands of operators beside a worker, in a leaf of their own: what it holds, and who may."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .instances import PATIENCE, run_command, shell, wait_until

if TYPE_CHECKING:
    from .instances import Nannyd, NannydFactory

SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n[restart]\ndelay = 0\n"
SOCKET = "/run/nannyd/w/control"


def leaves(instance: Nannyd) -> list[str]:
    return sorted(path.name for path in instance.cgroup.glob("*/"))


def execute(*command: str, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return run_command(*by, "nannyctl", "exec", "w", "--", *command, check=False)


def begin(*command: str) -> subprocess.Popen[str]:
    """Begin a command, and return when it has said that it is ready."""
    client = subprocess.Popen(
        ["nannyctl", "exec", "w", "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    return client


def end(client: subprocess.Popen[str]) -> int:
    client.communicate(timeout=PATIENCE)
    return client.returncode


def test_it_runs_as_the_workers_user_in_a_leaf_of_its_own(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    done = execute(
        "sh", "-c", "id -un; pwd; cat /proc/self/cgroup; echo $NANNYD_INSTANCE; echo wrong >&2; exit 4"
    )
    user, _, cgroup, name = done.stdout.splitlines()
    assert (user, name, done.stderr, done.returncode) == ("_nannyd", "w", "wrong\n", 4)
    assert cgroup == f"0::{instance.show('ControlGroup')}/run-1"
    assert leaves(instance) == ["supervisor", "worker-1"]


def test_all_of_the_leaf_is_killed_at_the_end(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    script = (
        "(setsid sleep 2001 &) & env -i setsid -f sleep 2002; trap '' TERM; sleep 2003 & echo ready; read end"
    )
    client = begin("sh", "-c", script)
    assert leaves(instance) == ["run-1", "supervisor", "worker-1"]
    pids = (instance.cgroup / "run-1/cgroup.procs").read_text().split()
    assert len(pids) == 4
    assert end(client) == 1, "what read(1) says at the end of its input"
    assert leaves(instance) == ["supervisor", "worker-1"], "the answer comes when nobody is left"
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert instance.worker
    assert instance.events("worker-ended") + instance.events("worker-failed") == []


def test_all_of_the_leaf_is_killed_when_the_caller_is(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    client = begin(
        "sh", "-c", "setsid -f env -i sleep 2001; trap '' TERM HUP; echo ready; sleep 2002; sleep 2003"
    )
    client.kill()
    end(client)
    wait_until(lambda: leaves(instance) == ["supervisor", "worker-1"], "the end of the leaf")
    assert execute("true").returncode == 0


def test_what_a_crashed_nannyd_has_left_is_ended_at_the_next_start(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "Restart=on-failure\nRestartSec=0\n")
    client = begin("sh", "-c", "echo ready; sleep 2001; :")
    (pid, *_) = (instance.cgroup / "run-1/cgroup.procs").read_text().split()
    before = instance.main_pid
    instance.kill()
    assert end(client) == 125
    wait_until(
        lambda: instance.main_pid not in (0, before) and instance.show("ActiveState") == "active", "a restart"
    )
    assert not Path(f"/proc/{pid}").exists()
    assert not [leaf for leaf in leaves(instance) if leaf.startswith("run-")]


def test_a_stop_ends_it(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    client = begin("sh", "-c", "trap '' TERM; echo ready; sleep 2001; :")
    instance.stop()
    assert end(client) == 137
    assert instance.show("Result") == "success"


def test_its_memory_is_not_the_workers(nannyd: NannydFactory) -> None:
    instance = nannyd(f"{SLEEP}[memory]\nlimit = '40M'\n")
    eat = "eaten = b'x' * (80 << 20); print('ready', flush=True); input()"
    client = begin("/usr/bin/python3", "-c", eat)
    status = json.loads(run_command("nannyctl", "status", "--json", "w").stdout)[0]["status"]
    assert status["memory"]["workingSet"] < 40 << 20
    current = int((instance.cgroup / "run-1/memory.current").read_text())
    assert current > 80 << 20
    end(client)
    assert instance.events("memory-warning") + instance.events("memory-terminate") == []
    assert leaves(instance) == ["supervisor", "worker-1"]


def test_where_memory_runs_out_it_goes_and_the_worker_stays(nannyd: NannydFactory) -> None:
    instance = nannyd(f"{SLEEP}[memory]\nlimit = 'none'\n", "MemoryMax=80M\nMemorySwapMax=0\n")
    worker = instance.worker
    done = execute("/usr/bin/python3", "-c", "b'x' * (200 << 20)")
    assert done.returncode == 137
    assert instance.worker == worker
    assert instance.show("ActiveState") == "active"


def test_only_root_and_the_daemons_user_may(nannyd: NannydFactory) -> None:
    nannyd(SLEEP)
    assert execute("true", by=("runuser", "-u", "_nannyd", "--")).returncode == 0
    for by in (("runuser", "-u", "bob", "-G", "nannyd", "--"), ("runuser", "-u", "bob", "--")):
        done = execute("true", by=by)
        assert done.returncode == 125, done
        assert (
            "not permitted; needs root or the user _nannyd, from outside the worker" in done.stderr
            or by[-2] == "bob"
        )


def test_the_worker_may_not(nannyd: NannydFactory) -> None:
    script = "cd $STATE_DIRECTORY; nannyctl exec w -- true > said 2>&1; echo $? > status; sleep infinity"
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\n")
    status = instance.state / "status"
    wait_until(lambda: status.exists() and status.read_text(), "its attempt")
    assert status.read_text() == "125\n"
    assert (
        "not permitted; needs root or the user _nannyd, from outside the worker"
        in (instance.state / "said").read_text()
    )


def test_a_terminal_is_the_commands_though_it_was_roots(nannyd: NannydFactory) -> None:
    nannyd(SLEEP)
    inner = (
        "nannyctl exec w -- sh -c 'tty; exec 3<>$(tty) && echo opened; ps -o tpgid= -p $$; echo $$; id -un'"
    )
    done = run_command("script", "--quiet", "--return", "--command", inner, "/dev/null")
    terminal, opened, foreground, pid, user = done.stdout.replace("^@", "").replace("\b", "").split()
    assert re.fullmatch(r"/dev/pts/\d+", terminal)
    assert (opened, user) == ("opened", "_nannyd")
    assert foreground == pid


def test_varlinkctl_can_do_it_too(nannyd: NannydFactory, tmp_path: Path) -> None:
    nannyd(SLEEP)
    if "--push-fd" not in run_command("varlinkctl", "--help").stdout:
        return
    taken = tmp_path / "taken"
    call = f"varlinkctl call --json=short --push-fd=0 --push-fd=1 --push-fd=2 {SOCKET} io.nannyd.Nanny.Run"
    parameters = json.dumps({"command": ["sh", "-c", "cat >&2; exit 3"]})
    with taken.open("w") as errors:
        done = subprocess.run(
            ["sh", "-c", f"echo given | {call} '{parameters}'"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    assert json.loads(done.stdout)["exitStatus"] == 3
    assert taken.read_text() == "given\n"
