"""`nannyd run`: take the instance's name, hand the plan over, become the supervisor.

The plan travels in a memfd (`handover`) and the lock in an open file; both descriptors and the environment
go through `execve` as they are.  The supervisor runs in the same process (systemd's main process stays the
same) with a fresh interpreter that has never seen pydantic, isolated (`-I`) from PYTHONPATH and the working
directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.config.complain import complain
from nannyd.config.handover import handover
from nannyd.core.errors import ConfigError, ExitCode, Problem
from nannyd.core.paths import (
    SUPERVISED,
    interpreter,
    lock_file,
    make_runtime_directory,
    runtime_directory,
    socket_path_problem,
)
from nannyd.core.plan import LogFormat

if TYPE_CHECKING:
    from nannyd.config.compile import Compiled
    from nannyd.core.plan import Plan


JOURNAL = Path("/run/systemd/journal/socket")


class AlreadyRunningError(Exception):
    """Another process holds the instance's lock."""


def run(compiled: Compiled) -> int:
    """Become the supervisor of *compiled*; return an exit status only where that fails."""
    plan = compiled.plan
    directory = runtime_directory(plan.name, os.environ)
    too_long = socket_path_problem(directory)
    if too_long is not None:
        raise ConfigError([Problem("runtime directory", "", too_long)])
    if plan.log_format is LogFormat.JOURNAL and not JOURNAL.exists():
        # Every record would be lost, the one of this mistake included.
        raise ConfigError([Problem("log format", "journal", f"needs {JOURNAL}; write auto, text or json")])
    try:
        make_runtime_directory(directory)
        lock = take_lock(directory, plan.name)
    except AlreadyRunningError as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.ALREADY_RUNNING
    except OSError as error:
        raise ConfigError([_directory_problem(directory, error)]) from error
    command = supervisor_command(plan, write_memfd(handover(compiled)), lock, directory)
    sys.stdout.flush()
    sys.stderr.flush()
    # What is asked of us meanwhile waits until the supervisor can answer it: it takes them off the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED)
    # What `systemctl kill` sends to the whole unit may be meant for the worker, and must not be our end.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.execve(sys.executable, command, os.environ)  # noqa: S606 (no shell is meant)
    except OSError as error:
        complain([Problem(sys.executable, "", f"the supervisor cannot be executed ({error.strerror})")])
    return ExitCode.INTERNAL_ERROR


def _directory_problem(directory: Path, error: OSError) -> Problem:
    where = str(error.filename or directory)
    if error.strerror is not None and "; " in error.strerror:
        return Problem("runtime directory", where, error.strerror)
    # Of systemd's, and of root's, the place is given; and a full disk is full for all.
    ours = os.geteuid() != 0 and "RUNTIME_DIRECTORY" not in os.environ and error.errno != errno.ENOSPC
    hint = "; set XDG_RUNTIME_DIR" if ours else ""
    return Problem("runtime directory", where, f"cannot be used ({error.strerror}){hint}")


def take_lock(directory: Path, name: str) -> int:
    """Return an inheritable descriptor that holds the lock of instance *name*, with our pid in the file.

    The lock lives as long as any process has the descriptor open; `execve` keeps it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(lock_file(directory), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        who = f" (pid {holder})" if holder else ""
        raise AlreadyRunningError(f"{name} is already running{who}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    os.set_inheritable(descriptor, True)
    return descriptor


def write_memfd(content: bytes) -> int:
    """Return an inheritable descriptor from which *content* can be read."""
    descriptor = os.memfd_create("nannyd-plan", 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def supervisor_command(plan: Plan, plan_fd: int, lock_fd: int, directory: Path) -> list[str]:
    """Return the supervisor's command line; what follows `--` is nannyd's own (read by `unit`)."""
    return [
        *interpreter(os.environ),
        "-Xno_debug_ranges",  # columns in tracebacks are not worth their memory
        "-m",
        "nannyd.supervisor",
        f"--plan-fd={plan_fd}",
        f"--lock-fd={lock_fd}",
        f"--runtime-directory={directory}",
        "--",
        *plan.arguments,
    ]
