"""Start the worker: execve(2) straight into its own session and cgroup, every failure said at once.

No Python runs between fork and exec.  posix_spawn(3) borrows the memory of the parent (so its size does
not matter), and reports what failed in the child as an errno.  Rules:

* The worker has descriptors 0 (/dev/null), 1, 2 and, for a Python worker, 3; no others.  Signals are
  default and unblocked; it leads a session of its own.
* Into a leaf it is born by `pidfd_spawn` with POSIX_SPAWN_SETCGROUP: glibc 2.39, clone3(2) with
  CLONE_INTO_CGROUP.  Where that is missing or forbidden (`RestrictNamespaces=` answers clone3 with
  ENOSYS), and for what posix_spawn does not know (nice, a controlling terminal), `enter` goes first and
  becomes the worker.
* oom_score_adj stands before user code runs: the supervisor takes on the worker's around the spawn.  Any
  process may raise its own and lower it again to what a privileged one last gave it (__set_oom_adj in
  fs/proc/base.c of the kernel); below that, the inherited one stays, as systemd does.
* What failed is looked for only after it failed.

umask and oom_score_adj are changed for an instant: one thread at a time may spawn.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nannyd.core.exits import WaitStatus
from nannyd.supervisor import diagnosis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HELPER_TIMEOUT = 10.0
"""Seconds that `enter` may take; 10 ms are normal."""

_ENTER = Path(__file__).with_name("enter.py").read_text()
"""Read once: a replaced package never mixes versions."""

_libc = ctypes.CDLL(None)

# spawn.h of glibc
_SETSIGDEF, _SETSIGMASK, _SETSID, _SETCGROUP = 0x04, 0x08, 0x80, 0x100
_SIZE = 1024
"""Bytes, more than posix_spawnattr_t (336) and posix_spawn_file_actions_t (80) take."""

_NOBODY_KNOWS = 255
"""Exit status of a child that somebody else has reaped; the same as multiprocessing's."""

_CANNOT_ENTER = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""Answers of a kernel, C library or seccomp filter that does not let clone3 choose a cgroup."""


class Leaf(Protocol):
    """What spawning needs of a `cgroup.Leaf`."""

    @property
    def fd(self) -> int:
        """The leaf's directory."""

    @property
    def path(self) -> str:
        """The leaf's directory in words."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute, and as what."""

    argv: Sequence[str]
    """Looked up in the worker's own PATH where the first has no slash."""
    environ: dict[str, str]
    working_directory: str | None
    umask: int | None
    nice: int | None
    oom_score_adj: int | None
    """None: as inherited."""
    stdout: int
    stderr: int
    channel: int | None = None
    """What the worker finds as descriptor 3."""
    sockets: int | None = None
    """What it finds as descriptor 4; only with a channel."""
    stdin: int | None = None
    """None: /dev/null."""
    terminal: bool = False
    """*stdin* is a terminal that becomes the controlling one of the new session."""


class SpawnError(Exception):
    """The worker could not be started.  The message names what failed; `errno` is the kernel's."""

    def __init__(self, what: str, number: int) -> None:
        """Say that *what* failed with errno *number*."""
        super().__init__(f"{what}: {os.strerror(number)}")
        self.errno = number


class Child:
    """A process that this one started and will reap, held by its pidfd (readable when it has ended)."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """Take over *pidfd*."""
        self.pid = pid
        self.pidfd = pidfd
        self._status: WaitStatus | None = None

    def signal(self, number: int) -> None:
        """Send signal *number*; nothing happens when the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def has_ended(self) -> bool:
        """Say whether it has ended; it stays a zombie, whose number nobody else gets."""
        return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> WaitStatus | None:
        """Return how the process ended; None while it runs."""
        if self._status is None:
            try:
                ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:  # another part of this program has reaped it, or it ignores SIGCHLD
                return WaitStatus(code=_NOBODY_KNOWS)
            if ended is not None:
                self._status = wait_status(ended.si_code, ended.si_status)
        return self._status

    def end(self) -> None:
        """Kill and reap it, where nothing else has begun to watch it; SIGKILL does not take long."""
        self.signal(signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)

    def close(self) -> None:
        """Give back the pidfd."""
        os.close(self.pidfd)


def wait_status(code: int, status: int) -> WaitStatus:
    """Return the si_code and si_status of waitid(2) in our words."""
    if code == os.CLD_EXITED:
        return WaitStatus(code=status)
    return WaitStatus(signal=status, core=code == os.CLD_DUMPED)


