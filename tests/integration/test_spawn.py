"""Real processes, started on both ways: by posix_spawn alone, and through the helper."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import end_of

from nannyd.core.exits import WaitStatus
from nannyd.supervisor import spawn as spawning
from nannyd.supervisor.spawn import Program, SpawnError, spawn, spawn_by_helper, spawn_directly

WAYS = [pytest.param(None, id="directly"), pytest.param(7, id="by-helper")]
"""nice: a value of its own takes the helper."""

INSPECTOR = r"""
import json, os
status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except FileNotFoundError:
        pass  # the listing itself
print(json.dumps({
    "fds": fds, "sid": os.getsid(0), "cwd": os.getcwd(), "nice": os.nice(0),
    "umask": status["Umask"].strip(),
    "oom": int(open("/proc/self/oom_score_adj").read()),
}))
"""


def descriptors() -> list[int]:
    """Return the numbers of our own."""
    return sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists())


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = descriptors()
    own = os.getpriority(os.PRIO_PROCESS, 0), Path("/proc/self/oom_score_adj").read_text()
    yield
    assert descriptors() == before
    assert own == (os.getpriority(os.PRIO_PROCESS, 0), Path("/proc/self/oom_score_adj").read_text())
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


def program(*argv: str, **changes: Any) -> Program:
    default = Program(
        argv=argv,
        environ={"PATH": "/usr/bin:/bin"},
        working_directory=None,
        umask=None,
        nice=None,
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        stdout=1,
        stderr=2,
    )
    return replace(default, **changes)


def run(*argv: str, **changes: Any) -> str:
    """Return what a program writes that ends well."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # that it is would be the caller's mistake
    child = spawn(program(*argv, **{"stdout": writer, **changes}), None)
    os.close(writer)
    with os.fdopen(reader, errors="surrogateescape") as file:
        text = file.read()
    assert end_of(child) == WaitStatus(code=0)
    return text


def inspect(**changes: Any) -> dict[str, Any]:
    """Start something that says what it was given."""
    said: dict[str, Any] = json.loads(run(sys.executable, "-I", "-S", "-c", INSPECTOR, **changes))
    return said


@pytest.mark.parametrize("nice", WAYS)
def test_the_worker_has_three_descriptors_and_no_others(nice: int | None) -> None:
    stray = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(stray, True)
    fds = inspect(nice=nice)["fds"]
    os.close(stray)
    assert sorted(fds) == ["0", "1", "2"]
    assert fds["0"] == "/dev/null"


@pytest.mark.parametrize("nice", WAYS)
def test_a_channel_becomes_descriptor_3(nice: int | None) -> None:
    channel = os.memfd_create("channel")
    fds = inspect(nice=nice, channel=channel)["fds"]
    os.close(channel)
    assert sorted(fds) == ["0", "1", "2", "3"]
    assert "channel" in fds["3"]


@pytest.mark.parametrize("nice", WAYS)
def test_a_socket_for_descriptors_becomes_descriptor_4(nice: int | None) -> None:
    channel, sockets = os.memfd_create("channel"), os.memfd_create("sockets")
    fds = inspect(nice=nice, channel=channel, sockets=sockets)["fds"]
    os.close(channel)
    os.close(sockets)
    assert sorted(fds) == ["0", "1", "2", "3", "4"]
    assert "channel" in fds["3"]
    assert "sockets" in fds["4"]


COLLISIONS = """
import fcntl, os, sys
from nannyd.supervisor.spawn import Program, spawn

nice, out = eval(sys.argv[1]), sys.argv[2]
files = [fcntl.fcntl(os.memfd_create(name), fcntl.F_DUPFD_CLOEXEC, 50) for name in "abcdef"]
code = 'names=$(readlink /proc/$$/fd/1 /proc/$$/fd/2 /proc/$$/fd/3); echo $names >>"$OUT"'
environ = {"PATH": "/usr/bin:/bin", "OUT": out}
for sources in ((2, 3, 1), (3, 1, 2), (1, 1, 1), (0, 4, 0), (5, 4, 3)):
    for number, file in enumerate(files):
        os.dup2(file, number)
    child = spawn(Program(["sh", "-c", code], environ, None, None, nice, 500, *sources), None)
    os.waitpid(child.pid, 0)
    child.close()
"""


