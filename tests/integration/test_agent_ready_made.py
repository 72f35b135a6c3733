"""The ready-made plugins, in the agent's process, with real pip, programs and requests."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent_peer import Agent, AgentError
from harness import PATIENCE, children_of, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXITED: dict[str, Any] = {
    "pid": 9,
    "generation": 3,
    "result": "exit-code",
    "who": "the worker itself",
    "status": 7,
    "signal": None,
    "uptime": 1.5,
    "memory_peak": None,
}


def set_env(agent: Agent) -> dict[str, str | None]:
    """Return what was set last."""
    return {p["name"]: p["value"] for what, p in agent.asked if what == "set_env"}


# --- Environ ----------------------------------------------------------------------------------------------


def test_environ_sets_variables_restarts_and_takes_them_back(agent: Agent) -> None:
    answer = agent.add("nannyd.agent.plugins:Environ", environ={"A": "x", "N": 4})
    assert answer == {"name": "Environ-1", "restart": True}
    assert set_env(agent) == {"A": "x", "N": "4"}
    agent.do("plugin_remove", name="Environ-1")
    assert set_env(agent) == {"A": None, "N": None}


# --- PipInstall -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of an environment with pip and without nannyd."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    return str(venv / "bin" / "python")


@pytest.fixture
def pip_agent(launch_agent: Callable[..., Agent], python: str) -> Agent:
    """Return an agent in that environment."""
    agent = launch_agent(python=python)
    agent.specify()
    return agent


def wheel(directory: Path, name: str) -> str:
    """Make a wheel that holds one module, and return its path."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


def pip_install(agent: Agent, timeout: float, *packages: str) -> int:
    """Request the installation, without any index."""
    kwargs = {"packages": packages, "pip_options": ["--no-index"]}
    request = {"name": None, "target": "nannyd.agent.plugins:PipInstall", "kwargs": kwargs, "again": False}
    return agent.request("plugin_add", **request, timeout=timeout)


def site_of(python: str) -> Path:
    """Return where its packages are."""
    (site,) = Path(python).parent.parent.glob("lib/python3*/site-packages")
    return site