def can_be_born_in_cgroup() -> bool:
    """Say whether the C library has `pidfd_spawn` (glibc 2.39)."""
    return hasattr(_libc, "pidfd_spawn")


def spawn(program: Program, leaf: Leaf | None) -> Child:
    """Start *program* in *leaf*, or where this process lives.

    Its program is executed when this returns.  Raises SpawnError.
    """
    path = _executable(program)
    renice = program.nice not in (None, os.getpriority(os.PRIO_PROCESS, 0))
    try:
        if not renice and not program.terminal and (leaf is None or can_be_born_in_cgroup()):
            with suppress(_CannotEnterError):
                return spawn_directly(program, path, leaf)
        return spawn_by_helper(program, path, leaf)
    except OSError as error:
        what = diagnosis.explain(error.errno or errno.EIO, path, program.working_directory, leaf)
        raise SpawnError(*what) from None


class _CannotEnterError(Exception):
    """This system does not let a process be born in a cgroup."""


def spawn_directly(program: Program, path: str, leaf: Leaf | None) -> Child:
    """Start *program* by posix_spawn alone.  Raises OSError."""
    with _oom_score_adj(program.oom_score_adj), _umask(program.umask):
        try:
            return _posix_spawn(
                path,
                program.argv,
                program.environ,
                _inherited(program),
                program.working_directory,
                None if leaf is None else leaf.fd,
            )
        except OSError as error:
            if leaf is not None and error.errno in _CANNOT_ENTER:
                raise _CannotEnterError from None
            raise


def spawn_by_helper(program: Program, path: str, leaf: Leaf | None) -> Child:
    """Start *program* through `enter`.  Raises OSError, and SpawnError for what failed in there."""
    strings = [str(len(program.argv)), path, *program.argv, *_entries(program.environ)]
    inherited = _inherited(program)
    first = len(inherited)
    argv = [sys.executable, "-I", "-S", "-c", _ENTER]
    argv += [str(first), str(first + 1), "-1" if leaf is None else str(first + 2)]
    argv += ["" if value is None else str(value) for value in (program.nice, program.oom_score_adj)]
    argv += ["terminal"] if program.terminal else []
    with os.fdopen(os.memfd_create("nannyd-program"), "wb") as specification:
        specification.write(b"\0".join(_encode(string) for string in strings))
        specification.flush()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(reader, "rb", buffering=0) as report:
            with os.fdopen(writer, "wb", buffering=0) as far_end, _umask(program.umask):
                inherited += [specification.fileno(), far_end.fileno()]
                inherited += [] if leaf is None else [leaf.fd]
                child = _posix_spawn(argv[0], argv, {}, inherited, program.working_directory, None)
            _await(child, report.fileno(), program, path, leaf)
    return child