@pytest.mark.parametrize("nice", WAYS)
def test_sources_may_have_the_numbers_of_each_others_targets(nice: int | None, tmp_path: Path) -> None:
    """In a process of its own, whose descriptors 0 to 5 are the files a to f."""
    subprocess.run([sys.executable, "-c", COLLISIONS, str(nice), str(tmp_path / "out")], check=True)
    rows = (tmp_path / "out").read_text().replace("(deleted)", "").replace("/memfd:", "").split("\n")
    assert [row.replace(" ", "") for row in rows[:-1]] == ["cdb", "dbc", "bbb", "aea", "fed"]


@pytest.mark.parametrize("nice", WAYS)
def test_signals_are_default_and_unblocked_whatever_the_supervisor_does(nice: int | None) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        said = run("cat", "/proc/self/status", nice=nice)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGUSR1, before)
    for field in ("SigIgn", "SigBlk", "SigPnd", "ShdPnd"):
        assert f"{field}:\t0000000000000000\n" in said


@pytest.mark.parametrize("nice", WAYS)
def test_the_worker_leads_a_session_of_its_own(nice: int | None) -> None:
    said = inspect(nice=nice)
    assert said["sid"] != os.getsid(0)


@pytest.mark.parametrize("nice", WAYS)
def test_working_directory_umask_and_oom_score_adj_are_as_configured(
    nice: int | None, tmp_path: Path
) -> None:
    said = inspect(nice=nice, working_directory=str(tmp_path), umask=0o027, oom_score_adj=321)
    assert said["cwd"] == str(tmp_path)
    assert said["umask"] == "0027"
    assert said["oom"] == 321
    assert said["nice"] == (nice or 0)


@pytest.mark.parametrize("nice", WAYS)
def test_the_environment_arrives_as_it_is_and_nothing_is_added(nice: int | None) -> None:
    given = {"A": "b=c", "EMPTY": "", "LINES": "one\ntwo", "BYTES": "\udcff", "PYTHONHOME": "/nonexistent"}
    said = run("env", "-0", environ=given, nice=nice)
    assert dict(entry.split("=", 1) for entry in said.split("\0")[:-1]) == given


@pytest.mark.parametrize("nice", WAYS)
def test_arguments_arrive_as_they_are(nice: int | None) -> None:
    strings = ["", "-c", "a b", "ä", "\udcff", "x\n"]
    assert run("printf", "%s|", *strings, nice=nice) == "|".join(strings) + "|"


@pytest.mark.parametrize("nice", WAYS)
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 3", WaitStatus(code=3)),
        ("kill -USR1 $$", WaitStatus(signal=signal.SIGUSR1)),
        ("kill -KILL $$", WaitStatus(signal=signal.SIGKILL)),
    ],
)
def test_the_end_is_told_as_it_was(nice: int | None, script: str, status: WaitStatus) -> None:
    assert end_of(spawn(program("sh", "-c", script, nice=nice), None)) == status


@pytest.mark.parametrize("nice", WAYS)
def test_a_signal_reaches_the_worker_which_runs_until_then(nice: int | None) -> None:
    child = spawn(program("sleep", "60", nice=nice), None)
    assert child.reap() is None
    child.signal(signal.SIGTERM)
    assert end_of(child) == WaitStatus(signal=signal.SIGTERM)


def _script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("nice", WAYS)
@pytest.mark.parametrize(
    ("make", "changes", "number", "named"),
    [
        (lambda tmp: [f"{tmp}/no"], {}, errno.ENOENT, "cannot execute '{tmp}/no'"),
        (lambda _: ["no"], {}, errno.ENOENT, "executable 'no' in PATH=/usr/bin:/bin"),
        (lambda _: ["true"], {"environ": {"PATH": "/nix"}}, errno.ENOENT, "executable 'true' in PATH=/nix"),
        (lambda tmp: [f"{tmp}"], {}, errno.EACCES, "cannot execute '{tmp}'"),
        (lambda _: ["/etc/passwd"], {}, errno.EACCES, "cannot execute '/etc/passwd'"),
        (lambda _: ["/etc/passwd/x"], {}, errno.ENOTDIR, "cannot execute '/etc/passwd/x'"),
        (
            lambda _: ["true"],
            {"working_directory": "/nix/da"},
            errno.ENOENT,
            "cannot enter working directory '/nix/da'",
        ),
        (
            lambda _: ["true"],
            {"working_directory": "/etc/passwd"},
            errno.ENOTDIR,
            "cannot enter working directory '/etc/passwd'",
        ),
        (
            lambda tmp: [_script(tmp / "s", "#!/nix/python -u\n")],
            {},
            errno.ENOENT,
            "cannot execute '/nix/python', the interpreter of script '{tmp}/s'",
        ),
        (
            lambda tmp: [_script(tmp / "s", "#! /etc/passwd\n")],
            {},
            errno.EACCES,
            "cannot execute '/etc/passwd', the interpreter of script '{tmp}/s'",
        ),
        (lambda tmp: [_script(tmp / "s", "echo hello\n")], {}, errno.ENOEXEC, "no script with #!"),
        (lambda _: ["true", "a\0b"], {}, errno.EINVAL, "arguments and environment"),
        (lambda _: ["true", "x" * (1 << 20)], {}, errno.E2BIG, "true"),
    ],
)
def test_what_failed_before_exec_is_named_with_its_errno(
    nice: int | None, make: Any, changes: dict[str, Any], number: int, named: str, tmp_path: Path
) -> None:
    with pytest.raises(SpawnError) as caught:
        spawn(program(*make(tmp_path), nice=nice, **changes), None)
    assert caught.value.errno == number
    assert named.format(tmp=tmp_path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)


