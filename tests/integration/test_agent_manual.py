"""The page for authors of plugins: its examples run, and it says what there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nannyd.agent import MemoryReading, Nanny, NannyPlugin, WorkerExited, WorkerStarted, plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_peer import Agent

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs/plugins.md").read_text()
EXAMPLE, PRELOAD = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
READY_MADE = [
    name
    for name, value in vars(plugins).items()
    if inspect.isclass(value) and issubclass(value, NannyPlugin) and value is not NannyPlugin
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a directory with the modules of the examples."""
    (tmp_path / "site" / "shop").mkdir(parents=True)
    (tmp_path / "site" / "shop" / "nanny.py").write_text(EXAMPLE)
    (tmp_path / "site" / "shop" / "tracing.py").write_text(PRELOAD)
    return tmp_path / "site"


def test_example_works(launch_agent: Callable[..., Agent], shop: Path, tmp_path: Path) -> None:
    log = tmp_path / "ends"
    agent = launch_agent(environ={"PYTHONPATH": str(shop)})
    plugin = {"name": None, "target": "shop.nanny:SafeMode", "kwargs": {"log": str(log), "crashes": 2}}
    preload = {"preload": ["shop.tracing"], "preload_argv": [["--sample", "0.1"]]}
    agent.specify(**preload, plugins=[plugin])
    assert agent.do("setup", again=False) == {"failed": [], "plugins": ["safe-mode"]}
    assert agent.asked == [("log_event", {"topic": "tracing", "message": ["--sample", "0.1"]})]
    agent.asked.clear()
    agent.tell("memory_warning", working_set=90, limit=100)
    agent.until(lambda: agent.asked)
    for generation, result in enumerate(["signal", "memory", "signal", "exit-code"], 1):
        agent.tell("worker_exited", generation=generation, result=result, signal="SIGSEGV", uptime=1.5)
    agent.until(lambda: len(agent.asked) == 3)
    assert agent.asked == [
        ("log_event", {"topic": "safe-mode", "message": {"working_set": 90, "limit": 100}}),
        ("set_env", {"plugin": "safe-mode", "name": "SHOP_SAFE_MODE", "value": "1"}),
        ("log_event", {"topic": "safe-mode", "message": "on after 2 crashes"}),
    ]
    assert agent.do("teardown") == {"failed": []}
    lines = log.read_text().splitlines()
    assert (len(lines), lines[0], lines[4]) == (5, "1 signal SIGSEGV 1.5 s", "no longer watched")
    assert (agent.said, agent.output) == ([], "")


def test_types_of_the_example_are_right(shop: Path) -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", str(shop / "shop" / "nanny.py")]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", ["docs/plugins.md", "docs/man/nannyd-plugins.7"])
def test_page_has_every_name_that_an_author_may_use(path: str) -> None:
    words = set(re.findall(r"\w+", (TOP / path).read_text()))
    told = {field.name for kind in (WorkerStarted, WorkerExited, MemoryReading) for field in fields(kind)}
    methods = {name for kind in (NannyPlugin, Nanny) for name in vars(kind) if not name.startswith("_")}
    assert told | methods | {"env", *READY_MADE} <= words
