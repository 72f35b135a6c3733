"""Where a supervisor lives that is part of somebody's program, and what it leaves alone there.

Nothing of the whole process is touched: no signal handler, no subreaper, no umask, no environment, no score
of the OOM killer, no garbage collector, no logging, no word to the program's own service manager.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nannyd
from nannyd.core.environ import is_private
from nannyd.core.paths import socket_path_problem
from nannyd.core.plan import (
    AgentPlan,
    KillMode,
    LogFormat,
    MemoryMode,
    MemoryPlan,
    Plan,
    PreloadFailure,
    PythonWorker,
    Ready,
    WorkerPlan,
)
from nannyd.core.restart import RestartMode, RestartPolicy
from nannyd.supervisor import scratch
from nannyd.supervisor.delegation import Delegation, is_alone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nannyd.core.memory import Thresholds

LIBRARY = Path(nannyd.__file__).resolve().parent.parent
STOP_TIMEOUT = 5.0
"""Seconds, the Nanny's."""
_RESTART = RestartPolicy(
    mode=RestartMode.NO, immediate=1, max_delay=10.0, reset_after=5.0, start_limit_burst=0
)
"""Never given up, as by Dask's, which knows no delay: workers that die young, in a row, are held back."""
_LONGEST = "nannyd-12345678"

_numbers = itertools.count(1)


def instance_name(name: object) -> str:
    """Return what an instance of the worker *name* is called here: the like of a file's name, used once."""
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", "worker" if name is None else str(name))[:40]
    return f"{readable}-{os.getpid()}-{next(_numbers)}"


def plan(name: str, target: str, kwargs: dict[str, Any], directory: str, thresholds: Thresholds) -> Plan:
    """Return the plan for a worker that is not restarted before it was ready once."""
    python = spawn.get_executable() or sys.executable
    return Plan(
        name=name,
        worker=WorkerPlan(
            command=[os.fsdecode(python)],
            python=PythonWorker(target, args=[], kwargs=kwargs, preload=[], preload_argv=[]),
            ready=Ready.NOTIFY,
            working_directory=None,
            local_directory=directory,
            umask=None,
            nice=None,
            oom_score_adj=None,
            start_timeout=None,
            stop_signal=signal.SIGTERM,
            stop_timeout=STOP_TIMEOUT,
            kill_mode=KillMode.MIXED,
            watchdog=None,
        ),
        memory=MemoryPlan(MemoryMode.AUTO, thresholds, swap=None, where="memory_limit"),
        restart=_RESTART,
        agent=AgentPlan(
            python="",
            preload=[],
            preload_argv=[],
            plugins=[],
            preload_failure=PreloadFailure.FAIL,
            memory_limit=None,
            idle_timeout=None,
        ),
        environ={},
        late_environ={},
        log_format=LogFormat.TEXT,
        log_level="info",
    )


def environ(*additions: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: *additions* to this process's, without what is for that alone."""
    found = {name: value for name, value in os.environ.items() if not is_private(name)}
    for more in additions:
        found |= more
    return found


def output() -> int:
    """Return where the worker writes: where this process does, if it has both."""
    try:
        os.fstat(1)
        os.fstat(2)
    except OSError:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - it may get the very number that is closed
            return fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, 3)
    return 1


class Rooms:
    """The directories of one nanny: one for sockets and messages, one for the scratch of its workers."""

    def __init__(self, name: str, directory: str) -> None:
        """Make them, the latter in *directory*.  Raises OSError."""
        self.runtime = Path(tempfile.mkdtemp(prefix="nannyd-", dir=_parent()))
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.scratch = scratch.place(directory, {}, name)

    def remove(self) -> None:
        """Remove them."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _parent() -> str:
    """Return a directory for temporary files in which sockets can have names."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes names of its own
        if socket_path_problem(Path(parent, _LONGEST)) is None and os.access(parent, os.W_OK | os.X_OK):
            return parent
    message = "no directory for temporary files has a path that is short enough for sockets; set TMPDIR"
    raise OSError(message)


def delegation() -> Delegation | None:
    """Return the delegated cgroup if it is this process's alone, ready for leaves."""
    if not is_alone():
        return None
    found, _ = Delegation.find()
    return found if found is not None and found.has_memory else None
