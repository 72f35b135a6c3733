"""Fixtures of the tests that run in the guest, as root, with systemd as PID 1.

After every test no unit, no process of a unit and no core dump is left, or the test fails.
"""

import json
import pwd
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .instances import (
    UNITS,
    Journal,
    Nannyd,
    NannydFactory,
    Run,
    Unit,
    UnitFactory,
    as_user,
    run_command,
    wait_until,
)

IN_GUEST = Path("/etc/nannyd-guest").exists()
if not IN_GUEST:
    collect_ignore_glob = ["*"]

if "VERSION_CODENAME=bookworm" not in Path("/etc/os-release").read_text():
    collect_ignore = ["test_debian_12.py"]

CORE_DUMPS = Path("/run/core-dumps")


@pytest.fixture(scope="session", autouse=True)
def only_in_guest() -> None:
    """These tests make units and kill processes: never on the developer's own machine."""
    if not IN_GUEST:
        pytest.exit("these tests run in a guest: python -m tests.system.run", returncode=4)


@pytest.fixture
def run() -> Run:
    return run_command


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return wait_until


@pytest.fixture
def journal() -> Journal:
    last = run_command("journalctl", "--lines=1", "--output=json", "--output-fields=MESSAGE").stdout
    return Journal(json.loads(last)["__CURSOR"])


@pytest.fixture
def unit(journal: Journal) -> Iterator[UnitFactory]:
    """Return `unit(name, text, start=True)`.

    It writes the unit file, or takes an installed unit if there is no text, and starts it.
    A failed start fails the test; start=False and Unit.start(check=False) leave that to the test.
    """
    units: list[Unit] = []

    def make(name: str, text: str = "", *, start: bool = True) -> Unit:
        if text:
            (UNITS / name).write_text(textwrap.dedent(text))
            run_command("systemctl", "daemon-reload")
        made = Unit(name)
        units.append(made)
        if start and made.start(check=False).returncode != 0:
            pytest.fail(f"{name} did not start:\n" + "\n".join(journal.messages(name)))
        return made

    UNITS.mkdir(exist_ok=True)
    yield make
    leftover = [made.name for made in reversed(units) if made.discard()]
    for made in units:
        (UNITS / made.name).unlink(missing_ok=True)
    if units:
        run_command("systemctl", "daemon-reload")
    assert not leftover, f"processes outlived {', '.join(leftover)}"


@pytest.fixture
def nannyd(journal: Journal) -> Iterator[NannydFactory]:
    """Return `nannyd(configuration, settings_of_the_service="", name="w", start=True)`.

    nannyd must not meet a bug of its own meanwhile.
    """
    instances: list[Nannyd] = []

    def make(configuration: str, settings: str = "", *, name: str = "w", start: bool = True) -> Nannyd:
        made = Nannyd(f"nannyd@{name}.service", journal)
        made.clear()
        instances.append(made)
        made.configure(configuration)
        if settings:
            made.override(settings)
        if start and made.start(check=False).returncode != 0:
            pytest.fail(f"{made.name} did not start:\n" + "\n".join(journal.messages(made.name)))
        return made

    yield make
    leftover = [made.name for made in reversed(instances) if made.discard()]
    bugs = [bug["MESSAGE"] for made in instances for bug in made.events("internal-error")]
    for made in instances:
        made.clear()
    assert not leftover, f"processes outlived {', '.join(leftover)}"
    assert not bugs, "\n".join(bugs)


@pytest.fixture
def her_home() -> Iterator[Path]:
    """Where alice configures instances of her own, while her service manager runs."""
    alice = pwd.getpwnam("alice")
    place = Path(alice.pw_dir, ".config/nannyd")
    # Each test starts her manager: more than five within ten seconds would meet systemd's start limit.
    units = [f"{kind}@{alice.pw_uid}.service" for kind in ("user", "user-runtime-dir")]
    run_command("systemctl", "reset-failed", *units, check=False)
    run_command("loginctl", "enable-linger", "alice")
    running = ("systemctl", "--user", "is-system-running")
    wait_until(
        lambda: run_command(*as_user("alice"), *running, check=False).stdout.strip() == "running",
        "her manager",
    )
    place.mkdir(parents=True)
    yield place
    run_command("loginctl", "disable-linger", "alice")
    run_command("systemctl", "stop", f"user@{alice.pw_uid}.service")
    shutil.rmtree(Path(alice.pw_dir, ".config"))
    shutil.rmtree(Path(alice.pw_dir, ".local"), ignore_errors=True)


@pytest.fixture(autouse=True)
def no_core_dump(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test during which a process dumped core, unless it is marked `dumps_core`."""
    before = _core_dumps()
    yield
    dumped = _core_dumps()[len(before) :]
    if request.node.get_closest_marker("dumps_core") is None:
        assert not dumped, "core dumped"


def _core_dumps() -> list[str]:
    return CORE_DUMPS.read_text().splitlines() if CORE_DUMPS.exists() else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: the test leaves something behind for a second boot")
    config.addinivalue_line("markers", "dumps_core: the test makes a process dump core")
