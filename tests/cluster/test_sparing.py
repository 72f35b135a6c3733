"""A Dask worker and the agent import a part of distributed; nobody sees a difference."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, WORKERS

if TYPE_CHECKING:
    from .lab import Zygote


ACTIONS = [
    *("nothing", "star", "modules", "modules, reversed", "a module of another", "threads"),
    "threads that need each other",
]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("who", ["worker", "agent"])
def test_distributed_is_whole_for_whoever_looks(zygote: Zygote, parts: str, who: str, action: str) -> None:
    done = subprocess.run(
        [zygote.python, str(WORKERS / "look_at_distributed.py"), who, action],
        env={"PYTHONPATH": parts},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    plainly = [zygote.python, "-c", "import distributed; print(distributed.__version__)"]
    version = subprocess.run(plainly, capture_output=True, text=True, check=True).stdout.strip()
    assert found.pop("versions") == [version, version]
    assert found == {
        "dear": [],
        "is_whole": True,
        "is_config": True,
        "has_nonsense": False,
        "others_are_whole": True,
        "is_shown": True,
        "templates": 2,
        "left": [],
    }
