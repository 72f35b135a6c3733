"""The bootstrap of Python workers, really started, with the test in the place of the supervisor."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bootstrap_peer import Running
from harness import WORKERS, eventually, interpreters, status_of

import nannyd
from nannyd.core import wire
from nannyd.supervisor import library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a directory that holds nothing but what the supervisor gives its workers of nannyd."""
    return str(library.install(tmp_path_factory.mktemp("only nannyd's")))


@pytest.fixture
def launch(tmp_path: Path, directory: str) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a worker's process; nothing is specified yet."""
    started: list[Running] = []

    def launch(**options: Any) -> Running:
        started.append(Running.launch(directory, tmp_path, **options))
        return started[-1]

    yield launch
    for running in started:
        running.close()


@pytest.fixture
def start(launch: Callable[..., Running]) -> Callable[..., Running]:
    """Return a function that starts `classes:CLASS` as specified."""

    def start(name: str = "Good", *, environ: dict[str, str] | None = None, **spec: Any) -> Running:
        target = spec.pop("target", f"classes:{name}")
        running = launch(target=target, **(environ or {}))
        running.specify(target=target, **spec)
        return running

    return start


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """Return the file that workers write their story into."""
    return tmp_path / "story"


def lines(path: Path) -> list[str]:
    """Return the story so far."""
    return path.read_text().splitlines() if path.exists() else []


# --- a good life ----------------------------------------------------------------------------------------


def test_worker_says_ready_with_address_and_directory_and_closes_on_request(
    start: Callable[..., Running], story: Path, tmp_path: Path
) -> None:
    running = start(args=["a", "b"], kwargs={"story": str(story)}, local_directory=str(tmp_path))
    ready = running.hears("READY")
    assert ready == {
        "READY": "1",
        "X_NANNYD_ADDRESS": f"unix:{tmp_path}/socket",
        "X_NANNYD_DIRECTORY": str(tmp_path),
    }
    assert {"STATUS": "working"} in running.said
    running.ask(24.0, "memory")
    running.hears("STOPPING", "1")
    assert running.ends() == 0
    assert lines(story) == ["start a b", "close timeout=24 reason=memory"]
    assert running.stderr() == ""
    assert "X_NANNYD_ERROR" not in {key for fields in running.said for key in fields}
    assert "MAINPID" not in {key for fields in running.said for key in fields}


def test_request_without_a_signal_suffices(start: Callable[..., Running], story: Path) -> None:
    running = start(kwargs={"story": str(story)})
    running.hears("READY")
    running.ask(3.0, "restart", number=None)
    assert running.ends() == 0
    assert lines(story)[-1] == "close timeout=3 reason=restart"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_from_elsewhere_is_its_own_reason(
    start: Callable[..., Running], story: Path, number: signal.Signals
) -> None:
    running = start(kwargs={"story": str(story)}, stop_timeout=30)
    running.hears("READY")
    running.process.send_signal(number)
    assert running.ends() == 0
    assert lines(story)[-1] == f"close timeout=24 reason={number.name}"
    assert running.stderr() == ""


def test_what_nannyd_says_of_a_signal_to_all_counts(start: Callable[..., Running], story: Path) -> None:
    running = start(kwargs={"story": str(story)})
    running.hears("READY")
    running.process.send_signal(signal.SIGTERM)
    eventually(lambda: int(status_of(running.process.pid)["ShdPnd"], 16) == 0, "it has the signal")
    running.ask(3.0, "restart")
    assert running.ends() == 0
    assert lines(story)[-1] == "close timeout=3 reason=restart"


def test_close_is_called_once_however_often_the_end_is_asked_for(
    start: Callable[..., Running], story: Path
) -> None:
    running = start(kwargs={"story": str(story)})
    running.hears("READY")
    for reason in ("first", "second", "third"):
        running.ask(3.0, reason)
    assert running.ends() == 0
    assert lines(story)[1:] == ["close timeout=3 reason=first"]


def test_worker_does_not_outlive_its_supervisor(start: Callable[..., Running], story: Path) -> None:
    running = start(kwargs={"story": str(story)})
    running.hears("READY")
    running.channel.close()
    assert running.ends() == 0
    assert lines(story)[-1] == "close timeout=4 reason=nanny-gone"