def test_a_program_without_its_loader_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    image = Path("/bin/true").read_bytes()
    start = image.index(b"/lib")
    lost = image[:start] + b"/nix" + image[start + 4 :]
    (tmp_path / "lost").write_bytes(lost)
    (tmp_path / "lost").chmod(0o755)
    with pytest.raises(SpawnError, match="dynamic loader") as caught:
        spawn(program(str(tmp_path / "lost")), None)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("nice", WAYS)
def test_the_program_is_found_in_the_workers_path_and_directory(nice: int | None, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    _script(tmp_path / "bin" / "mine", "#!/bin/sh\nexit 5\n")
    for changes in (
        {"environ": {"PATH": f"/nix:{tmp_path}/bin"}},
        {"environ": {"PATH": "bin"}, "working_directory": str(tmp_path)},
    ):
        assert end_of(spawn(program("mine", nice=nice, **changes), None)) == WaitStatus(code=5)
    beside = program("bin/mine", nice=nice, working_directory=str(tmp_path))
    assert end_of(spawn(beside, None)) == WaitStatus(code=5)


class FakeLeaf:
    """A directory as the helper sees a leaf."""

    def __init__(self, directory: Path) -> None:
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.path = "/test/worker-1"


@pytest.fixture
def leaf(tmp_path: Path) -> Iterator[FakeLeaf]:
    leaf = FakeLeaf(tmp_path)
    yield leaf
    os.close(leaf.fd)


def test_the_helper_enters_the_leaf(leaf: FakeLeaf, tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    child = spawn_by_helper(program("true"), "/bin/true", leaf)
    assert end_of(child) == WaitStatus(code=0)
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_a_leaf_that_cannot_be_entered_is_named(leaf: FakeLeaf) -> None:
    with pytest.raises(SpawnError, match="cannot enter the leaf /test/worker-1") as caught:
        spawn_by_helper(program("true"), "/bin/true", leaf)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SpawnError, match="cannot enter the leaf /test/worker-1"):
        spawn(program("true"), leaf)


def test_a_helper_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawning, "HELPER_TIMEOUT", 0.05)
    monkeypatch.setattr(spawning, "_ENTER", "while True: pass")
    with pytest.raises(SpawnError, match="in time") as caught:
        spawn_by_helper(program("true"), "/bin/true", None)
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("nice", WAYS)
def test_with_too_few_free_descriptors_the_spawn_fails_and_nothing_stays(nice: int | None, free: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    sleeper = program("sleep", "60", nice=nice)
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(free if nice else min(free, 1)):  # to spawn directly takes two
            os.close(taken.pop())
        with pytest.raises(SpawnError) as caught:
            spawn(sleeper, None)
        assert caught.value.errno == errno.EMFILE
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("way", [spawn_directly, spawn_by_helper])
def test_two_hundred_spawns_leak_nothing(way: Any) -> None:
    before = descriptors()
    for _ in range(200):
        assert end_of(way(program("true"), "/bin/true", None)) == WaitStatus(code=0)
    assert descriptors() == before


def test_files_are_made_with_the_workers_umask_and_ours_is_unchanged(tmp_path: Path) -> None:
    own = os.umask(0o022)
    os.umask(own)
    for nice in (None, 5):
        target = tmp_path / f"made-{nice}"
        end_of(spawn(program("touch", str(target), umask=0o077, nice=nice), None))
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.umask(own) == own
