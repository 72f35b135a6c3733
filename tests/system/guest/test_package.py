"""The Debian package in the booted system: its life, and what it ships."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import UNITS, Nannyd, run_command, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from .instances import Journal, NannydFactory, UnitFactory

DEB = Path("/mnt/share/nannyd.deb")
EXAMPLES = Path("/usr/share/doc/nannyd/examples")
OWN = Path("/etc/nannyd/nannyd.toml")
DEFAULTS = Path("/etc/default/nannyd")
POLICY = Path("/usr/sbin/policy-rc.d")
LINK = Path("/etc/systemd/system/multi-user.target.wants/nannyd@w.service")
SLEEP = '[worker]\ncommand = ["/usr/bin/sleep", "infinity"]\n[restart]\ndelay = 0\n'
CLASS = """
[worker]
class = "ticker:Ticker"
args = [60]
working-directory = "/var/lib/nannyd"
[restart]
delay = 0
"""


def install(deb: Path) -> str:
    return run_command("dpkg", "--install", deb).stdout


@pytest.fixture
def make_deb(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return `make(version, change)`, which makes another version of the package, changed by `change(tree)`.

    At the end the package is the tested one again, whatever became of it.
    """

    def make(version: str, change: Callable[[Path], object] = lambda tree: None) -> Path:
        tree = tmp_path / version
        run_command("dpkg-deb", "--raw-extract", DEB, tree)
        control = tree / "DEBIAN/control"
        control.write_text(
            re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
        )
        change(tree)
        deb = tmp_path / f"nannyd_{version}_all.deb"
        run_command("dpkg-deb", "--build", "-Znone", "--root-owner-group", tree, deb)
        return deb

    shipped = {path: path.read_text() for path in (DEFAULTS, OWN)}
    yield make
    POLICY.unlink(missing_ok=True)
    install(DEB)
    for path, text in shipped.items():
        path.write_text(text)


def set_description(text: str) -> Callable[[Path], object]:
    def change(tree: Path) -> None:
        unit = tree / "usr/lib/systemd/system/nannyd@.service"
        unit.write_text(unit.read_text().replace("Description=", f"Description={text} "))

    return change


# Its life


def test_upgrade_and_downgrade_restart_active_instances_and_leave_the_others(
    nannyd: NannydFactory, make_deb: Callable[..., Path]
) -> None:
    active = nannyd(SLEEP, name="active")
    stopped = nannyd(SLEEP, name="stopped")
    stopped.stop()
    failed = nannyd("[worker]\ncommand = []\n", name="failed", start=False)
    failed.start(check=False)
    failed.wait_for("failed")
    OWN.write_text(OWN.read_text() + "# mine\n")
    for version in ("99", "0.0.1"):
        before = active.main_pid
        install(make_deb(version, set_description(f"version {version}")))
        assert active.main_pid != before
        assert active.show("ActiveState") == "active"
        assert active.show("NeedDaemonReload") == "no"
        assert active.show("Description") == f"version {version} nannyd worker active"
        assert active.worker
        assert stopped.show("ActiveState") == "inactive"
        assert failed.show("ActiveState") == "failed"
        assert OWN.read_text().endswith("# mine\n")
        assert active.show("NRestarts") == "0"


def test_upgrade_does_not_wait_for_ever_for_a_worker_that_is_never_ready(
    nannyd: NannydFactory, make_deb: Callable[..., Path]
) -> None:
    instance = nannyd(SLEEP.replace("[restart]", "ready = 'notify'\n[restart]"), start=False)
    run_command("systemctl", "start", "--no-block", instance.name)
    instance.wait_for_event("worker-started")
    before = instance.main_pid
    install(make_deb("99"))
    instance.wait_for_event("worker-started", 2)
    assert instance.main_pid != before
    assert instance.show("ActiveState") == "activating"
    instance.stop()  # before the next installation


def rewrite(tree: Path, file: str, pattern: str, new: str) -> None:
    """Change a file of nannyd itself."""
    path = tree / "usr/lib/python3/dist-packages/nannyd" / file
    text, count = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


def speak_otherwise(tree: Path) -> None:
    """Make a version of another protocol; what a running supervisor would still read of it is no Python."""
    rewrite(tree, "core/wire.py", r"^PROTOCOL = \d+$", "PROTOCOL = 999")
    nannyd = tree / "usr/lib/python3/dist-packages/nannyd"
    for file in (*nannyd.glob("supervisor/*.py"), *nannyd.glob("worker/*.py")):
        file.write_text("raise ImportError('versions are mixed')\n")


