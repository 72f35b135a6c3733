"""What the supervisor has in memory, and that all of it is there before READY=1.

The supervisor runs isolated (`-I`), so no variable can make its interpreter tell what it imports.  But a
virtual environment's .pth files are read: one of them installs an audit hook (PEP 578), which sees every
import of every process of the instance, the real supervisor's among them.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import RUDE, Host, Message, Nannyd, descriptors_of, environ_of, eventually, send_signal

import nannyd as package

HOOK = """
import os, sys, time
directory = os.environ.get("AUDIT_DIRECTORY")
if directory:
    file = os.open(f"{directory}/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    def tell(line):
        os.write(file, f"{time.monotonic()} {line}\\n".encode())
    tell("executed " + " ".join(sys.orig_argv))
    def hook(event, arguments):
        if event == "import":
            tell(f"import {arguments[0]}")
    sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has what this one has, and tells what it imports."""
    venv = tmp_path_factory.mktemp("audited")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next(venv.glob("lib/python3*/site-packages"))
    (site / "audited.py").write_text(HOOK)
    paths = [str(Path(package.__file__).parent.parent), str(Path(psutil.__file__).parent.parent)]
    (site / "audited.pth").write_text("\n".join([*paths, "import audited"]) + "\n")
    return str(venv / "bin" / "python")


def imports_of(directory: Path, pid: int) -> dict[str, float]:
    """Return the modules that the supervisor asked for, and when first."""
    told = [line.split(" ", 2) for line in (directory / str(pid)).read_text().splitlines()]
    last = max(index for index, (_, kind, _) in enumerate(told) if kind == "executed")
    assert "nannyd.supervisor" in told[last][2]  # not the launcher's, which was here before
    found: dict[str, float] = {}
    for when, _, name in told[last + 1 :]:
        found.setdefault(name, float(when))
    return found


CONFIG = """
[worker]
ready = "notify"
stop-timeout = "1s"
[memory]
mode = "poll"
limit = "100M"
[restart]
delay = 0
start-limit-burst = 0
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_module_is_first_imported_after_ready(nannyd: Host, python: str, log_format: str) -> None:
    directory = nannyd.home.base / "imports"
    directory.mkdir()
    rude, once = shlex.join(RUDE), nannyd.home.base / "once"
    vices = "--ignore-sigterm --fork-and-leave 2 --double-fork --notify-bogus"
    script = f"[ -e {once} ] && exec {rude} {vices}; : > {once}; exec {rude} {vices} --leak 80M"
    run = nannyd(
        "--", "sh", "-c", script, config=CONFIG, python=python, systemd=True, log_format=log_format,
        environ={"AUDIT_DIRECTORY": str(directory), "WATCHDOG_USEC": "1000000"},
    )  # fmt: skip
    ready = run.systemd.wait_for("READY", "1")
    # As much of what can happen as there is: memory, a stop that escalates, a stranger, a fault, reloads
    # that work and that do not, a spawn by the helper, a spawn that fails, and the end.
    run.systemd.wait_for("STATUS", "being killed (memory.")
    pid = _worker_of(run.systemd.wait_for("STATUS", "running", after=_now(run)))
    nannyd.write_config("[worker]\nnice = 99")
    assert run.reload().returncode == 78
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", environ_of(pid)["NOTIFY_SOCKET"])
    nannyd.write_config(CONFIG.replace("[worker]", "[worker]\nnice = 5").replace("100M", "4G"))
    assert run.reload().returncode == 0
    said = len(run.systemd.messages)
    send_signal(pid, signal.SIGSEGV)
    pid = _worker_of(run.systemd.wait_for("STATUS", "running", after=said))
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    lost = CONFIG.replace("[worker]", '[worker]\nworking-directory = "/no/such/place"')
    nannyd.write_config(lost.replace("delay = 0", "delay = 0.1"))
    assert run.reload().returncode == 0
    send_signal(pid, signal.SIGKILL)
    run.systemd.wait_for("STATUS", "/no/such/place")
    late = {name: when - ready.at for name, when in imports_of(directory, run.pid).items() if when > ready.at}
    assert late == {}
    assert run.stop() == 0
    late = {name: when - ready.at for name, when in imports_of(directory, run.pid).items() if when > ready.at}
    assert late == {}


def _now(run: Nannyd) -> int:
    """Return how much systemd was told up to the kill of the last worker."""
    said = [str(message.fields.get("STATUS")) for message in run.systemd.messages]
    return max((index for index, status in enumerate(said) if "being killed" in status), default=0)


def _worker_of(message: Message) -> int:
    """Return the pid in `worker 4242 running, …`."""
    return int(message.fields["STATUS"].split()[1])


def test_the_supervisor_has_neither_pydantic_nor_ssl(nannyd: Host, python: str) -> None:
    directory = nannyd.home.base / "imports"
    directory.mkdir()
    environ: dict[str, str | None] = {"AUDIT_DIRECTORY": str(directory)}
    run = nannyd("--memory.limit=400M", "--", "sleep", "60", python=python, systemd=True, environ=environ)
    run.ready()
    imported = imports_of(directory, run.pid)
    assert "asyncio" in imported
    assert not {name for name in imported if name.split(".")[0] in ("pydantic", "pydantic_core", "_ssl")}
    assert not {name for name in imported if name.startswith(("nannyd.config", "nannyd.worker"))}
    mapped = Path(f"/proc/{run.pid}/maps").read_text()
    assert "_ssl." not in mapped
    assert "pydantic" not in mapped
    assert run.stop() == 0


def test_the_supervisor_is_isolated_from_variables_and_working_directory(nannyd: Host) -> None:
    for name in ("asyncio.py", "json.py", "nannyd.py"):
        (nannyd.home.base / name).write_text("raise SystemExit('the wrong one')")
    # (The launcher is not: whoever starts nannyd may choose with what.)
    run = nannyd("--", "sleep", "60", environ={"PYTHONDEVMODE": "1"}, working_directory=nannyd.home.tmp)
    run.ready()
    command = Path(f"/proc/{run.pid}/cmdline").read_bytes().split(b"\0")
    assert command[1] == b"-I"
    assert run.stop() == 0


def test_the_supervisor_keeps_one_handover_however_often_it_reloads(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", systemd=True)
    run.ready()
    before = sorted(descriptors_of(run.pid).values())
    assert len([target for target in before if "nannyd-plan" in target]) == 1
    for _ in range(3):
        assert run.reload().returncode == 0
    eventually(lambda: len(descriptors_of(run.pid)) == len(before), "as many descriptors as before")
    assert run.stop() == 0