def imports(python: str, module: str) -> bool:
    """Say whether *python* can import *module*."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def test_pip_installs_into_the_workers_interpreter(pip_agent: Agent, python: str, tmp_path: Path) -> None:
    packages = [wheel(tmp_path, name) for name in ("shop_a", "shop_b")]
    answer = pip_agent.answer(pip_install(pip_agent, 60, *packages))
    assert answer == {"name": "PipInstall-1", "restart": True}
    assert imports(python, "shop_a, shop_b")
    assert pip_agent.asked == [("log_event", {"topic": "pip-install", "message": {"packages": packages}})]
    assert pip_agent.output == ""


def test_pip_says_why_it_failed(pip_agent: Agent) -> None:
    with pytest.raises(AgentError) as caught:
        pip_agent.answer(pip_install(pip_agent, 60, "no-such-package"))
    assert caught.value["type"] == "RuntimeError"
    assert caught.value["message"].startswith("pip ended with status 1: ")
    assert "No matching distribution found for no-such-package" in caught.value["message"]


def test_one_installation_at_a_time_is_done(pip_agent: Agent, python: str, tmp_path: Path) -> None:
    lock = os.open(site_of(python), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    pip_agent.add("nannyd.agent.plugins:Environ", environ={})  # the deadline is for the import, too
    late = pip_install(pip_agent, 2.0, wheel(tmp_path, "shop_late"))
    with pytest.raises(AgentError, match="in communicate"):
        pip_agent.answer(late)
    eventually(lambda: children_of(pip_agent.pid) == [], "pip is killed past its deadline")
    waiting = pip_install(pip_agent, 60, wheel(tmp_path, "shop_c"))
    eventually(lambda: children_of(pip_agent.pid), "pip waits")
    assert not imports(python, "shop_c")
    os.close(lock)
    pip_agent.answer(waiting)
    assert imports(python, "shop_c")
    assert not imports(python, "shop_late")


# --- UploadDirectory --------------------------------------------------------------------------------------

UPLOAD = "nannyd.agent.plugins:UploadDirectory"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a directory with a module in it."""
    directory = tmp_path / "source"
    (directory / "package").mkdir(parents=True)
    (directory / "package" / "__init__.py").write_text("ANSWER = 42\n")
    (directory / "link").symlink_to("package")
    return directory


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return the local directory of the instance."""
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


def answer_with(environ: dict[str, str]) -> str:
    """Return what a Python with *environ* finds in the uploaded module."""
    program = "import package; print(package.ANSWER, package.__file__)"
    return subprocess.check_output([sys.executable, "-c", program], env=environ, text=True)


def test_uploaded_directory_is_a_copy_on_the_workers_path(
    launch_agent: Callable[..., Agent], source: Path, local: Path
) -> None:
    agent = launch_agent(environ={"PYTHONPATH": "/of/the/instance"})
    agent.specify()
    agent.tell_facts(local_directory=str(local), pid=None)
    assert agent.add(UPLOAD, "u", path=str(source)) == {"name": "u", "restart": True}
    path = str(set_env(agent)["PYTHONPATH"])
    copy, other = path.split(":")
    assert (Path(copy).parent, other) == (local, "/of/the/instance")
    (source / "package" / "__init__.py").write_text("ANSWER = 43\n")
    assert answer_with({"PYTHONPATH": path}) == f"42 {copy}/package/__init__.py\n"
    assert Path(copy, "link").is_symlink()
    assert list(local.iterdir()) == [Path(copy)]
    agent.do("plugin_remove", name="u")
    assert set_env(agent)["PYTHONPATH"] is None


def test_upload_again_goes_to_the_same_place_and_a_changed_one_leaves_the_running_worker_its_own(
    agent: Agent, source: Path, local: Path
) -> None:
    agent.tell_facts(local_directory=str(local), pid=None)
    agent.add(UPLOAD, "u", path=str(source))
    first = str(set_env(agent)["PYTHONPATH"])
    worker = subprocess.Popen(["sleep", "60"], env={**os.environ, "PYTHONPATH": first})
    try:
        eventually(lambda: b"sleep" in Path(f"/proc/{worker.pid}/cmdline").read_bytes(), "it runs")
        agent.tell_facts(local_directory=str(local), pid=worker.pid, env={"PYTHONPATH": first})
        agent.add(UPLOAD, "u", path=str(source))
        assert set_env(agent)["PYTHONPATH"] == first
        (source / "new.py").touch()
        agent.add(UPLOAD, "u", path=str(source))
        second = str(set_env(agent)["PYTHONPATH"])
        assert set(local.iterdir()) == {Path(first), Path(second)}
    finally:
        worker.kill()
        worker.wait()
    agent.tell_facts(local_directory=str(local), pid=None)
    agent.add(UPLOAD, "u", path=str(source))
    assert list(local.iterdir()) == [Path(second)]


def test_two_uploads_are_both_on_the_path(agent: Agent, source: Path, local: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    agent.tell_facts(local_directory=str(local), pid=None)
    agent.add(UPLOAD, path=str(source))
    first = set_env(agent)["PYTHONPATH"]
    agent.add(UPLOAD, path=str(tmp_path / "more"))
    second, rest = str(set_env(agent)["PYTHONPATH"]).split(":")
    assert rest == first
    assert second != first


def test_missing_directory_is_named(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=f"No such file or directory: '{tmp_path}/nothing'"):
        agent.add(UPLOAD, path=str(tmp_path / "nothing"))


# --- OnExit -----------------------------------------------------------------------------------------------

ON_EXIT = "nannyd.agent.plugins:OnExit"


def test_command_is_run_on_exit(agent: Agent, tmp_path: Path) -> None:
    script = 'cat > "$1.part"; echo "$NANNYD_INSTANCE $WORKER_PID $RESULT $WHO $EXIT_STATUS <$EXIT_SIGNAL>" '
    script += '>> "$1.part"; mv "$1.part" "$1"'
    seen = tmp_path / "seen"
    agent.add(ON_EXIT, command=["sh", "-c", script, "sh", str(seen)])
    agent.tell("worker_exited", **EXITED)
    eventually(seen.exists, "the command ran")
    document, line = seen.read_text().split("}")
    assert json.loads(document + "}") == {"instance": "w1", **EXITED}
    assert line == "w1 9 exit-code the worker itself 7 <>\n"


@pytest.mark.parametrize(
    ("command", "timeout", "kind"),
    [
        (["false"], PATIENCE, "subprocess.CalledProcessError"),
        (["/no/such/program"], PATIENCE, "FileNotFoundError"),
        (["sleep", "60"], 0.3, "subprocess.TimeoutExpired"),
    ],
)
def test_command_that_fails_is_told_of(agent: Agent, command: list[str], timeout: float, kind: str) -> None:
    agent.add(ON_EXIT, "o", command=command, timeout=timeout)
    agent.tell("worker_exited", **EXITED)
    agent.until(lambda: agent.said)
    assert (agent.said[0]["error"]["where"], agent.said[0]["error"]["type"]) == ("plugin o", kind)
    assert children_of(agent.pid) == []


@pytest.fixture
def web() -> Iterator[tuple[str, list[Any]]]:
    """Return the URL of a server, and what has been posted to it; /no is refused."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(500 if self.path == "/no" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()
        thread.join()


def test_url_is_posted_to_on_exit(agent: Agent, web: tuple[str, list[Any]]) -> None:
    url, posted = web
    agent.add(ON_EXIT, url=url)
    agent.tell("worker_exited", **EXITED)
    eventually(lambda: posted, "somebody posted")
    assert posted == [("application/json", {"instance": "w1", **EXITED})]
    assert agent.said == []


def test_url_that_refuses_is_told_of(agent: Agent, web: tuple[str, list[Any]]) -> None:
    agent.add(ON_EXIT, "o", url=f"{web[0]}/no")
    agent.tell("worker_exited", **EXITED)
    agent.until(lambda: agent.said)
    assert agent.said[0]["error"]["message"] == "HTTP Error 500: Internal Server Error"


@pytest.mark.parametrize(
    ("target", "kwargs", "kind"),
    [
        (ON_EXIT, {}, "ValueError"),
        (ON_EXIT, {"command": ["true"], "url": "http://x"}, "ValueError"),
        (ON_EXIT, {"command": "true"}, "TypeError"),
        (ON_EXIT, {"url": "file:///etc/passwd"}, "ValueError"),
        ("nannyd.agent.plugins:PipInstall", {"packages": "numpy"}, "TypeError"),
        ("nannyd.agent.plugins:Environ", {}, "TypeError"),
    ],
)
def test_wrong_arguments_are_refused(agent: Agent, target: str, kwargs: dict[str, Any], kind: str) -> None:
    with pytest.raises(AgentError) as caught:
        agent.add(target, **kwargs)
    assert caught.value["type"] == kind
