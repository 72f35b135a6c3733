"""What an unprivileged process in a delegated unit can do; test_machine.py runs this as units.

Prints one JSON object.  It must run in …/supervisor, as DelegateSubgroup= makes it.
"""

import ctypes
import errno
import json
import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
POSIX_SPAWN_SETCGROUP = 0x100  # glibc >= 2.39, <spawn.h>
SPAWNATTR_SIZE = 1024  # sizeof(posix_spawnattr_t) is 336
MIB = 1 << 20


def unit_cgroup() -> Path:
    own = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::/")
    return (CGROUPS / own).parent


def fresh_leaf(name: str) -> Path:
    unit = unit_cgroup()
    (unit / "cgroup.subtree_control").write_text("+memory +pids")
    leaf = unit / name
    leaf.mkdir()
    return leaf


def tripwire() -> object:
    """Wait with poll() for a child to cross memory.high."""
    leaf = fresh_leaf("worker")
    (leaf / "memory.high").write_text(str(50 * MIB))
    events = os.open(leaf / "memory.events", os.O_RDONLY)
    os.read(events, 4096)
    eater = subprocess.Popen([sys.executable, __file__, "eat"], stdin=subprocess.PIPE)
    (leaf / "cgroup.procs").write_text(str(eater.pid))
    began = time.monotonic()
    assert eater.stdin is not None
    eater.stdin.close()  # go
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    woken = poll.poll(30_000)
    seconds = time.monotonic() - began
    current = int((leaf / "memory.current").read_text())
    os.lseek(events, 0, os.SEEK_SET)
    text = os.read(events, 4096).decode()
    (leaf / "cgroup.kill").write_text("1")
    eater.wait()
    counts = {key: int(value) for key, value in (line.split() for line in text.splitlines())}
    return {
        "woken": bool(woken and woken[0][1] & select.POLLPRI),
        "seconds": round(seconds, 3),
        "current": current,
        "events": counts,
        "status": eater.returncode,
    }


def eat() -> object:
    sys.stdin.read()
    memory = mmap.mmap(-1, 200 * MIB)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    time.sleep(60)
    return None


def spawn() -> object:
    """Spawn into a fresh leaf with pidfd_spawn(3)."""
    leaf = fresh_leaf("spawned")
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(SPAWNATTR_SIZE)
    directory = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
    libc.posix_spawnattr_init(attributes)
    libc.posix_spawnattr_setflags(attributes, ctypes.c_short(POSIX_SPAWN_SETCGROUP))
    libc.posix_spawnattr_setcgroup_np(attributes, directory)
    pidfd = ctypes.c_int(-1)
    argv = (ctypes.c_char_p * 3)(b"/bin/cat", b"/proc/self/cgroup", None)
    envp = (ctypes.c_char_p * 1)(None)
    reader, writer = os.pipe()
    actions = ctypes.create_string_buffer(SPAWNATTR_SIZE)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_adddup2(actions, writer, 1)
    error = libc.pidfd_spawn(ctypes.byref(pidfd), argv[0], actions, attributes, argv, envp)
    os.close(writer)
    if error:
        return {"errno": errno.errorcode[error]}
    result = os.waitid(os.P_PIDFD, pidfd.value, os.WEXITED)
    return {
        "cgroup": os.read(reader, 4096).decode().strip(),
        "wanted": "0::/" + str(leaf.relative_to(CGROUPS)),
        "status": result.si_status if result else None,
    }


def oom_score() -> object:
    path = Path("/proc/self/oom_score_adj")

    def write(value: int) -> str:
        try:
            path.write_text(str(value))
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]
        return "ok"

    start = path.read_text().strip()
    return {
        "start": start,
        "raise to 0": write(0),
        "lower to -500": write(-500),
        "lower to -501": write(-501),
        "end": path.read_text().strip(),
    }


def delegation() -> object:
    """Show how the unit's cgroup says that it is delegated."""
    unit = unit_cgroup()

    def attribute(name: str) -> str:
        try:
            return os.getxattr(unit, name).decode()
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]

    def owner(path: Path) -> str:
        stat = path.stat()
        return f"{stat.st_uid}:{stat.st_gid} {stat.st_mode & 0o7777:o}"

    return {
        "uid": os.getuid(),
        **{name: attribute(name) for name in ("user.delegate", "trusted.delegate")},
        "directory": owner(unit),
        **{path.name: owner(path) for path in sorted(unit.iterdir())},
    }


PROBES: dict[str, Callable[[], object]] = {
    "tripwire": tripwire,
    "eat": eat,
    "spawn": spawn,
    "oom-score": oom_score,
    "delegation": delegation,
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]]()), flush=True)