def plan_otherwise(tree: Path) -> None:
    """Make a version whose plans an older supervisor does not understand."""
    rewrite(tree, "core/plan.py", r"^    arguments: list\[str\] =", r"    novelty: int = 1\n\g<0>")


def start_ticker(nannyd: NannydFactory) -> Nannyd:
    instance = nannyd(CLASS, name="class", start=False)
    shutil.copy(EXAMPLES / "ticker.py", "/var/lib/nannyd")
    instance.start()
    return instance


def test_running_instances_are_left_alone_if_the_administrator_says_so_and_still_start_workers(
    nannyd: NannydFactory, make_deb: Callable[..., Path]
) -> None:
    DEFAULTS.write_text("NANNYD_UPGRADE_RESTART=no\n")
    instances = [nannyd(SLEEP, name="command"), start_ticker(nannyd)]
    before = {instance.name: instance.main_pid for instance in instances}
    install(make_deb("99", speak_otherwise))
    for instance in instances:
        assert instance.main_pid == before[instance.name]
        run_command("kill", "-KILL", str(instance.worker))
        instance.wait_for_event("worker-ready", 2)
        assert instance.worker
        run_command("systemctl", "reload", instance.name)
        instance.stop()
        assert instance.show("Result") == "success"


def test_instance_left_alone_says_that_only_a_restart_makes_it_read_a_plan_of_the_new_version(
    nannyd: NannydFactory, make_deb: Callable[..., Path]
) -> None:
    DEFAULTS.write_text("NANNYD_UPGRADE_RESTART=no\n")
    instance = start_ticker(nannyd)
    worker = instance.worker
    install(make_deb("99", plan_otherwise))
    assert instance.reload(check=False).returncode != 0
    (line,) = instance.journal.messages(instance.name, NANNYD_EVENT="reload-failed")
    assert "nannyd was upgraded; this instance must be restarted before it can reload" in line
    assert line.count("\n") == 1  # the first says that the old configuration stays
    assert instance.worker == worker
    instance.restart()
    instance.reload()


def test_upgrade_asks_policy_rc_d_and_survives_a_broken_defaults_file(
    nannyd: NannydFactory, make_deb: Callable[..., Path]
) -> None:
    instance = nannyd(SLEEP)
    before = instance.main_pid
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    install(make_deb("98"))
    assert instance.main_pid == before
    POLICY.unlink()
    DEFAULTS.write_text("NANNYD_UPGRADE_RESTART='\n")
    install(make_deb("99"))
    assert instance.main_pid != before


def files() -> set[str]:
    """Return every file that a package could have left."""
    found = run_command("find", "/etc", "/usr", "/var", "/run/nannyd", "-xdev", "-print", check=False).stdout
    noise = re.compile(
        r"/var/lib/(dpkg|systemd|private)/|/var/log/(journal|dpkg)|/var/(cache|tmp)/|__pycache__"
    )
    return {line for line in found.splitlines() if not noise.search(line)}


@pytest.mark.usefixtures("make_deb")
def test_removal_stops_instances_and_purging_leaves_only_what_the_administrator_wrote(
    nannyd: NannydFactory,
) -> None:
    run_command("dpkg", "--purge", "nannyd")
    clean = files()
    assert not {path for path in clean if path.startswith("/run/nannyd")}
    install(DEB)

    instance = nannyd(SLEEP)
    worker = instance.worker
    run_command("systemctl", "enable", instance.name)
    run_command("dpkg", "--remove", "nannyd")
    assert not Path(f"/proc/{worker}").exists()
    assert instance.show("ActiveState") == "inactive"
    assert instance.show("LoadState") == "not-found"
    assert LINK.is_symlink()
    assert Path("/etc/nannyd/nannyd.toml").exists()

    install(DEB)
    assert run_command("systemctl", "is-enabled", instance.name).stdout == "enabled\n"
    assert instance.show("ActiveState") == "inactive"
    instance.start()
    worker = instance.worker
    run_command("systemctl", "--global", "enable", instance.name)
    run_command("dpkg", "--purge", "nannyd")
    assert not Path(f"/proc/{worker}").exists()
    assert files() - clean == {"/etc/nannyd", "/etc/nannyd/w.toml"}
    assert pwd.getpwnam("_nannyd")


# The units


def test_units_are_in_order() -> None:
    units = [f"/usr/lib/systemd/system/{name}" for name in ("nannyd@.service", "system-nannyd.slice")]
    result = run_command("systemd-analyze", "verify", "--man=no", *units)
    assert result.stdout + result.stderr == ""


