"""The worker's environment in a unit: layer over layer, and what `nannyd explain` says of it."""

from __future__ import annotations

import json
import pwd
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .instances import RUDE, run_command, shell, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instances import Nannyd, NannydFactory

SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n"
LAYERS = """
[nanny]
env = { F = "argument of the file" }
unset = ["G"]
pre-spawn-environ.E = "before the spawn"
pre-spawn-environ.MALLOC_TRIM_THRESHOLD_ = "131072"
pre-spawn-environ.PYTHONPATH = "WORKERS"
[nanny.environ]
A = "configuration"
B = "configuration"
C = "configuration"
D = "configuration"
""".replace("WORKERS", str(RUDE.parent))
FILE = "B=file\nC=file\n# a comment\nI='quoted value'\n"
UNIT = """
Environment=A=unit B=unit F=unit G=unit NANNYD_MEMORY__LIMIT=64M "H=two words"
ExecStart=
ExecStart=/usr/bin/nannyd run %i --env C=option
"""
IN_THE_END = {
    "A": "unit",
    "B": "file",
    "C": "option",
    "D": "configuration",
    "E": "before the spawn",
    "F": "argument of the file",
    "G": None,
    "H": "two words",
    "I": "quoted value",
}


def environ(pid: int) -> dict[str, str]:
    content = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in content.split("\0") if entry)


def explained(instance: Nannyd) -> dict[str, Any]:
    """Return what `nannyd explain` says, asked from a shell that has variables of its own."""
    output = run_command("env", "A=shell", "SHELL_ONLY=1", "nannyd", "explain", "--json", instance.instance)
    found: dict[str, Any] = json.loads(output.stdout)
    return found


@pytest.fixture
def default_file() -> Iterator[Path]:
    """Return the EnvironmentFile= of instance w."""
    path = Path("/etc/default/nannyd-w")
    yield path
    path.unlink(missing_ok=True)


def test_argument_wins_over_the_unit_and_the_unit_over_the_configuration(
    nannyd: NannydFactory, default_file: Path
) -> None:
    default_file.write_text(FILE)
    instance = nannyd(SLEEP + LAYERS, UNIT)
    found = environ(instance.worker)
    assert {name: found.get(name) for name in IN_THE_END} == IN_THE_END
    assert found["MALLOC_TRIM_THRESHOLD_"] == "131072"
    assert found["PYTHONHASHSEED"] == "6640"
    assert (instance.leaf / "memory.max").read_text() == f"{64 << 20}\n"  # NANNYD_MEMORY__LIMIT


def test_precedence_holds_within_a_python_worker(nannyd: NannydFactory, default_file: Path) -> None:
    """At the first import of the user's code, and after it."""
    default_file.write_text(FILE)
    worker = """
[worker]
class = "classes:Looking"
kwargs = { path = "/var/lib/nannyd/w/found" }
"""
    instance = nannyd(worker + LAYERS, UNIT)
    found = json.loads((instance.state / "found").read_text())
    for when in ("environ_at_import", "environ"):
        assert {name: found[when].get(name) for name in IN_THE_END} == IN_THE_END


def test_what_systemd_told_nannyd_alone_does_not_leak_and_the_rest_stays(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, "Environment=NANNYD_MEMORY__LIMIT=64M")
    assert instance.show("Environment") == "NANNYD_MEMORY__LIMIT=64M"  # the unit itself adds nothing
    own, found = environ(instance.main_pid), environ(instance.worker)
    for name in (
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "SYSTEMD_EXEC_PID",
        "NANNYD_MEMORY__LIMIT",
    ):
        assert name in own
        assert found.get(name) != own[name]
    assert found["NOTIFY_SOCKET"].startswith("/run/nannyd/w/notify-")
    assert set(found) - set(own) == {
        "MALLOC_TRIM_THRESHOLD_",
        "NANNYD_INSTANCE",
        "NANNYD_LOCAL_DIRECTORY",
        "PYTHONHASHSEED",
    }
    kept = {
        "RUNTIME_DIRECTORY": "/run/nannyd/w",
        "STATE_DIRECTORY": "/var/lib/nannyd/w",
        "LOGS_DIRECTORY": "/var/log/nannyd/w",
        "INVOCATION_ID": instance.show("InvocationID"),
        "USER": "_nannyd",
        "NANNYD_INSTANCE": "w",
    }
    assert {name: found[name] for name in kept} == kept


