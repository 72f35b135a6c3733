"""What an instance may be called: a name works or is refused, and stays in its own directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import CONFIGURATION, run_command, shell, wait_until

if TYPE_CHECKING:
    from .instances import NannydFactory

PLACES = [Path("/run/nannyd"), Path("/var/lib/nannyd"), Path("/var/log/nannyd")]
SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n"


def files(*places: Path) -> set[str]:
    """Return everything in *places*, with its owner."""
    return {f"{path.owner()} {path}" for place in places for path in (place, *place.rglob("*"))}


@pytest.fixture
def neighbour(nannyd: NannydFactory) -> None:
    """Let another instance run, whose directories lie beside."""
    nannyd(SLEEP, name="a")


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize("name", ["web-1", "a.b", "a:b", "a@b"])
def test_name_is_that_of_the_directories_and_of_the_lines_in_the_journal(
    nannyd: NannydFactory, name: str
) -> None:
    before = files(*PLACES, Path("/etc"))
    script = 'echo "$RUNTIME_DIRECTORY $NANNYD_LOCAL_DIRECTORY $NOTIFY_SOCKET"; exec sleep 99'
    instance = nannyd(f"[worker]\ncommand = {shell(script)}\n", name=name)
    assert instance.instance == name

    def said() -> list[str]:
        return instance.journal.messages(instance.name, SYSLOG_IDENTIFIER=name)

    (line,) = wait_until(said, "the worker's line")
    runtime, scratch, socket = line.split()
    assert runtime == f"/run/nannyd/{name}"
    assert Path(scratch).parent == instance.state / "scratch"
    assert Path(socket).parent == Path(runtime)
    instance.reload()
    assert "# /etc/nannyd/" + name in run_command("nannyd", "explain", name).stdout
    own = {
        f"_nannyd /var/lib/nannyd/{name}",
        f"_nannyd /run/nannyd/{name}",
        f"_nannyd /var/log/nannyd/{name}",
    }
    new = files(*PLACES, Path("/etc")) - before
    outside = [file for file in new if not any(file == one or file.startswith(one + "/") for one in own)]
    assert outside == [f"root {CONFIGURATION}/{name}.toml"]
    assert own <= new
    instance.stop()
    left = {file for file in files(*PLACES) - before if "/scratch" not in file}
    assert left == own - {f"_nannyd /run/nannyd/{name}"}


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".hidden", "'.hidden' begins with '.'"),
        ("..-etc", "'..-etc' begins with '.'"),  # what systemctl makes of ../etc
        ("-x", "'-x' begins with '-'"),
        ("--help", "'--help' begins with '-'"),
        ("nannyd", "'nannyd' is reserved"),
        (65 * "x", "the name of an instance has at most 64 bytes"),
    ],
)
def test_bad_name_is_refused_with_one_line_and_for_good(
    nannyd: NannydFactory, name: str, reason: str
) -> None:
    before = files(*PLACES)
    instance = nannyd(SLEEP, name=name, start=False)
    assert instance.start(check=False).returncode != 0
    (told,) = instance.journal.entries(instance.name, SYSLOG_IDENTIFIER="nannyd")
    assert told["MESSAGE"].startswith(f"command line: NAME: {reason}")
    assert told["PRIORITY"] == "3"
    assert instance.show("ExecMainStatus") == "78"
    assert instance.show("ActiveState") == "failed"
    instance.clear()
    assert files(*PLACES) - before <= {f"_nannyd /var/log/nannyd/{name}"}


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize("name", [".", ".."])
def test_name_that_is_another_directory_touches_none(name: str) -> None:
    """It would get, and at its end remove, the directories of all the others."""
    before = files(*PLACES)
    started = run_command("systemctl", "start", f"nannyd@{name}.service", check=False)
    assert started.returncode != 0
    assert "Assertion failed" in started.stderr or "has a bad unit file setting" in started.stderr
    assert files(*PLACES) == before


@pytest.mark.parametrize("written", ["x y", "\u00fc"])
def test_escaped_name_takes_directories_that_systemd_can_make(nannyd: NannydFactory, written: str) -> None:
    """systemd 255 to 260 cannot make one with a backslash (its issue 41853); nannyd itself takes the name."""
    name = run_command("systemd-escape", written).stdout.strip()
    assert "\\x" in name
    instance = nannyd(SLEEP, name=name, start=False)
    assert instance.start(check=False).returncode != 0
    assert instance.show("ActiveState") == "failed"
    assert instance.show("NRestarts") == "0"
    places = "".join(
        f"{kind}Directory=\n{kind}Directory=nannyd/other\n" for kind in ("Runtime", "State", "Logs")
    )
    instance.override(places)
    run_command("systemctl", "start", f"nannyd@{written}")
    assert instance.status.startswith("worker ")
    instance.reload()
    record = instance.wait_for_event("reloaded")
    assert record["NANNYD_INSTANCE"] == name