def test_instances_lie_in_the_slice_that_can_be_limited(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    assert instance.show("Slice") == "system-nannyd.slice"
    assert (
        run_command("systemctl", "show", "-P", "Description", "system-nannyd.slice").stdout
        == "Workers of nannyd\n"
    )


def exposure(unit: str, label: str) -> float:
    """Return what systemd-analyze makes of a unit; its table is kept."""
    report = run_command("systemd-analyze", "security", "--no-pager", unit, check=False).stdout
    artifacts = Path(os.environ["NANNYD_TEST_ARTIFACTS"])
    (artifacts / f"security-{label}.txt").write_text(report)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert found is not None, report
    return float(found[1])


FIGURES = {
    EXAMPLES / "drop-ins/hardened.conf": "{} as installed, {} with this",
    Path(__file__).parents[3] / "docs/man/nannyd.8": "it is {}, and {} with",
}
"""Where an administrator finds what `exposure` returns."""


def use_drop_in(instance: Nannyd, name: str, change: tuple[str, str] = ("", "")) -> None:
    directory = UNITS / f"{instance.name}.d"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text((EXAMPLES / "drop-ins" / name).read_text().replace(*change))
    run_command("systemctl", "daemon-reload")


@pytest.mark.parametrize("example", ["redis", "python"])
def test_worker_runs_as_installed_and_hardened(nannyd: NannydFactory, example: str) -> None:
    configuration = (EXAMPLES / f"{example}.toml").read_text()
    instance = nannyd(configuration, name=example)
    figures = [exposure(instance.name, "installed")]
    use_drop_in(instance, "hardened.conf")
    figures.append(exposure(instance.name, "hardened"))
    assert figures[1] <= 2.0
    for file, words in FIGURES.items():
        assert words.format(*figures) in file.read_text()
    instance.configure(re.sub(r'limit = ".*"', 'limit = "auto"', configuration))
    instance.restart()
    assert "polled" not in instance.status
    assert re.search(r" of [\d.]+ [MG]iB ", instance.status), instance.status
    if example == "redis":
        assert run_command("redis-cli", "-p", "6400", "set", "key", "value").stdout == "OK\n"
    instance.reload()
    run_command("nannyd", "reload", example)  # as root, whom the sandbox hides from nannyd
    leaf = instance.leaf
    run_command("kill", "-KILL", str(instance.worker))
    instance.wait_for_event("worker-ready", 3)
    assert instance.leaf != leaf
    instance.stop()
    assert instance.show("Result") == "success"


def test_limit_of_the_drop_in_is_that_of_the_worker(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, start=False)
    use_drop_in(instance, "memory.conf", ("MemoryMax=4G", "MemoryMax=400M"))
    instance.start()
    assert "of 368.0 MiB" in instance.status  # less a reserve for nannyd itself


def test_instance_runs_as_the_user_of_the_drop_in(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP, start=False)
    use_drop_in(instance, "user.conf")
    instance.start()
    alice = pwd.getpwnam("alice")
    for path in (f"/proc/{instance.worker}", instance.state, Path("/run/nannyd/w")):
        assert (Path(path).stat().st_uid, Path(path).stat().st_gid) == (alice.pw_uid, alice.pw_gid)
    assert Path("/var/lib/nannyd").stat().st_uid == 0


def test_user_of_the_machine_has_instances_of_her_own(
    journal: Journal, make_deb: Callable[..., Path]
) -> None:
    """`systemctl --user start nannyd@worker1`, with what stands in ~/.config/nannyd."""
    alice = pwd.getpwnam("alice")
    place = Path(alice.pw_dir, ".config/nannyd")
    as_alice = ("runuser", "-u", "alice", "--", "env", f"XDG_RUNTIME_DIR=/run/user/{alice.pw_uid}")

    def systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_command(*as_alice, "systemctl", "--user", *words, check=check)

    run_command("loginctl", "enable-linger", "alice")
    try:
        wait_until(
            lambda: systemctl("is-system-running", check=False).stdout.strip() == "running", "her manager"
        )
        verify = ("systemd-analyze", "--user", "verify", "--man=no", "/usr/lib/systemd/user/nannyd@.service")
        assert run_command(*as_alice, *verify).stderr == ""
        place.mkdir(parents=True)
        (place / "worker1.toml").write_text(textwrap.dedent(SLEEP))
        (place / "worker1.env").write_text("NANNYD_MEMORY__LIMIT=100M\n")
        run_command("chown", "-R", "alice:alice", Path(alice.pw_dir, ".config"))
        systemctl("start", "nannyd@worker1")
        status = systemctl("show", "-P", "StatusText", "nannyd@worker1").stdout
        assert re.match(r"worker \d+ running, .* of 100.0 MiB", status)
        assert "polled" not in status
        (place / "worker1.toml").write_text("[worker]\ncommand = 1\n")
        assert systemctl("reload", "nannyd@worker1", check=False).returncode != 0
        assert journal.messages(None, NANNYD_EVENT="reload-failed")
        pid = systemctl("show", "-P", "MainPID", "nannyd@worker1").stdout
        install(make_deb("99"))
        assert systemctl("show", "-P", "MainPID", "nannyd@worker1").stdout == pid
        assert systemctl("show", "-P", "NeedDaemonReload", "nannyd@worker1").stdout == "no\n"
        systemctl("start", "nannyd@missing", check=False)
        assert systemctl("show", "-P", "ExecMainStatus", "nannyd@missing").stdout == "78\n"
        run_command("dpkg", "--remove", "nannyd")
        assert systemctl("is-active", "nannyd@worker1", check=False).stdout == "inactive\n"
        assert not Path(f"/proc/{pid.strip()}").exists()
    finally:
        run_command("loginctl", "disable-linger", "alice")
        run_command("systemctl", "stop", f"user@{alice.pw_uid}.service")
        shutil.rmtree(Path(alice.pw_dir, ".config"), ignore_errors=True)


# What goes with them


def test_test_of_the_service_that_the_package_brings_passes(tmp_path: Path) -> None:
    """The other one is run in tests/package: it takes no systemd, and longer here."""
    source, results = tmp_path / "nannyd", tmp_path / "results"
    shutil.copytree(Path(__file__).parents[3], source)
    (source / "packaging/debian").rename(source / "debian")
    (source / "debian/files").touch()  # it is built
    # The testbed is this machine, which is nobody's.
    options = ("--test-name=service", "--ignore-restrictions=isolation-container", f"--output-dir={results}")
    run_command("autopkgtest", *options, DEB, f"{source}/", "--", "null", timeout=100)
    assert (results / "summary").read_text().split() == ["service", "PASS"]


def test_operator_may_restart_and_reload_instances_and_nothing_else(
    nannyd: NannydFactory, unit: UnitFactory
) -> None:
    instance = nannyd(SLEEP)
    other = unit("other.service", "[Service]\nExecStart=sleep infinity\n")

    def may(user: str, *words: str) -> bool:
        command = ("runuser", "-u", user, "--", "systemctl", "--no-ask-password", *words)
        return run_command(*command, check=False).returncode == 0

    run_command("usermod", "--append", "--groups", "nannyd", "alice")
    try:
        before = instance.main_pid
        assert may("alice", "restart", instance.name)
        assert instance.main_pid != before
        assert may("alice", "reload", instance.name)
        assert not may("alice", "stop", instance.name)
        assert not may("alice", "enable", instance.name)
        assert not may("alice", "restart", other.name)
        assert not may("bob", "restart", instance.name)
    finally:
        run_command("gpasswd", "--delete", "alice", "nannyd")


def test_journal_explains_what_happened(nannyd: NannydFactory) -> None:
    instance = nannyd(SLEEP)
    run_command("kill", "-KILL", str(instance.worker))
    record = instance.wait_for_event("worker-failed")
    explained = run_command(
        "journalctl", "--no-pager", "-x", "-u", instance.name, "NANNYD_EVENT=worker-failed"
    ).stdout
    assert f"Subject: Worker {record['WORKER_PID']} has failed: signal" in explained
    assert "journalctl -t w" in explained
    known = run_command("journalctl", "--no-pager", "--list-catalog").stdout
    catalog = Path("/usr/lib/systemd/catalog/nannyd.catalog").read_text()
    for message_id in re.findall(r"^-- ([0-9a-f]{32})$", catalog, re.MULTILINE):
        assert f"{message_id} nannyd: " in known


@pytest.mark.parametrize("example", ["celery", "dask", "gunicorn", "python", "redis"])
def test_example_is_a_right_configuration(tmp_path: Path, example: str) -> None:
    shutil.copy(EXAMPLES / f"{example}.toml", tmp_path)
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / "broker").write_text("redis://localhost")
    checked = run_command(
        *("env", "--unset=NANNYD_TEST_ARTIFACTS", f"CREDENTIALS_DIRECTORY={secrets}"),
        *("nannyd", "check", example, f"--config-dir={tmp_path}", "--foreground"),
    )
    assert checked.stdout + checked.stderr == ""


def test_shipped_configuration_changes_nothing(tmp_path: Path) -> None:
    shipped = run_command("nannyd", "plan", "x", "--", "true").stdout
    assert shipped == run_command("nannyd", "plan", "x", f"--config-dir={tmp_path}", "--", "true").stdout