@pytest.fixture
def hers() -> Iterator[tuple[Path, Path]]:
    """Return alice's own site-packages and a directory for PYTHONPATH, with modules that nannyd has too."""
    home = Path(pwd.getpwnam("alice").pw_dir)
    site = home / f".local/lib/python3.{sys.version_info.minor}/site-packages"
    for directory in (site, home / "path"):
        directory.mkdir(parents=True)
        for name in ("nannyd", "psutil", "pydantic"):
            (directory / f"{name}.py").write_text("raise ImportError('these are of alice')\n")
    yield site, home / "path"
    shutil.rmtree(home / ".local")
    shutil.rmtree(home / "path")


def test_modules_of_the_user_are_for_the_worker_and_not_for_nannyd(
    nannyd: NannydFactory, hers: tuple[Path, Path]
) -> None:
    site, path = hers
    (site / "base.py").write_text("class Base:\n    def start(self): pass\n")
    (path / "hers.py").write_text("from base import Base\nclass Worker(Base): pass\n")
    instance = nannyd(
        "[worker]\nclass = 'hers:Worker'\n", f"User=alice\nGroup=alice\nEnvironment=PYTHONPATH={path}"
    )
    assert instance.worker
    instance.reload()


def test_explain_shows_the_environment_of_the_unit_be_it_running_or_not(
    nannyd: NannydFactory, default_file: Path
) -> None:
    default_file.write_text(FILE)
    instance = nannyd(SLEEP + LAYERS, UNIT)
    actual = environ(instance.worker)
    running = explained(instance)
    instance.stop()
    stopped = explained(instance)
    for found in (running, stopped):
        variables = {one["name"]: one["value"] for one in found["environment"]}
        assert "SHELL_ONLY" not in variables
        assert {name: variables.get(name) for name in IN_THE_END} == {
            name: actual.get(name) for name in IN_THE_END
        }
        origins = {one["name"]: one["origin"] for one in found["environment"]}
        assert origins["A"] == "Environment= of nannyd@w.service"
        assert origins["B"] == origins["I"] == "/etc/default/nannyd-w"
        assert origins["PATH"] == "the service manager's environment"
    text = run_command("nannyd", "explain", "w").stdout
    assert re.search(r"^A=unit +# Environment= of nannyd@w\.service$", text, re.MULTILINE)
    assert re.search(r"^C=option +# ", text, re.MULTILINE)
    assert re.search(r"^D=configuration +# /etc/nannyd/w\.toml$", text, re.MULTILINE)
    assert re.search(r"^memory\.limit = .* +# .*NANNYD_MEMORY__LIMIT", text, re.MULTILINE)


def test_credential_reaches_the_worker_and_nobody_else(nannyd: NannydFactory, tmp_path: Path) -> None:
    secret = "correct horse battery staple"
    file = tmp_path / "secret"
    file.write_text(secret + "\n")
    file.chmod(0o600)  # of root: only systemd can read it
    instance = nannyd(
        SLEEP + '[nanny.env]\nBROKER = { credential = "broker" }\n', f"LoadCredential=broker:{file}"
    )
    found = environ(instance.worker)
    assert found["BROKER"] == secret
    assert found["CREDENTIALS_DIRECTORY"] == "/run/credentials/nannyd@w.service"
    assert secret not in Path(f"/proc/{instance.main_pid}/cmdline").read_text()
    for command in ("explain", "plan"):
        for more in ((), ("--json",)):
            assert secret not in run_command("nannyd", command, "w", *more).stdout
    assert re.search(
        r"^BROKER=\*+ +# .*credential broker", run_command("nannyd", "explain", "w").stdout, re.MULTILINE
    )
    instance.stop()
    assert secret not in json.dumps(instance.journal.entries(instance.name))


def test_scratch_directory_is_private_on_disk_and_gone_afterwards(nannyd: NannydFactory) -> None:
    script = "cd $NANNYD_LOCAL_DIRECTORY; mkdir -p a/b; ln -s / root; touch $STATE_DIRECTORY/ok"
    instance = nannyd(f"[worker]\ncommand = {shell(script + '; exec sleep 99')}\n")
    wait_until((instance.state / "ok").exists, "the worker's mark")
    scratch = Path(environ(instance.worker)["NANNYD_LOCAL_DIRECTORY"])
    assert scratch.parent == instance.state / "scratch"
    status = scratch.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert scratch.owner() == "_nannyd"
    assert run_command("stat", "--file-system", "--format=%T", scratch).stdout.startswith("ext")
    instance.stop()
    assert list((instance.state / "scratch").iterdir()) == []
    assert Path("/etc/passwd").exists()
