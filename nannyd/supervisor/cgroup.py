"""The worker's leaf: a cgroup (v2) of its own for each generation.

* A leaf is fresh: a cgroup that was ever killed kills what is later born straight into it (Linux 5.14
  until "cgroup: fix spurious SIGKILL of CLONE_INTO_CGROUP children"), and its counters start from 0.
* The kernel rings (POLLPRI) on memory.events and cgroup.events only after they were read.
* A write that lowers memory.high or memory.max below the usage reclaims before it returns: that is done
  by a thread, so the event loop never waits for it.

Files and their meaning: Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.exits import Evidence, WaitStatus
from nannyd.core.memory import Reading, parse_flat_keyed, read_cgroup
from nannyd.core.procfs import parse_cgroup
from nannyd.supervisor.poll import host_oom_kills

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: Path | str, text: str, directory: int | None = None) -> None:
    """Write *text* into a file of a cgroup; *path* may be relative to *directory*.  Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def remove(directory: Path) -> bool:
    """Remove a cgroup; say whether it is gone.  It is not while somebody lives in it."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class Bell:
    """A file of a cgroup that the kernel rings (POLLPRI) when its text changes."""

    def __init__(self, directory: int, name: str, callback: Callable[[], None]) -> None:
        """Call *callback* from the running event loop after each change."""
        self._file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()  # asyncio itself does not know POLLPRI
        self._epoll.register(self._file, select.EPOLLPRI)
        self._read()
        self.listen()

    def listen(self) -> None:
        """Ring from now on; at once if the text has changed since it was last read."""
        self._loop.add_reader(self._epoll.fileno(), self._ring)

    def mute(self) -> None:
        """Do not ring until `listen`; nothing is lost."""
        self._loop.remove_reader(self._epoll.fileno())

    def close(self) -> None:
        """Give back the descriptors."""
        self.mute()
        self._epoll.close()
        os.close(self._file)

    def _ring(self) -> None:
        self._read()
        self._callback()

    def _read(self) -> None:
        with suppress(OSError):  # ENODEV: the cgroup was removed
            os.pread(self._file, 4096, 0)


class Leaf:
    """The cgroup of one generation: the worker and all it forks.  A `group.Group`."""

    def __init__(
        self, directory: Path, path: str, ancestors: list[Path], abandon: Callable[[Path], None]
    ) -> None:
        """Hold *directory*, cgroup *path*.

        *ancestors* are the directories whose limits count, the nearest first.  *abandon* takes the
        directory if it cannot be removed yet.
        """
        self.path = path
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = directory
        self._abandon = abandon
        self._ooms = {
            ancestor: count for ancestor in ancestors if (count := _local_ooms(ancestor)) is not None
        }
        self._host_oom_kills = host_oom_kills()
        self._memory_bell: Bell | None = None
        self._empty_bell: Bell | None = None
        self._wanted: dict[str, str] = {}

    # --- Memory -----------------------------------------------------------------------------------

    @property
    def memory_pressure(self) -> str | None:
        """The file that MEMORY_PRESSURE_WATCH names for the worker; None: a kernel without PSI."""
        name = "memory.pressure"
        return f"{self._directory}/{name}" if os.access(name, os.F_OK, dir_fd=self.fd) else None

    def set_limits(self, maximum: int | None, swap: int | None) -> None:
        """Put up the wall, memory.max, and memory.swap.max; who meets the wall dies with all the group."""
        with suppress(FileNotFoundError):  # a kernel without swap
            write("memory.swap.max", _bytes(swap), self.fd)
        write("memory.oom.group", "1", self.fd)
        self._limit("memory.max", maximum)

    def set_high(self, high: int | None) -> None:
        """Draw the tripwire at *high* bytes; None: lift it.  Raising is done when this returns."""
        self._limit("memory.high", high)

    def _limit(self, name: str, value: int | None) -> None:
        self._wanted[name] = _bytes(value)
        if value is None or value >= int(self._read("memory.current")):
            write(name, _bytes(value), self.fd)
            return
        file = os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        thread = threading.Thread(target=self._squeeze, args=(name, file), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the worker has used up the unit's TasksMax=
            self._squeeze(name, file)

    def _squeeze(self, name: str, file: int) -> None:
        """Write what is wanted until that was not changed meanwhile.  Linux 6.16 does not wait in here."""
        written = None
        try:
            while written != self._wanted[name]:
                written = self._wanted[name]
                with suppress(OSError):  # ENODEV: the leaf was removed
                    os.write(file, written.encode())
        finally:
            os.close(file)

    def reading(self) -> Reading:
        """Return what the leaf uses now."""
        try:
            swap = int(self._read("memory.swap.current"))
        except FileNotFoundError:
            swap = None
        return read_cgroup(
            int(self._read("memory.current")), parse_flat_keyed(self._read("memory.stat")), swap
        )

    def events(self) -> dict[str, int]:
        """Return memory.events: what happened in the leaf and below it so far."""
        return parse_flat_keyed(self._read("memory.events"))

    def watch_memory(self, callback: Callable[[], None]) -> None:
        """Call *callback* from the event loop whenever memory.events has changed."""
        self._memory_bell = Bell(self.fd, "memory.events", callback)

    def look_away(self) -> None:
        """Do not call for memory.events until `look_again`."""
        if self._memory_bell is not None:
            self._memory_bell.mute()

    def look_again(self) -> None:
        """Call for memory.events again; at once if it changed meanwhile."""
        if self._memory_bell is not None:
            self._memory_bell.listen()

    # --- Processes --------------------------------------------------------------------------------

    def begin(self, pid: int) -> None:
        """Nothing: it is born in here."""

    def pids(self) -> list[int]:
        """Return the processes of the leaf and of the cgroups that the worker made in it."""
        found: list[int] = []
        for *_, directory in os.fwalk(dir_fd=self.fd):
            # A threaded cgroup lists its processes further up; one that was just removed has none.
            with suppress(OSError):
                found.extend(map(int, self._read("cgroup.procs", directory).split()))
        return [pid for pid in found if pid != 0]  # 0: of another pid namespace

    def contains(self, pid: int) -> bool | None:
        """Say whether process *pid* lives in the leaf; None: it is gone."""
        path = cgroup_of(pid)
        return None if path is None else f"{path}/".startswith(f"{self.path}/")

    def contained(self, cgroup: int | None) -> bool | None:
        """Say whether *cgroup*, an inode, is the leaf or one that the worker made in it."""
        if cgroup is None:
            return None
        return any(os.fstat(directory).st_ino == cgroup for *_, directory in os.fwalk(dir_fd=self.fd))

    def is_empty(self) -> bool:
        """Say whether nobody is left."""
        try:
            return parse_flat_keyed(self._read("cgroup.events"))["populated"] == 0
        except OSError:  # ENODEV: the leaf was removed
            return True

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Call *callback* from the event loop when cgroup.events changes; now if nobody is left."""
        if self._empty_bell is not None:
            self._empty_bell.close()
        self._empty_bell = Bell(self.fd, "cgroup.events", callback)
        if self.is_empty():
            callback()

    def child_reaped(self) -> None:
        """Nothing: the kernel itself says when the leaf is empty."""

    def signal(self, number: int) -> None:
        """Send signal *number* to every process of the leaf."""
        for pid in self.pids():
            with suppress(ProcessLookupError, PermissionError):  # gone, or a set-user-ID program's
                self._send(pid, number)

    def _send(self, pid: int, number: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            if self.contains(pid):  # the number was not taken over by somebody else meanwhile
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)

    def kill(self) -> None:
        """Kill every process of the leaf, forks in flight too."""
        try:
            write("cgroup.kill", "1", self.fd)
        except FileNotFoundError:  # Linux < 5.14
            self.signal(signal.SIGKILL)
        except OSError as error:
            if error.errno != errno.ENODEV:  # removed: nobody is left to kill
                raise

    # --- The end ----------------------------------------------------------------------------------

    def evidence(self, status: WaitStatus) -> Evidence:
        """Return how the worker ended, and what the kernel counted for its leaf and above."""
        try:
            events = self.events()
        except OSError:  # no memory controller
            now = host_oom_kills()
            struck = now is None or self._host_oom_kills is None or now > self._host_oom_kills
            return Evidence(status, oomd=self._oomd(), counted=False, host_oom_kills=struck)
        return Evidence(
            status,
            oom_kill=events["oom_kill"] > 0,
            # Of the leaf or below it: a limit that the worker set for a part of itself is its own, too.
            oom_own=events["oom"] > 0,
            oom_ancestor=self._ancestor_out_of_memory(),
            oomd=self._oomd(),
            memory_peak=self.memory_peak(),
        )

    def memory_peak(self) -> int | None:
        """Return the most that the leaf ever used, in bytes; None: Linux < 5.19."""
        try:
            return int(self._read("memory.peak"))
        except OSError:
            return None

    def _ancestor_out_of_memory(self) -> str | None:
        for ancestor, before in self._ooms.items():
            if (_local_ooms(ancestor) or 0) > before:
                above = self._directory.relative_to(ancestor)
                return self.path.removesuffix(f"/{above}") or "/"
        return None

    def _oomd(self) -> bool:
        for mark in ("user.oomd_kill", "user.oomd_ooms"):  # systemd-oomd.service(8)
            with suppress(OSError):
                if int(os.getxattr(self.fd, mark)) > 0:
                    return True
        return False

    def close(self) -> None:
        """Remove the leaf and what the worker made in it; give back the descriptors."""
        for bell in (self._memory_bell, self._empty_bell):
            if bell is not None:
                bell.close()
        # Whom they call refers to this leaf: cut, and all of it is freed now, not at some later collection.
        self._memory_bell = self._empty_bell = None
        for _, names, _, directory in os.fwalk(topdown=False, dir_fd=self.fd):
            for name in names:
                with suppress(OSError):
                    os.rmdir(name, dir_fd=directory)
        os.close(self.fd)
        if not remove(self._directory):
            self._abandon(self._directory)

    def _read(self, name: str, directory: int | None = None) -> str:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags, dir_fd=self.fd if directory is None else directory)

        with open(name, opener=opener) as file:
            return file.read()


def cgroup_of(pid: int) -> str | None:
    """Return the path of the cgroup that process *pid* lives in; None: it is gone."""
    try:
        return parse_cgroup(Path(f"/proc/{pid}/cgroup").read_text()).get("", "")
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_in_leaf(path: str, own: str) -> bool:
    """Say whether cgroup *path* is in the leaf of a worker, ours or another instance's.

    What is around *own*, our cgroup, too, is no such leaf to us: we may run within a worker ourselves.
    """
    inner = path.removeprefix(os.path.commonpath((path, own)))
    return any(name.startswith("worker-") and name[7:].isdigit() for name in inner.split("/"))


def _bytes(value: int | None) -> str:
    return "max" if value is None else str(value)


def _local_ooms(directory: Path) -> int | None:
    """Return how often the limit of *directory* itself was met beyond reclaim; None: it has none."""
    try:
        # No new Path for each worker: the interpreter's table of interned strings never shrinks.
        with open(f"{directory}/memory.events.local") as file:  # noqa: PTH123
            return parse_flat_keyed(file.read())["oom"]
    except (OSError, KeyError):  # the root of all; Linux < 5.2
        return None