def test_worker_that_cannot_close_does_not_outlive_its_supervisor_either(
    start: Callable[..., Running], story: Path
) -> None:
    running = start("ClosesForever", kwargs={"story": str(story)}, stop_timeout=0.5)
    running.hears("READY")
    running.channel.close()
    assert running.ends() == -signal.SIGALRM
    assert lines(story)[1:] == ["close timeout=0.4 reason=nanny-gone", "cancelled", "cancelled"]


def test_worker_that_finishes_is_closed_and_exits_with_0(start: Callable[..., Running], story: Path) -> None:
    running = start("Finishes", kwargs={"story": str(story)})
    assert running.ends() == 0
    assert lines(story) == ["start", "close timeout=4 reason=finished"]
    assert [key for fields in running.said for key in fields if key != "STATUS"] == [
        "READY",
        "X_NANNYD_ADDRESS",
        "STOPPING",
    ]


def test_class_that_inherits_nothing_may_have_plain_methods_and_no_finished(
    start: Callable[..., Running], story: Path
) -> None:
    running = start("Duck", kwargs={"story": str(story)})
    running.hears("READY")
    running.ask(3.0, "stop")
    assert running.ends() == 0
    assert lines(story) == ["start", "close"]


def test_class_with_nothing_but_finished_is_a_worker(start: Callable[..., Running]) -> None:
    running = start("OnlyFinished")
    assert running.ends() == 0
    assert running.count("READY") == 1


def test_worker_may_fork_and_terminate_children_without_ending_itself(
    start: Callable[..., Running], story: Path
) -> None:
    running = start("Forks", kwargs={"story": str(story)})
    running.hears("STATUS", "still here")
    assert lines(story) == ["start", f"child ended with {-signal.SIGTERM}"]
    running.ask(3.0, "stop")
    assert running.ends() == 0


# --- start, interrupted -----------------------------------------------------------------------------------


def test_stop_during_start_cancels_it_and_closes(start: Callable[..., Running], story: Path) -> None:
    running = start("StartsForever", kwargs={"story": str(story)})
    running.hears("STATUS", "starting")
    running.ask(1000.0, "stop")
    assert running.ends() == 0
    assert running.count("READY") == 0
    assert running.count("STOPPING") == 1
    *begin, last = lines(story)
    assert begin == ["starting", "start cancelled"]
    close = re.fullmatch(r"close timeout=([\d.]+) reason=stop", last)
    assert close is not None
    assert 900 < float(close[1]) <= 1000


