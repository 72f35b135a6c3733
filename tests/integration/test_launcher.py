"""The command `nannyd` as a process, up to the moment in which it becomes the supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nannyd.config.run import JOURNAL
from nannyd.core.paths import lock_file, make_runtime_directory
from nannyd.core.plan import from_json

if TYPE_CHECKING:
    from pathlib import Path

TOML = """\
[worker]
command = ["sleep", "{seconds}"]
[memory]
limit = "{limit}"
[nanny.env]
DB_PASSWORD = "hush"
"""

STAND_IN = """\
#!{python} -S
import json, os, sys, time
fds = {{a.partition("=")[0]: int(a.partition("=")[2]) for a in sys.argv if "-fd=" in a}}
print(json.dumps({{
    "argv": sys.argv[1:], "plan": os.read(fds["--plan-fd"], 1 << 20).decode(),
    "open": sorted(os.listdir("/proc/self/fd")), "pid": os.getpid(), "environ": dict(os.environ),
}}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration directory with the good instance `good` and the bad instance `bad`."""
    (tmp_path / "good.toml").write_text(TOML.format(seconds="60", limit="1GiB"))
    (tmp_path / "bad.toml").write_text(TOML.format(seconds="60", limit="lots"))
    return tmp_path


def nannyd(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command and return what it did."""
    command = [sys.executable, "-m", "nannyd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def test_check_prints_nothing_for_a_good_configuration(configuration: Path) -> None:
    done = nannyd("check", "good", "--config-dir", configuration)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_prints_all_errors_of_a_bad_one_and_exits_78(configuration: Path) -> None:
    done = nannyd("check", "bad", "--config-dir", configuration, "--worker.nice=x")
    assert done.returncode == 78
    assert done.stdout == ""
    bad = f"{configuration}/bad.toml"
    assert done.stderr.splitlines() == [
        "command line: --worker.nice: 'x' is not a nice level; write a whole number from -20 to 19",
        f"{bad}: memory.limit: 'lots' is not a size; write auto, 512M, 4GiB, 0.5 or none",
    ]


def test_plan_prints_the_effective_settings(configuration: Path) -> None:
    done = nannyd("plan", "good", "--config-dir", configuration, "--memory.limit=2GiB")
    assert done.returncode == 0
    assert 'limit = "2147483648B"  # 2.0 GiB, --memory.limit' in done.stdout
    assert 'command = ["sleep", "60"]' in done.stdout
    assert "hush" not in done.stdout


def test_plan_and_explain_print_json(configuration: Path) -> None:
    plan = json.loads(nannyd("plan", "good", "--json", "--config-dir", configuration).stdout)
    assert plan["memory"]["limit"] == 1 << 30
    environ = {**os.environ, "NANNYD_MEMORY__LIMIT": "3GiB"}
    done = nannyd("explain", "good", "--json", "--config-dir", configuration, env=environ)
    (limit,) = [entry for entry in json.loads(done.stdout)["settings"] if entry["name"] == "memory.limit"]
    assert limit == {
        "name": "memory.limit",
        "value": 3 << 30,
        "origin": "NANNYD_MEMORY__LIMIT",
        "overrides": [f"{configuration}/good.toml"],
    }


def test_explain_says_where_each_variable_comes_from(configuration: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "FROM_UNIT": "1"}
    done = nannyd("explain", "good", "--config-dir", configuration, "--env", "A=b", env=environ)
    lines = {line.split("=")[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    assert lines["FROM_UNIT"] == "FROM_UNIT=1 # inherited"
    assert lines["A"] == "A=b # --env"
    assert lines["DB_PASSWORD"] == f"DB_PASSWORD=******** # {configuration}/good.toml"
    assert lines["PYTHONHASHSEED"] == "PYTHONHASHSEED=6640 # default"


def test_no_file_is_needed_for_a_command() -> None:
    assert nannyd("check", "demo", "--", "sleep", "--help").returncode == 0


def test_compile_prints_the_plan_for_the_supervisor(configuration: Path) -> None:
    done = nannyd("compile", "good", "--config-dir", configuration)
    first, shown, explained = done.stdout.splitlines()
    plan = from_json(first)
    assert plan.arguments == ["run", "good", "--config-dir", str(configuration)]
    assert plan.environ["DB_PASSWORD"] == "hush"
    assert json.loads(shown)["plan"]["settings"]["worker"]["command"] == ["sleep", "60"]
    assert json.loads(explained)["text"].startswith("# good, as it is in force\n")
    assert "hush" not in shown + explained


def test_compile_prints_all_problems_for_the_supervisor(configuration: Path) -> None:
    done = nannyd("compile", "bad", "--config-dir", configuration)
    assert done.returncode == 78
    assert [problem.split(": ")[1] for problem in json.loads(done.stdout)["problems"]] == ["memory.limit"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "a command is missing"),
        (["dance"], 2, "'dance' is not a command"),
        (["run"], 2, "arguments are required: NAME"),
        (["run", "w", "x"], 2, "unrecognized arguments: x"),
        (["run", "w", "--nope"], 2, "unrecognized arguments: --nope"),
        (["run", "w", "--env", "hush"], 2, "expected NAME=VALUE"),
        (["run", "w", "--memory.limit"], 2, "write --memory.limit=VALUE"),
        (["run", "w", "--log-level", "loud"], 2, "invalid choice: 'loud'"),
        (["check", "a/b", "--", "true"], 78, "command line: NAME: 'a/b' has a character"),
        (["reload", "../w"], 78, "command line: NAME: '../w' begins with '.'"),
        (["check", "nannyd", "--", "true"], 78, "'nannyd' is reserved"),
        (["check", "x" * 65, "--", "true"], 78, "at most 64 bytes"),
        (["check", "w", "--memory.limt=5", "--", "true"], 78, "did you mean --memory.limit?"),
    ],
)
def test_a_wrong_command_line_is_answered(arguments: list[str], status: int, words: str) -> None:
    done = nannyd(*arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "hush" not in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_setting_and_the_short_answers_do_without_pydantic() -> None:
    help_text = nannyd("run", "--help").stdout
    assert "--memory.limit VALUE" in help_text
    assert "--nanny.environ.KEY VALUE" in help_text
    assert "[restart]" in help_text
    for option in ("--help", "--version"):
        script = (
            "import sys; from nannyd.config.main import main; main([sys.argv[1]])\n"
            "sys.exit('pydantic' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, check=False)
        assert (done.returncode, b"nannyd" in done.stdout) == (0, True)


def test_a_reader_that_leaves_is_no_error(configuration: Path) -> None:
    command = [sys.executable, "-m", "nannyd", "explain", "good", "--config-dir", str(configuration)]
    environ = {**os.environ, "LONG": "x" * 100_000}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


# run


class Runner:
    """Starts `nannyd run` with a program in the supervisor's place that says how it was called."""

    def __init__(self, directory: Path, configuration: Path) -> None:
        self.configuration = configuration
        self.runtime = directory / "r"
        self.stand_in = directory / "python"
        self.stand_in.write_text(STAND_IN.format(python=sys.executable))
        self.stand_in.chmod(0o755)

    def start(
        self, *arguments: str, runtime: Path | None = None, journal: Path = JOURNAL
    ) -> subprocess.Popen[str]:
        script = (
            f"import sys; sys.executable = {str(self.stand_in)!r}\n"
            f"import pathlib, nannyd.config.run as run; run.JOURNAL = pathlib.Path({str(journal)!r})\n"
            "from nannyd.config.main import main; sys.exit(main(sys.argv[1:]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", script, "run", *arguments, "--config-dir", str(self.configuration)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "RUNTIME_DIRECTORY": str(runtime or self.runtime), "KEPT": "1"},
        )


@pytest.fixture
def runner(tmp_path: Path, configuration: Path) -> Runner:
    """A runner of the instances in `configuration`."""
    return Runner(tmp_path, configuration)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what the stand-in said."""
    assert process.stdout is not None
    result: dict[str, Any] = json.loads(process.stdout.readline())
    return result


def test_run_becomes_the_supervisor_with_plan_and_lock(runner: Runner) -> None:
    with runner.start("good", "--env", "A=b") as process:
        said = answer(process)
        process.communicate()
    plan = from_json(said["plan"].splitlines()[0])
    module, dashes = said["argv"].index("nannyd.supervisor"), said["argv"].index("--")
    plan_fd, lock_fd, directory = said["argv"][module + 1 : dashes]
    assert said["pid"] == process.pid
    assert "-I" in said["argv"][:module]
    assert (plan_fd[:10], lock_fd[:10]) == ("--plan-fd=", "--lock-fd=")
    assert directory == f"--runtime-directory={runner.runtime}"
    own = ["run", "good", "--env", "A=b", "--config-dir", str(runner.configuration)]
    assert said["argv"][dashes + 1 :] == own
    assert plan.arguments == own
    assert plan.environ["A"] == "b"
    assert said["environ"]["KEPT"] == "1"
    assert "A" not in said["environ"]
    assert len(said["open"]) == 3 + 2 + 1, "plan and lock, and the one that lists the directory"


def test_a_second_run_of_a_running_instance_is_refused_with_the_firsts_pid(runner: Runner) -> None:
    with runner.start("good") as first:
        answer(first)
        with runner.start("good") as second:
            _, complaint = second.communicate()
        assert (second.returncode, complaint) == (73, f"good is already running (pid {first.pid})\n")
        assert lock_file(runner.runtime).read_text() == f"{first.pid}\n"
        first.communicate()
    with runner.start("good") as third:
        assert answer(third)["pid"] == third.pid
        third.communicate()


def test_a_path_too_long_for_a_socket_is_refused_at_start(runner: Runner, tmp_path: Path) -> None:
    with runner.start("good", runtime=tmp_path / ("x" * 100)) as process:
        _, complaint = process.communicate()
    length = len(str(tmp_path / ("x" * 100))) + len("/notify-XXXXXXXX")
    assert process.returncode == 78
    assert f"would have {length} bytes, and the kernel takes at most 107; write a shorter name" in complaint


def test_a_runtime_directory_that_cannot_be_made_is_named(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with runner.start("good", runtime=tmp_path / "file" / "r") as process:
        _, complaint = process.communicate()
    assert process.returncode == 78
    assert complaint.startswith(f"runtime directory: {tmp_path}/file")
    assert "cannot be used" in complaint


def test_an_interpreter_that_cannot_be_executed_is_an_internal_error(runner: Runner) -> None:
    runner.stand_in.chmod(0o644)
    with runner.start("good") as process:
        _, complaint = process.communicate()
    assert process.returncode == 70
    assert complaint == f"{runner.stand_in}: the supervisor cannot be executed (Permission denied)\n"


def test_run_with_a_bad_configuration_does_not_even_make_its_directory(runner: Runner) -> None:
    with runner.start("bad") as process:
        _, complaint = process.communicate()
    assert process.returncode == 78
    assert "memory.limit: 'lots' is not a size" in complaint
    assert not runner.runtime.exists()


def test_the_journal_as_log_is_refused_where_there_is_none(runner: Runner, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with runner.start("good", "--log-format=journal", journal=journal) as process:
        _, complaint = process.communicate()
    expected = f"log format: journal: needs {journal}; write auto, text or json\n"
    assert (process.returncode, complaint) == (78, expected)


def test_complaints_to_the_journal_carry_its_priority(configuration: Path, tmp_path: Path) -> None:
    log = tmp_path / "journal"
    with log.open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [sys.executable, "-m", "nannyd", "run", "bad", "--config-dir", str(configuration)]
        subprocess.run(command, stderr=stream, env=environ, check=False)
    assert log.read_text().startswith(f"<3>{configuration}/bad.toml: memory.limit: 'lots'")


def test_a_directory_in_tmp_that_others_can_reach_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nannyd.core import paths

    parent = tmp_path / "nannyd-0"
    monkeypatch.setattr(paths, "in_tmp", lambda _: parent)
    make_runtime_directory(parent / "w")
    assert parent.stat().st_mode & 0o777 == 0o700
    parent.chmod(0o777)
    with pytest.raises(PermissionError, match="is not private"):
        make_runtime_directory(parent / "w")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    parent.rename(tmp_path / "old")
    parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="is not a directory"):
        make_runtime_directory(parent / "w")
    assert not (tmp_path / "elsewhere" / "w").exists()
