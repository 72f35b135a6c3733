"""The environment that a real worker finds, and that nannyd's own stays what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import MARK, WORKERS, Host, environ_of, eventually

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = """
[nanny.environ]
FROM_ENVIRON = "environ"
ENVIRON_AND_INHERITED = "environ"
ENVIRON_AND_ARGUMENT = "environ"
ENVIRON_AND_PRE_SPAWN = "environ"
[nanny.pre-spawn-environ]
FROM_PRE_SPAWN = "pre-spawn"
ENVIRON_AND_PRE_SPAWN = "pre-spawn"
PRE_SPAWN_AND_INHERITED = "pre-spawn"
[nanny.env]
FROM_ARGUMENT = "argument"
ENVIRON_AND_ARGUMENT = "argument"
INHERITED_AND_ARGUMENT = "argument"
"""
INHERITED: dict[str, str | None] = {
    "FROM_INHERITED": "inherited",
    "ENVIRON_AND_INHERITED": "inherited",
    "PRE_SPAWN_AND_INHERITED": "inherited",
    "INHERITED_AND_ARGUMENT": "inherited",
}
IN_THE_END = {
    "FROM_ENVIRON": "environ",
    "FROM_PRE_SPAWN": "pre-spawn",
    "FROM_INHERITED": "inherited",
    "FROM_ARGUMENT": "argument",
    "ENVIRON_AND_INHERITED": "inherited",
    "PRE_SPAWN_AND_INHERITED": "inherited",
    "ENVIRON_AND_ARGUMENT": "argument",
    "INHERITED_AND_ARGUMENT": "argument",
    "ENVIRON_AND_PRE_SPAWN": "environ",
}


def looking(nannyd: Host, config: str, *options: str, **others: Any) -> tuple[dict[str, Any], int]:
    """Run the class that writes what it finds; return that, and its pid."""
    path = nannyd.home.base / "found"
    worker = f'[worker]\nclass = "classes:Looking"\n[worker.kwargs]\npath = "{path}"\n'
    run = nannyd(*options, config=worker + config, **others)
    pid = run.ready()
    eventually(path.exists, "it has written what it found")
    found: dict[str, Any] = json.loads(path.read_text())
    return found, pid


# --- The three layers ----------------------------------------------------------------------------------


def test_a_command_has_all_layers_when_it_is_executed(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60", config=LAYERS, environ=INHERITED)
    assert environ_of(run.ready()).items() >= IN_THE_END.items()
    assert run.stop() == 0


def test_a_class_has_environ_before_its_first_import_and_the_rest_when_it_is_executed(nannyd: Host) -> None:
    found, pid = looking(nannyd, LAYERS, environ=INHERITED)
    assert found["environ_at_import"].items() >= IN_THE_END.items()
    at_exec = environ_of(pid)
    late = {name: value for name, value in IN_THE_END.items() if at_exec.get(name) != value}
    assert late == {"FROM_ENVIRON": "environ", "ENVIRON_AND_PRE_SPAWN": "environ"}
    assert "FROM_ENVIRON" not in at_exec
    assert at_exec["ENVIRON_AND_PRE_SPAWN"] == "pre-spawn"


def test_the_option_env_wins_over_everything(nannyd: Host) -> None:
    run = nannyd("--env", "FROM_ARGUMENT=option", "--", "sleep", "60", config=LAYERS, environ=INHERITED)
    assert environ_of(run.ready())["FROM_ARGUMENT"] == "option"


def test_false_drops_a_configured_entry_and_unset_an_inherited_one(nannyd: Host) -> None:
    config = """
    [nanny]
    unset = ["FROM_INHERITED"]
    [nanny.pre-spawn-environ]
    MALLOC_TRIM_THRESHOLD_ = false
    INHERITED_AND_ARGUMENT = false
    """
    run = nannyd("--", "sleep", "60", config=config, environ=INHERITED)
    environ = environ_of(run.ready())
    assert "FROM_INHERITED" not in environ
    assert "MALLOC_TRIM_THRESHOLD_" not in environ
    assert environ["INHERITED_AND_ARGUMENT"] == "inherited"


# --- What must be there at execve ----------------------------------------------------------------------


@pytest.mark.parametrize("of", ["command", "class"])
def test_malloc_finds_its_threshold_when_it_starts(nannyd: Host, of: str) -> None:
    if of == "command":
        environ = environ_of(nannyd("--", "sleep", "60").ready())
    else:
        environ = environ_of(looking(nannyd, "")[1])
    assert environ["MALLOC_TRIM_THRESHOLD_"] == "65536"


HASH = "import os, sys; print(hash('nannyd'), flush=True); os.execvp('sleep', ['sleep', '60'])"


def _hash_with(seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", "print(hash('nannyd'))"],
        env={"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("config", "inherited", "option", "seed"),
    [
        ("", None, None, "6640"),
        ('[nanny.pre-spawn-environ]\nPYTHONHASHSEED = "0"', None, None, "6640"),
        ('[nanny.pre-spawn-environ]\nPYTHONHASHSEED = "7"', None, None, "7"),
        ("", "0", None, "0"),
        ("", "5", None, "5"),
        ('[nanny.pre-spawn-environ]\nPYTHONHASHSEED = "7"', "5", None, "5"),
        ("", None, "0", "0"),
        ("", "5", "3", "3"),
    ],
)
def test_the_hash_seed_is_the_nannys_unless_somebody_chose_one(
    nannyd: Host, config: str, inherited: str | None, option: str | None, seed: str
) -> None:
    options = [] if option is None else ["--env", f"PYTHONHASHSEED={option}"]
    command = [sys.executable, "-c", HASH]
    run = nannyd(*options, "--", *command, config=config, environ={"PYTHONHASHSEED": inherited})
    pid = run.ready()
    eventually(lambda: run.stdout.stat().st_size > 0, "the worker has printed its hash")
    assert environ_of(pid)["PYTHONHASHSEED"] == seed
    assert run.stdout.read_text() == _hash_with(seed)


# --- What is nannyd's alone ----------------------------------------------------------------------------

PRIVATE: dict[str, str | None] = {
    "WATCHDOG_USEC": "60000000",
    "LISTEN_FDS": "1",
    "LISTEN_PID": "1",
    "LISTEN_FDNAMES": "x",
    "FDSTORE": "5",
    "MAINPID": "1",
    "MANAGERPID": "1",
    "SYSTEMD_EXEC_PID": "1",
    "MONITOR_SERVICE_RESULT": "success",
    "MONITOR_UNIT": "x.service",
    "NANNYD_MEMORY__LIMIT": "1G",
    "NANNYD_LOG_LEVEL": "info",
}
KEPT: dict[str, str | None] = {
    "INVOCATION_ID": "0123456789abcdef0123456789abcdef",
    "CREDENTIALS_DIRECTORY": "/run/credentials/x",
    "CACHE_DIRECTORY": "/var/cache/x",
    "LOGS_DIRECTORY": "/var/log/x",
    "CONFIGURATION_DIRECTORY": "/etc/x",
}


@pytest.mark.parametrize("of", ["command", "class"])
def test_what_systemd_said_to_nannyd_does_not_leak(nannyd: Host, of: str) -> None:
    variables = PRIVATE | KEPT
    if of == "command":
        run = nannyd("--", "sleep", "60", environ=variables, systemd=True)
        environ = environ_of(run.ready())
    else:
        environ = looking(nannyd, "", environ=variables, systemd=True)[0]["environ"]
        run = nannyd.runs[-1]
    assert not set(PRIVATE) & set(environ)
    assert KEPT.items() <= environ.items()
    assert environ["NOTIFY_SOCKET"] != str(run.systemd.path)
    assert environ["RUNTIME_DIRECTORY"] == str(nannyd.home.run)
    assert environ["NANNYD_INSTANCE"] == "t"
    assert run.stop() == 0


def test_what_a_worker_inherits_is_otherwise_what_nannyd_has(nannyd: Host) -> None:
    run = nannyd("--", "sleep", "60")
    worker, own = environ_of(run.ready()), environ_of(run.pid)
    added = {
        "NOTIFY_SOCKET",
        "NANNYD_INSTANCE",
        "NANNYD_LOCAL_DIRECTORY",
        "PYTHONHASHSEED",
        "MALLOC_TRIM_THRESHOLD_",
    }
    assert set(worker) - set(own) == added
    assert own.items() <= worker.items()


def test_a_watchdog_of_the_workers_own_is_told(nannyd: Host) -> None:
    run = nannyd.rude("--worker.watchdog=20s", vices="--ready-after 0", environ={"WATCHDOG_USEC": "90000000"})
    assert environ_of(run.ready())["WATCHDOG_USEC"] == "20000000"
    assert run.stop() == 0


def test_nannyds_own_environment_is_never_changed(nannyd: Host) -> None:
    given = {**nannyd.home.environ(), **INHERITED}
    run = nannyd("--env", "FROM_ARGUMENT=x", "--", "sleep", "60", config=LAYERS, environ=INHERITED)
    run.ready()
    assert environ_of(run.pid) == given
    # The helpers that remove directories and reload get it as it is, too.
    assert run.reload().returncode == 0
    assert environ_of(run.pid) == given
    assert run.stop() == 0


def test_a_value_that_is_no_utf8_arrives(nannyd: Host) -> None:
    odd = os.fsdecode(b"caf\xe9")
    run = nannyd("--", "sleep", "60", environ={"ODD": odd})
    assert environ_of(run.ready())["ODD"] == odd
    assert run.stop() == 0


def test_an_interpreter_without_nannyd_finds_nothing_but_nannyd(nannyd: Host, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    (site / "pydantic.py").write_text("VERSION = 'another'\n")
    python = tmp_path / "venv" / "bin" / "python"
    path = nannyd.home.base / "found"
    config = f"""
    [worker]
    class = "classes:Looking"
    python = "{python}"
    [worker.kwargs]
    path = "{path}"
    modules = ["pydantic", "pydantic_settings", "psutil", "systemd", "nannyd"]
    """
    run = nannyd(config=config, environ={"PYTHONPATH": str(WORKERS)})
    run.ready()
    found = json.loads(path.read_text())
    assert found["modules"].keys() == {"pydantic", "nannyd"}
    assert found["modules"]["pydantic"] == str(site / "pydantic.py")
    assert found["path"][-1] == str(nannyd.home.run / "lib")
    assert os.listdir(nannyd.home.run / "lib") == ["nannyd"]  # noqa: PTH208
    assert run.stop() == 0


def test_the_mark_of_the_harness_is_inherited(nannyd: Host) -> None:
    """Everything that looks for what is left behind relies on this."""
    run = nannyd("--", "sleep", "60")
    assert environ_of(run.ready())[MARK] == nannyd.home.mark
