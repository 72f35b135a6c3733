"""What an instance may be called: a name works or is refused, and stays in its own directories."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from .instances import CONFIGURATION, Nannyd, run_command, shell, wait_until

if TYPE_CHECKING:
    from .instances import Journal, NannydFactory

PLACES = [Path("/run/nannyd"), Path("/var/lib/nannyd"), Path("/var/log/nannyd")]
SLEEP = "[worker]\ncommand = ['/usr/bin/sleep', 'infinity']\n"


def files(*places: Path) -> set[tuple[int, str]]:
    """Return everything in *places*, with its owner."""
    found = [path for place in places for path in (place, *place.rglob("*")) if place.exists()]
    return {(path.lstat().st_uid, str(path)) for path in found}


def start(*instances: Nannyd) -> None:
    """Start all at once; some may fail."""
    run_command("systemctl", "start", *(instance.name for instance in instances), check=False)


def test_name_is_that_of_the_directories_and_of_the_lines_in_the_journal(nannyd: NannydFactory) -> None:
    script = 'echo "$RUNTIME_DIRECTORY $NANNYD_LOCAL_DIRECTORY $NOTIFY_SOCKET"; exec sleep 99'
    before = files(*PLACES, Path("/etc"))
    names = ["a", "web-1", "a.b", "a:b", "a@b"]
    instances = [nannyd(f"[worker]\ncommand = {shell(script)}\n", name=name, start=False) for name in names]
    start(*instances)

    def said(instance: Nannyd) -> list[str]:
        return instance.journal.messages(instance.name, SYSLOG_IDENTIFIER=instance.instance)

    for instance in instances:
        (line,) = wait_until(lambda instance=instance: said(instance), f"the line of {instance.name}")  # type: ignore[misc]
        runtime, scratch, socket = line.split()
        assert runtime == f"/run/nannyd/{instance.instance}"
        assert Path(scratch).parent == instance.state / "scratch"
        assert Path(socket).parent == Path(runtime)
        instance.reload()
    own = {(pwd.getpwnam("_nannyd").pw_uid, str(place / name)) for place in PLACES for name in names}
    new = files(*PLACES, Path("/etc")) - before
    assert own <= new
    outside = {
        (uid, path) for uid, path in new if not any(f"{path}/".startswith(f"{one}/") for _, one in own)
    }
    assert outside - {(0, str(place)) for place in PLACES} == {
        (0, f"{CONFIGURATION}/{name}.toml") for name in names
    }


def test_bad_name_is_refused_with_one_line_and_for_good(journal: Journal) -> None:
    reasons = {
        ".hidden": "'.hidden' begins with '.'",
        "..-etc": "'..-etc' begins with '.'",  # what systemctl makes of ../etc
        "-x": "'-x' begins with '-'",
        "--help": "'--help' begins with '-'",
        "nannyd": "'nannyd' is reserved",
        65 * "x": "the name of an instance has at most 64 bytes",
    }
    common = Path("/etc/nannyd/nannyd.toml")
    content = common.read_text()
    instances = [Nannyd(f"nannyd@{name}.service", journal) for name in reasons]
    for instance in instances:
        instance.configure(SLEEP)
    common.write_text(content)
    try:
        before = files(PLACES[0])
        start(*instances)
        for instance in instances:
            (told,) = instance.journal.entries(instance.name, SYSLOG_IDENTIFIER="nannyd")
            assert told["MESSAGE"].startswith(f"command line: NAME: {reasons[instance.instance]}")
            assert told["PRIORITY"] == "3"
            assert instance.show("ExecMainStatus") == "78"
            assert instance.show("ActiveState") == "failed"
            assert not list(instance.state.iterdir())
        assert files(PLACES[0]) == before
    finally:
        for instance in instances:
            instance.discard()
            instance.clear()
        common.write_text(content)  # that of the one called nannyd, too


def test_name_that_is_another_directory_touches_none(nannyd: NannydFactory) -> None:
    """It would get, and at its end remove, the directories of all the others."""
    nannyd(SLEEP)
    before = files(*PLACES)
    for name, reason in ((".", "Assertion failed"), ("..", "has a bad unit file setting")):
        started = run_command("systemctl", "start", f"nannyd@{name}.service", check=False)
        assert started.returncode != 0
        assert reason in started.stderr
    assert files(*PLACES) == before


def test_escaped_name_takes_directories_that_systemd_can_make(nannyd: NannydFactory) -> None:
    """systemd 255 to 260 cannot make one with a backslash (its issue 41853); nannyd itself takes the name."""
    written = "x \u00fc"
    name = run_command("systemd-escape", written).stdout.strip()
    assert name == r"x\x20\xc3\xbc"
    instance = nannyd(SLEEP, name=name, start=False)
    before = files(*PLACES)
    assert instance.start(check=False).returncode != 0
    assert (instance.show("ActiveState"), instance.show("NRestarts")) == ("failed", "0")
    # What systemd's own child said of it may be read when that is gone, and is then of no unit.
    said = run_command(
        "journalctl", "--boot", "--output=cat", "--grep=^Failed to deserialize: Invalid argument$"
    )
    assert said.stdout
    assert files(*PLACES) == before
    kinds = ("Runtime", "State", "Logs")
    places = "".join(f"{kind}Directory=\n{kind}Directory=nannyd/other\n" for kind in kinds)
    instance.override(places + "WorkingDirectory=/var/lib/nannyd/other\n")
    run_command("systemctl", "start", f"nannyd@{written}")
    assert instance.status.startswith("worker ")
    instance.reload()
    assert instance.wait_for_event("reloaded")["NANNYD_INSTANCE"] == name
