"""A booted machine: Debian under user-mode Linux, with systemd as PID 1 and cgroup v2.

A guest has a directory of its own (overlay, console, share), which goes when the guest goes.  All its
processes form one process group, which is killed at the end whatever happened: an orphan of user-mode
Linux would run on as an ordinary process of the host.

A guest has one processor, and so it gets one of the host's: where its processes hand over to each other on
several, each time a halted one has to be woken, and all takes twice as long.
"""

import fcntl
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .debian import cache_directory
from .image import Image

MEMORY_MIB = 1536
CONSOLE_TAIL = 4000  # characters


class GuestError(Exception):
    """The guest did not do what it should; the message ends with its console's last lines."""


class Guest:
    """A running guest.  Enter it to boot; leave it to kill what is left and to remove its files.

    In the guest, `share` is /mnt/share, and /dev/ttyS0 is the line that `talk` serves.
    """

    directory: Path
    share: Path
    console: Path

    def __init__(self, image: Image, *, memory_mib: int = MEMORY_MIB) -> None:
        self._image = image
        self._memory_mib = memory_mib
        self.directory = Path(tempfile.mkdtemp(prefix="nannyd-guest-"))
        self.share = self.directory / "share"
        self.console = self.directory / "console.txt"
        self.share.mkdir()
        (self.directory / "base").symlink_to(image.disk)
        (self.directory / "ld.so").symlink_to(image.loader)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._processor, self._claim = _claim_processor()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._claim.close()
        shutil.rmtree(self.directory)

    def boot(self) -> None:
        """Start the guest.  What it shall find in the share must be there already.

        After it has powered off it may be started again, with the disk as it left it.
        """
        self.kill()
        self._line, far_end = socket.socketpair()
        with far_end, self.console.open("ab") as console:
            self._process = subprocess.Popen(
                [
                    # A panic aborts, which must not leave a core dump of the guest's whole memory.
                    *("prlimit", "--core=0", "setpriv", "--pdeathsig=KILL"),
                    *("taskset", "--cpu-list", str(self._processor)),
                    *("env", f"LD_LIBRARY_PATH={self._image.libraries}", str(self._image.kernel)),
                    *self._parameters(far_end.fileno()),
                ],
                cwd=self.directory,
                env={**os.environ, "TMPDIR": _memory_directory(self._memory_mib)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[far_end.fileno()],
                process_group=0,
            )

    def talk(self, *, output: int, keyboard: int | None = None, deadline: float) -> None:
        """Copy between the guest's line and these descriptors until the guest has powered off."""
        assert self._process is not None, "boot first"
        end = os.pidfd_open(self._process.pid)
        try:
            self._copy(output, keyboard, end, deadline)
        finally:
            os.close(end)

    def kill(self) -> None:
        """End every process of the guest."""
        if self._process is None:
            return
        # The leader is not reaped before, so the group is still ours.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        if self._line is not None:
            self._line.close()

    def console_tail(self) -> str:
        return self.console.read_text(errors="replace")[-CONSOLE_TAIL:]

    def _copy(self, output: int, keyboard: int | None, end: int, deadline: float) -> None:
        line = self._line
        assert line is not None
        sources = [line.fileno(), end, *([] if keyboard is None else [keyboard])]
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError(f"the guest has not powered off in time\n{self.console_tail()}")
            ready = select.select(sources, [], [], left)[0]
            if line.fileno() in ready:
                text = line.recv(65536)
                if not text:
                    sources.remove(line.fileno())
                _write_all(output, text)
            elif end in ready:
                return
            if keyboard in ready:
                typed = os.read(keyboard, 4096)
                if not typed:
                    raise GuestError("the terminal is gone")
                line.sendall(typed)

    def _parameters(self, line: int) -> list[str]:
        return [
            "ubd0=overlay,base",
            "root=/dev/ubda",
            "rw",
            f"mem={self._memory_mib}M",
            f"hostfs={self.share}",
            f"uml_dir={self.directory}",
            "umid=guest",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            f"ssl0=fd:{line}",
            "quiet",
            "seccomp=auto",  # much faster than ptrace, where the host allows it
            "selinux=0",
            "panic=-1",
            "noreboot",
            "systemd.show_status=0",
            "systemd.crash_action=poweroff",
        ]


def _claim_processor() -> tuple[int, IO[bytes]]:
    """Return a processor for a guest, and the file that is locked as long as it is the guest's.

    Where every processor has a guest, one is shared.
    """
    processors = sorted(os.sched_getaffinity(0), reverse=True)  # the first has the most interrupts to serve
    for processor in processors:
        claim = (cache_directory() / f"processor-{processor}.lock").open("ab")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
        else:
            return processor, claim
    chosen = random.choice(processors)
    return chosen, (cache_directory() / f"processor-{chosen}.lock").open("ab")


def _memory_directory(memory_mib: int) -> str:
    """Return where the guest's memory is to live as an (unlinked, executable) file."""
    shm = Path("/dev/shm")
    try:
        stat = os.statvfs(shm)
    except OSError:
        return tempfile.gettempdir()
    roomy = stat.f_bavail * stat.f_frsize > 2 * memory_mib << 20  # another guest may be about to fill it
    return str(shm) if roomy and not stat.f_flag & os.ST_NOEXEC else tempfile.gettempdir()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
