"""Units of the guest, and instances of nannyd among them, as the tests see them."""

import json
import pwd
import re
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
Run = Callable[..., subprocess.CompletedProcess[str]]

UNITS = Path("/run/systemd/system")
CGROUPS = Path("/sys/fs/cgroup")
CONFIGURATION = Path("/etc/nannyd")
RUDE = Path(__file__).parents[2] / "workers" / "rude.py"
PATIENCE = 60.0
"""Seconds until a test gives up: the guest may be a slow one of many."""
COMMAND_TIMEOUT = 100.0
"""A start of several units is one command."""
_KILLED = re.compile(r"Killed process (\d+)")


def run_command(
    *argv: str | Path, check: bool = True, timeout: float = COMMAND_TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """Run a command without input.  With `check`, its failure fails the test and shows its output."""
    result = subprocess.run(
        argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if check and result.returncode != 0:
        words = " ".join(map(str, argv))
        pytest.fail(f"{words}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def as_user(user: str | None) -> tuple[str, ...]:
    """Return the start of a command line by which *user* runs the rest of it."""
    if user is None:
        return ()
    entry = pwd.getpwnam(user)
    variables = (f"HOME={entry.pw_dir}", f"XDG_RUNTIME_DIR=/run/user/{entry.pw_uid}")
    return ("runuser", "-u", user, "--", "env", *variables)


def wait_until(condition: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Return the condition's first true value; fail, naming what was waited for, without one."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {what}; at last: {value!r}")
        time.sleep(0.02)


def switches(pid: int) -> int:
    """Return how often process *pid* went to sleep so far."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["voluntary_ctxt_switches"])


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal since the start of the test."""

    cursor: str

    def entries(self, unit: str | None = None, **fields: str) -> list[dict[str, Any]]:
        """Return what `unit` logged and what systemd logged about it, or everything."""
        run_command("journalctl", "--sync")
        which = [*([f"--unit={unit}"] if unit else []), *(f"{k}={v}" for k, v in fields.items())]
        # With --after-cursor the journalctl of systemd 252 skips one more, where the cursor's does not match.
        command = ["journalctl", "--all", "--output=json", f"--cursor={self.cursor}"]
        entries = map(json.loads, run_command(*command, *which).stdout.splitlines())
        return [entry for entry in entries if entry["__CURSOR"] != self.cursor]

    def messages(self, unit: str | None = None, **fields: str) -> list[str]:
        return [str(entry.get("MESSAGE")) for entry in self.entries(unit, **fields)]

    def killed_for_memory(self) -> list[int]:
        """Return whom the kernel has killed for want of memory, the first first."""
        said = self.messages(_TRANSPORT="kernel")
        return list(dict.fromkeys(int(found[1]) for line in said if (found := _KILLED.search(line))))

    def wait_for(self, text: str, unit: str | None = None, *, timeout: float = PATIENCE) -> str:
        """Wait for a message that contains the text."""

        def found() -> str | None:
            return next((line for line in self.messages(unit) if text in line), None)

        message = wait_until(found, f"{text!r} in the journal of {unit}", timeout=timeout)
        assert message is not None
        return message


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that the test cleans up after itself."""

    name: str

    def start(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_command("systemctl", "start", self.name, check=check)

    def stop(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_command("systemctl", "stop", self.name, check=check)

    def restart(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_command("systemctl", "restart", self.name, check=check)

    def kill(self, signal: str = "SIGKILL", whom: str = "main") -> None:
        run_command("systemctl", "kill", f"--signal={signal}", f"--kill-whom={whom}", self.name)

    def show(self, name: str) -> str:
        """Return one property, as systemctl-show(1) prints it."""
        return run_command("systemctl", "show", f"--property={name}", "--value", self.name).stdout.strip()

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    @property
    def cgroup(self) -> Path:
        """The unit's cgroup; only an active unit, or one with processes left, has one."""
        path = self.show("ControlGroup")
        assert path, f"{self.name} has no cgroup"
        return CGROUPS / path.lstrip("/")

    def wait_for(self, state: str, *, timeout: float = PATIENCE) -> None:
        """Wait for an ActiveState, or for one with its SubState: `active`, `activating/auto-restart`."""

        def now() -> str:
            return f"{self.show('ActiveState')}/{self.show('SubState')}"

        wait_until(
            lambda: now() == state or now().split("/")[0] == state,
            f"{self.name} to be {state}",
            timeout=timeout,
        )

    def discard(self) -> bool:
        """End the unit by whatever means; return whether processes had to be killed for it."""
        try:
            run_command("systemctl", "stop", self.name, check=False, timeout=20)
        except subprocess.TimeoutExpired:
            run_command("systemctl", "kill", "--signal=KILL", self.name, check=False)
            run_command("systemctl", "stop", self.name, check=False)
        run_command("systemctl", "reset-failed", self.name, check=False)
        path = self.show("ControlGroup")
        cgroup = CGROUPS / path.lstrip("/")
        if not path or not _is_populated(cgroup):
            return False
        (cgroup / "cgroup.kill").write_text("1")
        wait_until(lambda: not _is_populated(cgroup), f"{cgroup} to be empty")
        return True


UnitFactory = Callable[..., Unit]


@dataclass(frozen=True, slots=True)
class Nannyd(Unit):
    """An instance of nannyd@.service."""

    journal: Journal

    @property
    def instance(self) -> str:
        return self.name.removeprefix("nannyd@").removesuffix(".service")

    @property
    def state(self) -> Path:
        """The state directory, where the worker may write."""
        return Path("/var/lib/nannyd", self.instance)

    def configure(self, text: str) -> None:
        """Write the instance's configuration."""
        CONFIGURATION.mkdir(exist_ok=True)
        (CONFIGURATION / f"{self.instance}.toml").write_text(textwrap.dedent(text))

    def override(self, settings: str) -> None:
        """Add settings of [Service] to the unit."""
        directory = UNITS / f"{self.name}.d"
        directory.mkdir(exist_ok=True)
        (directory / "test.conf").write_text("[Service]\n" + textwrap.dedent(settings))
        run_command("systemctl", "daemon-reload")

    def clear(self) -> None:
        """Remove what `configure` and `override` wrote, and the state."""
        (CONFIGURATION / f"{self.instance}.toml").unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
        if (overrides := UNITS / f"{self.name}.d").exists():
            shutil.rmtree(overrides)
            run_command("systemctl", "daemon-reload")

    def reload(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_command("systemctl", "reload", self.name, check=check)

    @property
    def status(self) -> str:
        """The status sentence."""
        return self.show("StatusText")

    @property
    def worker(self) -> int:
        """The pid of the running worker."""
        found = wait_until(lambda: re.match(r"worker (\d+) running", self.status), "a running worker")
        assert found is not None
        return int(found[1])

    @property
    def leaf(self) -> Path:
        """The cgroup of the only life there is."""
        leaves = list(self.cgroup.glob("worker-*"))
        assert len(leaves) == 1, leaves
        return leaves[0]

    def is_spared(self, supervisor: int) -> bool:
        """Say whether the kernel, for want of memory, has taken the worker and not its supervisor.

        It may take the supervisor after it, who is left then: the memory of one that was killed is free a
        moment later, and who wants some meanwhile has it look for another.
        """
        killed = self.journal.killed_for_memory()
        return killed[:1] not in ([], [supervisor]) and (supervisor in killed or self.main_pid == supervisor)

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return nannyd's own records, or those of one kind."""
        which = {"NANNYD_EVENT": event} if event else {"SYSLOG_IDENTIFIER": "nannyd"}
        return self.journal.entries(self.name, **which)

    def wait_for_event(self, event: str, number: int = 1, *, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for the so many-th record of a kind, and return it."""

        def found() -> dict[str, Any] | None:
            records = self.events(event)
            return records[number - 1] if len(records) >= number else None

        record = wait_until(found, f"{number} × {event} of {self.name}", timeout=timeout)
        assert record is not None
        return record


NannydFactory = Callable[..., Nannyd]


def rude(*vices: object) -> str:
    """Return a worker with these vices as TOML."""
    return json.dumps(["/usr/bin/python3", "-IS", str(RUDE), *map(str, vices)])


def rude_within(limit: str, *vices: object, memory: str = "", restart: str = 'delay = "10s"') -> str:
    """Return the configuration of a worker with these vices and a limit, to be looked at after its end."""
    return f"""
        [worker]
        command = {rude(*vices)}
        [memory]
        limit = "{limit}"
        {memory}
        [restart]
        {restart}
        """


def shell(script: str) -> str:
    """Return a worker that is a shell script as TOML."""
    return json.dumps(["/bin/sh", "-c", script])


def _is_populated(cgroup: Path) -> bool:
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except FileNotFoundError:
        return False