def _await(child: Child, report: int, program: Program, path: str, leaf: Leaf | None) -> None:
    """Return when the helper has become *program*; raise SpawnError, with *child* reaped, if it cannot."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    said = os.read(report, 100).decode() if poll.poll(HELPER_TIMEOUT * 1000) else f"enter {errno.ETIMEDOUT}"
    if not said:
        return
    child.end()
    child.close()
    step, number = said.split()
    if step == "exec":
        raise OSError(int(number), "")
    what = {
        "leaf": f"cannot enter the leaf {'' if leaf is None else leaf.path}",
        "nice": f"cannot set nice to {program.nice}",
        "oom_score_adj": f"cannot set oom_score_adj to {program.oom_score_adj}",
        "terminal": "cannot make it the controlling terminal",
    }
    raise SpawnError(what.get(step, f"cannot execute {path!r} in time"), int(number))


def _posix_spawn(
    path: str,
    argv: Sequence[str],
    environ: dict[str, str],
    inherited: Sequence[int | None],
    directory: str | None,
    cgroup: int | None,
) -> Child:
    """Execute *path* with the descriptors *inherited* (None: /dev/null) as 0, 1, …, and no others.

    Raises OSError.
    """
    actions, attributes = ctypes.create_string_buffer(_SIZE), ctypes.create_string_buffer(_SIZE)
    arguments = _strings(argv), _strings(_entries(environ))
    _call("posix_spawn_file_actions_init", actions)
    _call("posix_spawnattr_init", attributes)
    try:
        _fill_actions(actions, inherited, directory)
        _fill_attributes(attributes, cgroup)
        result = ctypes.c_int()
        start = "posix_spawn" if cgroup is None else "pidfd_spawn"
        _call(start, ctypes.byref(result), _encode(path), actions, attributes, *arguments)
    finally:
        _call("posix_spawn_file_actions_destroy", actions)
        _call("posix_spawnattr_destroy", attributes)
    if cgroup is not None:
        return Child(_libc.pidfd_getpid(result.value), result.value)
    try:
        return Child(result.value, os.pidfd_open(result.value))
    except OSError:  # no descriptor left: nobody could watch it
        os.killpg(result.value, signal.SIGKILL)  # not reaped, so the number is still its own
        os.waitid(os.P_PID, result.value, os.WEXITED)
        raise


def _fill_actions(
    actions: ctypes.Array[ctypes.c_char], inherited: Sequence[int | None], directory: str | None
) -> None:
    # A source may have the number of another's target: all move out of the way first.
    end = len(inherited)
    free = (number for number in range(end, end + 2 * end) if number not in inherited)
    moves = list(zip(inherited, free, range(end), strict=False))
    for source, aside, _ in moves:
        if source is not None:
            _call("posix_spawn_file_actions_adddup2", actions, source, aside)
    for source, aside, target in moves:
        if source is not None:
            _call("posix_spawn_file_actions_adddup2", actions, aside, target)
        else:
            _call("posix_spawn_file_actions_addopen", actions, target, b"/dev/null", os.O_RDONLY, 0)
    _call("posix_spawn_file_actions_addclosefrom_np", actions, end)
    if directory is not None:
        _call("posix_spawn_file_actions_addchdir_np", actions, _encode(directory))


def _fill_attributes(attributes: ctypes.Array[ctypes.c_char], cgroup: int | None) -> None:
    every, none = ctypes.create_string_buffer(b"\xff" * 128, 128), ctypes.create_string_buffer(128)
    _call("posix_spawnattr_setsigdefault", attributes, every)
    _call("posix_spawnattr_setsigmask", attributes, none)
    flags = _SETSIGDEF | _SETSIGMASK | _SETSID
    if cgroup is not None:
        flags |= _SETCGROUP
        _call("posix_spawnattr_setcgroup_np", attributes, cgroup)
    _call("posix_spawnattr_setflags", attributes, ctypes.c_short(flags))


def _call(function: str, *arguments: object) -> None:
    """Call a function of the posix_spawn family, all of which return an errno."""
    number = getattr(_libc, function)(*arguments)
    if number != 0:
        raise OSError(number, os.strerror(number))


def _inherited(program: Program) -> list[int | None]:
    """Return what the program finds as its descriptors 0, 1, 2 and, perhaps, 3 and 4."""
    others = [it for it in (program.channel, program.sockets) if it is not None]
    return [program.stdin, program.stdout, program.stderr, *others]


def _entries(environ: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]


def _strings(strings: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(strings) + 1))(*map(_encode, strings))


def _encode(text: str) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "")
    return encoded


@contextmanager
def _umask(mask: int | None) -> Iterator[None]:
    if mask is None:
        yield
        return
    own = os.umask(mask)
    try:
        yield
    finally:
        os.umask(own)


@contextmanager
def _oom_score_adj(value: int | None) -> Iterator[None]:
    if value is None:
        yield
        return
    file = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        own = int(os.read(file, 16))
        if own == value:
            yield
            return
        with suppress(PermissionError):
            os.pwrite(file, b"%d" % value, 0)
        try:
            yield
        finally:
            with suppress(PermissionError):
                os.pwrite(file, b"%d" % own, 0)
    finally:
        os.close(file)


def _executable(program: Program) -> str:
    """Return the path of the program; raise SpawnError where its name is not to be found."""
    name = program.argv[0]
    if "/" in name:
        return name
    search = program.environ.get("PATH", os.defpath)
    number = errno.ENOENT
    for directory in search.split(":"):
        path = f"{directory or '.'}/{name}"
        # A relative entry counts from where the worker will be.  (No Path: it interns every part of every
        # entry at each spawn, and the interpreter's table of such strings never shrinks.)
        found = os.path.join(program.working_directory or "", path)  # noqa: PTH118
        if os.path.isfile(found):  # noqa: PTH113
            if os.access(found, os.X_OK):
                return path
            number = errno.EACCES
    raise SpawnError(f"cannot find executable {name!r} in PATH={search}", number)
