"""Enter the worker's cgroup, then become the worker: what posix_spawn(3) cannot do, done before exec.

`spawn` runs this text with `python -I -S -c`; it is no module of the supervisor.  Built-in modules only:
a bare interpreter is up in 6 ms, `import os` alone would be one more.  (A shell is faster still, but
says only 126 or 127 where the caller is owed an errno.)

Descriptors 0 to 2, or 3, are the worker's already.  Arguments: the numbers of three more descriptors
(program, report, leaf or -1), then nice and oom_score_adj, each empty where nothing is to be done, then
perhaps `terminal`: descriptor 0 is to be the controlling terminal.  The program comes in a file, not as
arguments and environment of this process, so that nothing in there can disturb the interpreter:
NUL-separated, the count of arguments, the path, the arguments, the environment.

The report is a pipe.  It is closed by a successful execve(2); before, it takes one line `STEP ERRNO`.
"""

import _signal  # type: ignore[import-not-found]  # `signal` is built upon it, and needs 4 ms for its enums
import posix
import sys


def main() -> None:
    """Do what the arguments say; return only when something failed."""
    program, report, leaf = map(int, sys.argv[1:4])
    nice, oom_score_adj = sys.argv[4:6]
    posix.set_inheritable(report, False)
    step = "leaf"
    try:
        if leaf >= 0:
            write("cgroup.procs", "0", leaf)
            posix.close(leaf)
        step = "nice"
        if nice:
            posix.setpriority(posix.PRIO_PROCESS, 0, int(nice))
        step = "oom_score_adj"
        if oom_score_adj:
            adjust(oom_score_adj)
        step = "terminal"
        if sys.argv[6:]:
            import fcntl  # nothing that a worker has to wait for
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        step = "exec"
        count, path, *strings = posix.pread(program, posix.fstat(program).st_size, 0).split(b"\0")
        posix.close(program)
        arguments, environ = strings[: int(count)], strings[int(count) :]
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # which the interpreter ignores
            _signal.signal(number, _signal.SIG_DFL)
        posix.execve(path, arguments, dict(entry.split(b"=", 1) for entry in environ))
    except OSError as error:
        posix.write(report, f"{step} {error.errno}\n".encode())


def write(path: str, text: str, directory: int | None = None) -> None:
    """Write *text* to the kernel's file at *path*."""
    file = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=directory)
    posix.write(file, text.encode())
    posix.close(file)


def adjust(oom_score_adj: str) -> None:
    """Set oom_score_adj; keep the inherited one where lowering it is not allowed, as systemd does."""
    try:
        write("/proc/self/oom_score_adj", oom_score_adj)
    except PermissionError:
        return


if __name__ == "__main__":
    main()
    posix._exit(127)  # noqa: SLF001