def test_a_start_that_takes_no_notice_of_a_stop_does_not_use_up_its_time(
    start: Callable[..., Running], story: Path
) -> None:
    running = start("StartsDespiteAll", kwargs={"story": str(story)})
    running.hears("STATUS", "starting")
    running.ask(1000.0, "stop")
    assert running.ends() == 0
    assert running.count("READY") == 0
    close = re.fullmatch(r"close timeout=([\d.]+) reason=stop", lines(story)[-1])
    assert close is not None
    assert float(close[1]) > 900


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_import_ends_the_process_at_once(
    launch: Callable[..., Running], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(
        "import nannyd.worker, time\nnannyd.worker.notify(STATUS='i')\ntime.sleep(60)"
    )
    running = launch(cwd=tmp_path, target="slow:Slow")
    running.specify(target="slow:Slow")
    running.hears("STATUS", "i")
    running.ask(5.0, "stop", number)
    assert running.ends() == 0
    assert running.count("STOPPING") == 1
    assert running.stderr() == ""


def test_supervisor_that_dies_before_the_specification_ends_the_process(
    launch: Callable[..., Running],
) -> None:
    running = launch()
    running.channel.close()
    assert running.ends() == 1
    assert "the supervisor was gone" in running.stderr()


# --- failures ---------------------------------------------------------------------------------------------


def test_failing_start_arrives_as_its_traceback(start: Callable[..., Running], story: Path) -> None:
    running = start("FailsInStart", kwargs={"story": str(story)})
    assert running.ends() == 1
    stderr = running.stderr()
    assert "RuntimeError: cannot connect to the broker" in stderr
    assert "classes.py" in stderr
    assert "nannyd" not in stderr
    assert stderr.count("Traceback") == 1
    assert running.error() == stderr[-wire.ERROR_MAX :]
    assert running.count("READY") == 0
    assert lines(story) == ["close timeout=4 reason=failed"]


@pytest.mark.parametrize(
    ("name", "words", "frames"),
    [
        ("FailsInConstructor", "ValueError: no such queue: 'jöbs'", 1),
        ("Neither", "TypeError: worker class 'classes:Neither': has neither start() nor finished()", 0),
        (
            "Nowhere",
            "AttributeError: worker class 'classes:Nowhere': module 'classes' has no attribute",
            False,
        ),
        ("WORKERS.x", "has no attribute 'WORKERS'", 0),
        ("AT_IMPORT", "TypeError: worker class 'classes:AT_IMPORT': is no class, but {", 0),
    ],
)
def test_class_that_cannot_be_made_is_told(
    start: Callable[..., Running], name: str, words: str, frames: int
) -> None:
    running = start(name)
    assert running.ends() == 1
    assert words in running.error()
    assert running.error().count("  File ") == frames
    assert "nannyd" not in running.error()
    assert running.error() == running.stderr()


@pytest.mark.parametrize("target", ["nowhere:W", "nowhere.at.all:W"])
def test_missing_module_is_told_with_interpreter_and_directory(
    start: Callable[..., Running], target: str
) -> None:
    running = start(target=target)
    assert running.ends() == 1
    error = running.error()
    assert error.startswith(f"ModuleNotFoundError: worker class {target!r}: No module named 'nowhere' for ")
    assert sys.executable in error
    assert str(WORKERS) in error


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import something_missing", "ModuleNotFoundError: No module named 'something_missing'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (:", "SyntaxError"),
    ],
)
def test_failing_import_is_told_with_the_users_frames_only(
    launch: Callable[..., Running], tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    running = launch(cwd=tmp_path, target="broken:W")
    running.specify(target="broken:W")
    assert running.ends() == 1
    assert words in running.error()
    assert 'broken.py", line 1' in running.error()
    assert "importlib" not in running.error()
    assert "bootstrap" not in running.error()


def test_failure_after_ready_exits_with_1(start: Callable[..., Running], story: Path) -> None:
    running = start("FailsLater", kwargs={"story": str(story)})
    assert running.ends() == 1
    assert running.error().endswith("RuntimeError: lost the broker\n")
    assert running.count("READY") == 1
    assert lines(story) == ["start", "close timeout=4 reason=failed"]


def test_failing_close_exits_with_1(start: Callable[..., Running], story: Path) -> None:
    running = start("FailsInClose", kwargs={"story": str(story)})
    running.hears("READY")
    running.ask(3.0, "stop")
    assert running.ends() == 1
    assert "RuntimeError: cannot flush" in running.stderr()
    assert running.error().endswith("RuntimeError: cannot flush\n")


def test_close_has_its_timeout_and_no_more(start: Callable[..., Running], story: Path) -> None:
    running = start("ClosesForever", kwargs={"story": str(story)})
    running.hears("READY")
    began = time.monotonic()
    running.ask(0.3, "stop")
    assert running.ends() == 1
    assert time.monotonic() - began >= 0.3
    assert lines(story)[1:] == ["close timeout=0.3 reason=stop", "cancelled"]
    assert running.error() == "TimeoutError: close() of worker 'w1' did not end within 0.3 s\n"


@pytest.mark.parametrize("where", ["start", "finished", "close", "task"])
def test_sys_exit_is_honoured_and_the_worker_closed(
    start: Callable[..., Running], story: Path, where: str
) -> None:
    running = start("Exits", kwargs={"where": where, "status": 42, "story": str(story)})
    assert running.ends() == 42
    assert [line for line in lines(story) if line != "start"] == ["close timeout=4 reason=finished"]
    if where != "task":  # there asyncio itself says that nobody looked at the task's exception
        assert running.stderr() == ""
    assert running.count("X_NANNYD_ERROR") == 0


@pytest.mark.parametrize("where", ["import", "start", "finished", "close", "task"])
def test_text_of_sys_exit_is_told(
    start: Callable[..., Running], tmp_path: Path, story: Path, where: str
) -> None:
    (tmp_path / "early.py").write_text('import sys; sys.exit("no licence")' if where == "import" else "")
    kwargs = {"where": where, "status": "no licence", "story": str(story)}
    running = start("Exits", kwargs=kwargs, preload=[str(tmp_path / "early.py")])
    assert running.ends() == 1
    assert running.error() == "no licence"
    assert running.stderr().endswith("no licence\n")


def test_other_protocol_is_refused_with_both_versions(launch: Callable[..., Running]) -> None:
    running = launch()
    running.specify(protocol=99)
    assert running.ends() == 1
    assert "the supervisor speaks protocol 99" in running.error()
    assert f"(nannyd {nannyd.__version__}) speaks {wire.PROTOCOL}" in running.error()


# --- watchdog ---------------------------------------------------------------------------------------------


def test_watchdog_is_fed_from_ready_on_and_not_by_a_hung_loop(start: Callable[..., Running]) -> None:
    running = start("Hangs", environ={"WATCHDOG_USEC": "100000"})
    running.hears("STATUS", "hanging")
    assert "READY" in next(fields for fields in running.said if {"READY", "WATCHDOG"} & fields.keys())
    assert 2 <= running.count("WATCHDOG") <= 7  # at once, and every 50 ms of 250 ms
    time.sleep(0.3)
    before = len(running.said)
    running.drain()
    assert len(running.said) == before


def test_watchdog_of_somebody_else_is_not_fed(start: Callable[..., Running]) -> None:
    running = start("Finishes", environ={"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert running.ends() == 0
    assert running.count("WATCHDOG") == 0


# --- environment, path and isolation -----------------------------------------------------------------------


def look(running: Running, path: Path) -> dict[str, Any]:
    """Return what `classes:Looking` found."""
    running.hears("READY")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_environ_is_in_place_before_the_first_import(start: Callable[..., Running], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    running = start(
        "Looking",
        environ={"AT_EXEC": "1", "BOTH": "exec", "WATCHDOG_USEC": "60000000"},
        kwargs={"path": str(seen)},
    )
    found = look(running, seen)
    assert found["environ_at_import"]["AT_EXEC"] == "1"
    assert "NOTIFY_SOCKET" in found["environ"]
    assert "WATCHDOG_USEC" not in found["environ"]


def test_late_environ_wins_over_the_environment_at_exec(
    launch: Callable[..., Running], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    running = launch(BOTH="exec")
    running.specify(
        target="classes:Looking", kwargs={"path": str(seen)}, environ={"BOTH": "late", "NEW": "ö"}
    )
    found = look(running, seen)
    assert found["environ_at_import"]["BOTH"] == "late"
    assert found["environ_at_import"]["NEW"] == "ö"


def test_process_looks_like_a_program_of_its_own(
    start: Callable[..., Running], directory: str, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    helpers = [
        "bootstrap",
        "life",
        "preload",
        "report",
        "signals",
        "channel",
        "api",
        "wire",
        "core",
        "worker",
    ]
    running = start("Looking", kwargs={"path": str(seen), "modules": helpers})
    found = look(running, seen)
    assert found["argv"] == ["w1"]
    assert found["path"][0] == str(WORKERS)
    assert found["path"][-1] == directory
    assert found["path"].count(directory) == 1
    assert "" not in found["path"]
    assert found["modules"] == {}
    assert found["channel_inheritable"] is False


def test_venv_keeps_its_own_packages_and_gets_none_of_the_daemons(
    launch: Callable[..., Running], directory: str, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "pydantic.py").write_text("VERSION = 'fake'")
    # Somebody else's nannyd does not get between the supervisor and its own bootstrap.
    (site / "nannyd").mkdir()
    (site / "nannyd" / "__init__.py").write_text("raise ImportError('another nannyd')")
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(WORKERS / "classes.py", app)
    seen = tmp_path / "seen"
    daemons = [
        "pydantic_settings",
        "pydantic_core",
        "psutil",
        "sdnotify",
        "systemd",
        "pythonjsonlogger",
        "mypy",
    ]
    running = launch(python=str(venv / "bin" / "python"), cwd=app, target="classes:Looking")
    running.specify(
        target="classes:Looking", kwargs={"path": str(seen), "modules": ["pydantic", "nannyd", *daemons]}
    )
    found = look(running, seen)
    assert found["modules"] == {
        "pydantic": str(site / "pydantic.py"),
        "nannyd": str(Path(directory) / "nannyd" / "__init__.py"),
    }


@pytest.mark.parametrize("python", interpreters())
def test_bootstrap_runs_under_every_supported_python(
    launch: Callable[..., Running], story: Path, tmp_path: Path, python: str
) -> None:
    (tmp_path / "before.py").write_text("def nannyd_setup(worker, argv): worker.tell(f'setup {argv}')\n")
    running = launch(python=python)
    running.specify(
        kwargs={"story": str(story)},
        preload=[str(tmp_path / "before.py")],
        preload_argv=[["--x"]],
    )
    running.hears("READY")
    running.ask(3.0, "stop")
    assert running.ends() == 0
    assert running.stderr() == ""
    assert lines(story) == ["setup ['--x']", "start", "close timeout=3 reason=stop"]
    for where in ("start", "task"):
        leaving = launch(python=python)
        leaving.specify(target="classes:Exits", kwargs={"where": where, "status": 7})
        assert leaving.ends() == 7
    forking = launch(python=python)
    forking.specify(target="classes:Forks", kwargs={"story": str(story)})
    forking.hears("STATUS", "still here")
    assert lines(story)[-1] == f"child ended with {-signal.SIGTERM}"


# --- preloads ---------------------------------------------------------------------------------------------

STORYTELLER = """
NAME = __name__
async def nannyd_setup(worker): worker.tell(f"setup {NAME}")
def nannyd_teardown(worker): worker.tell(f"teardown {NAME}")
"""


def test_preloads_are_set_up_in_order_and_torn_down_in_reverse(
    launch: Callable[..., Running], tmp_path: Path, story: Path
) -> None:
    shutil.copy(WORKERS / "classes.py", tmp_path)
    (tmp_path / "first.py").write_text(STORYTELLER)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "second.py").write_text(STORYTELLER)
    (tmp_path / "third.py").write_text(
        "def nannyd_setup(worker, argv=()): worker.tell(f'setup with {argv}')\n"
        "async def nannyd_teardown(worker): worker.tell('teardown third')\n"
    )
    (tmp_path / "neither.py").write_text("")
    running = launch(cwd=tmp_path)
    running.specify(
        kwargs={"story": str(story)},
        preload=["./first.py", "pkg.second", str(tmp_path / "third.py"), "neither"],
        preload_argv=[[], [], ["--port", "1"]],
    )
    running.hears("READY")
    running.ask(3.0, "stop")
    assert running.ends() == 0
    assert lines(story) == [
        "setup first",
        "setup pkg.second",
        "setup with ['--port', '1']",
        "start",
        "close timeout=3 reason=stop",
        "teardown third",
        "teardown pkg.second",
        "teardown first",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def nannyd_setup(worker): 1 / 0", "ZeroDivisionError"),
        ("async def nannyd_setup(worker): 1 / 0", "ZeroDivisionError"),
    ],
)
def test_failing_preload_is_a_failed_start(
    launch: Callable[..., Running], tmp_path: Path, story: Path, source: str, words: str
) -> None:
    (tmp_path / "good.py").write_text(STORYTELLER)
    (tmp_path / "bad.py").write_text(source)
    running = launch()
    running.specify(
        kwargs={"story": str(story)}, preload=[str(tmp_path / "good.py"), str(tmp_path / "bad.py")]
    )
    assert running.ends() == 1
    assert words in running.error()
    assert "bad.py" in running.error()
    assert running.count("READY") == 0
    assert "start" not in lines(story)
    if "setup" in source:
        assert lines(story) == ["setup good", "close timeout=4 reason=failed", "teardown good"]


def test_failing_teardown_does_not_keep_the_others_from_theirs(
    launch: Callable[..., Running], tmp_path: Path, story: Path
) -> None:
    (tmp_path / "good.py").write_text(STORYTELLER)
    (tmp_path / "bad.py").write_text("def nannyd_teardown(worker): 1 / 0")
    running = launch()
    running.specify(
        kwargs={"story": str(story)}, preload=[str(tmp_path / "good.py"), str(tmp_path / "bad.py")]
    )
    running.hears("READY")
    running.ask(3.0, "stop")
    assert running.ends() == 1
    assert lines(story)[-1] == "teardown good"
    assert running.error().endswith("ZeroDivisionError: division by zero\n")
