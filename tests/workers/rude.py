"""A worker that misbehaves in the ways that its options name.  Vices combine.

Standard library only, runs under any Python 3.  It says READY=1 at once unless told otherwise, then
lives until it is ended.  Forked children end by themselves after `CHILD_LIFE`, so that a broken test
leaves nothing behind for ever.

    python rude.py --ignore-sigterm --eat 200M --rate 50M
"""

from __future__ import annotations

import argparse
import array
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STARTED = time.monotonic()
CHILD_LIFE = 300
MIB = 1 << 20
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
ENDLESS = 1 << 62

held: list[mmap.mmap] = []


def size(text: str) -> int:
    """Parse `4096`, `200M`, `1.5GiB`."""
    text = text.strip().upper()
    number = text.rstrip("IB")
    factor = UNITS.get(number[-1:], 1)
    return int(float(number[:-1] if factor > 1 else number) * factor)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument

    add("--exec-marker", metavar="FILE", type=Path, help="append the monotonic time of the start to FILE")
    add("--print-environ", metavar="FILE", type=Path, help="write the environment to FILE as JSON")
    add("--print-pids", metavar="FILE", type=Path, help="append the pid of every process, this one first")

    add("--never-ready", action="store_true", help="do not say READY=1")
    add("--ready-after", metavar="S", type=float, default=0.0, help="say READY=1 after S seconds")
    add("--hang-watchdog", action="store_true", help="do not say WATCHDOG=1 (else at half of WATCHDOG_USEC)")
    add("--notify-bogus", action="store_true", help="say nonsense to the notify socket before READY=1")

    add("--ignore-sigterm", action="store_true", help="ignore SIGTERM, and so do all children")
    add("--sigterm-handler", metavar="FILE", type=Path, help="on SIGTERM append a line to FILE, then exit 0")
    add("--sigterm-delay", metavar="S", type=float, default=0.0, help="take S seconds for that")

    add("--at-usr1", action="store_true", help="begin what takes time (eat, write, flood) at SIGUSR1")
    add("--eat", metavar="SIZE", type=size, help="allocate and touch SIZE, and hold it")
    add("--leak", metavar="RATE", type=size, help="eat for ever, RATE bytes in a second")
    add("--rate", metavar="RATE", type=size, help="eat RATE bytes in a second (default: full speed)")
    add("--oom-child", action="store_true", help="let a grandchild eat (default: for ever)")
    add("--page-cache", metavar="SIZE", type=size, help="write SIZE bytes to --file")
    add("--file", metavar="PATH", type=Path, help="where --page-cache writes")
    add("--share", metavar="SIZE", type=size, help="eat SIZE, then fork --children that share the pages")
    add("--children", metavar="N", type=int, default=4, help="for --share (default 4)")

    add(
        "--fork-and-leave", metavar="N", type=int, default=0, help="fork N children that survive this process"
    )
    add("--double-fork", action="store_true", help="fork them twice; alone: one such child")
    add("--setsid", action="store_true", help="each gets a session of its own; alone: one such child")
    add("--fork-tree", metavar="N", type=int, default=0, help="fork a binary tree of N descendants")
    add("--eat-each", metavar="SIZE", type=size, help="each of the tree eats SIZE")

    add("--flood-log", metavar="LINES", help="write LINES lines to stdout, or `forever`")
    add("--close-output", action="store_true", help="close stdout and stderr")

    add("--die-after", metavar="S", type=float, help="die S seconds after the start")
    add("--die-after-ready", metavar="S", type=float, help="die S seconds after READY=1")
    add("--exit-status", metavar="N", type=int, help="how to die; alone: at once when ready (default 0)")
    add("--signal-self", metavar="NAME", help="die by this signal; alone: at once when ready")
    options = parser.parse_args()
    if options.page_cache is not None and options.file is None:
        parser.error("--page-cache needs --file")
    return options


def say(text: str) -> None:
    """Say on stdout what has been done, if there is a stdout."""
    if sys.stdout is not None:
        print(f"rude[{os.getpid()}]: {text}", flush=True)


def append(path: Path, line: str) -> None:
    """Append *line* with one write."""
    with path.open("a") as file:
        file.write(line + "\n")


def notify(message: bytes, fds: list[int] | None = None) -> None:
    """Send *message* to the notify socket, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendmsg([message], ancillary)


def notify_bogus() -> None:
    """Say what no worker should say."""
    messages = [
        b"",
        b"\n\n\n",
        b"no assignment at all",
        b"=",
        b"=value",
        b"READY=0",
        b"READY=yes\nREADY=",
        b"STATUS=\xff\xfe\x00not utf-8",
        b"WATCHDOG=banana",
        b"WATCHDOG_USEC=-1",
        b"EXTEND_TIMEOUT_USEC=-1",
        b"EXTEND_TIMEOUT_USEC=99999999999999999999999999",
        b"ERRNO=lots",
        b"MAINPID=1",
        b"X_NANNYD_ERROR={not json",
        b"STATUS=" + b"x" * 60_000,
    ]
    for message in messages:
        notify(message)
    reading, writing = os.pipe()
    notify(b"FDSTORE=1\nFDNAME=bogus", [reading, writing, 0])
    notify(b"BARRIER=1", [reading, writing])
    os.close(reading)
    os.close(writing)


def eat(amount: int, rate: int | None) -> None:
    """Allocate and touch *amount* bytes, *rate* of them in a second, and hold them."""
    began, eaten = time.monotonic(), 0
    # With a rate small bites, twenty in a second, so that memory grows evenly.
    bite = 16 * MIB if rate is None else max(mmap.PAGESIZE, min(MIB, rate // 20))
    filler = b"\xa5" * bite
    while eaten < amount:
        step = min(bite, amount - eaten)
        area = mmap.mmap(-1, step, flags=mmap.MAP_PRIVATE)
        area.write(filler[:step])
        held.append(area)
        eaten += step
        if rate is not None:
            time.sleep(max(0.0, began + eaten / rate - time.monotonic()))
    say(f"ate {eaten} bytes in {time.monotonic() - began:.3f} s")


def write_page_cache(amount: int, path: Path) -> None:
    """Write *amount* bytes to *path*."""
    block = b"\xa5" * MIB
    with path.open("wb", buffering=0) as file:
        for written in range(0, amount, MIB):
            file.write(block[: min(MIB, amount - written)])
    say(f"wrote {amount} bytes")


def flood(lines: str) -> None:
    """Write many lines to stdout as fast as it takes them."""
    line = b"rude: " + b"x" * 90 + b"\n"
    left = ENDLESS if lines == "forever" else int(lines)
    try:
        while left > 0:
            count = min(left, 600)
            left -= count
            data = line * count
            while data:
                data = data[os.write(1, data) :]
    except OSError:
        return  # nobody reads; a worker does not care


def feed_watchdog(interval: float) -> None:
    """Say WATCHDOG=1 for ever."""
    while True:
        notify(b"WATCHDOG=1")
        time.sleep(interval)


def fork(pids: Path | None) -> bool:
    """Fork and return True in the child, which does not live for ever."""
    if os.fork():
        return False
    signal.alarm(CHILD_LIFE)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a child does not write into --sigterm-handler
    if pids is not None:
        append(pids, str(os.getpid()))
    return True


def stay() -> None:
    """Do nothing more but to handle signals.

    By a descriptor: pause(2) would sleep through one that comes between Python's last look and the call.
    """
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:  # which may have the numbers of an output that was closed
        os.close(end)
    signal.set_wakeup_fd(writing)
    while True:
        select.select([reading], [], [])
        os.read(reading, 512)


def leave_child(options: argparse.Namespace) -> None:
    """Fork a child that survives this process."""
    if options.double_fork:
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            return
    if fork(options.print_pids):
        if options.setsid:
            os.setsid()
        stay()
    if options.double_fork:
        os._exit(0)


def fork_tree(options: argparse.Namespace, index: int = 0) -> None:
    """Fork the children of number *index* in a binary tree, which fork theirs."""
    for child in (2 * index + 1, 2 * index + 2):
        if child <= options.fork_tree and fork(options.print_pids):
            fork_tree(options, child)
            if options.eat_each:
                eat(options.eat_each, options.rate)
            stay()


def fork_sharers(options: argparse.Namespace) -> None:
    """Eat, and let children share it."""
    eat(options.share, None)
    for _ in range(options.children):
        if fork(options.print_pids):
            stay()


def eat_in_grandchild(options: argparse.Namespace, amount: int, rate: int | None) -> None:
    """Let a grandchild eat while this process sleeps."""
    if fork(options.print_pids):
        if fork(options.print_pids):
            eat(amount, rate)
        stay()


def install_sigterm_handler(path: Path, delay: float) -> None:
    """Write a line when SIGTERM comes, and exit with 0 after *delay*."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        append(path, f"SIGTERM {time.monotonic():.6f}")
        time.sleep(delay)
        os._exit(0)

    signal.signal(signal.SIGTERM, handle)


def die(options: argparse.Namespace) -> None:
    """End as the options say."""
    if options.signal_self:
        number = getattr(signal, options.signal_self)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    os._exit(options.exit_status or 0)


def in_background(vice: Callable[..., None], *args: object) -> None:
    """Run *vice* in a thread: the main thread stays free for signals and for the clock."""
    threading.Thread(target=vice, args=args, daemon=True).start()


def begin(options: argparse.Namespace) -> None:
    """Do what a worker does first: leave marks, set signals, fork."""
    if options.exec_marker:
        append(options.exec_marker, f"{STARTED:.6f}")
    if options.print_pids:
        append(options.print_pids, str(os.getpid()))
    if options.print_environ:
        half = options.print_environ.with_name(options.print_environ.name + ".part")
        half.write_text(json.dumps(dict(os.environ)))
        half.rename(options.print_environ)  # never seen half written
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.sigterm_handler:
        install_sigterm_handler(options.sigterm_handler, options.sigterm_delay)
    if options.close_output:
        sys.stdout = sys.stderr = None
        os.close(1)
        os.close(2)
    for _ in range(options.fork_and_leave or int(options.double_fork or options.setsid)):
        leave_child(options)
    fork_tree(options)
    if options.share:
        fork_sharers(options)


def indulge(options: argparse.Namespace) -> None:
    """Begin the vices that take time."""
    amount, rate = (ENDLESS, options.leak) if options.leak else (options.eat, options.rate)
    if options.oom_child:
        eat_in_grandchild(options, amount or ENDLESS, rate)
    if amount and not options.oom_child:
        in_background(eat, amount, rate)
    if options.page_cache:
        in_background(write_page_cache, options.page_cache, options.file)
    if options.flood_log:
        in_background(flood, options.flood_log)


def agenda(options: argparse.Namespace) -> Iterator[tuple[float, Callable[[], None]]]:
    """Yield what is to be done and when, in seconds after the start."""

    def get_ready() -> None:
        if options.notify_bogus:
            notify_bogus()
        notify(b"READY=1")
        usec = os.environ.get("WATCHDOG_USEC")
        if usec and not options.hang_watchdog:
            in_background(feed_watchdog, int(usec) / 2e6)

    ready = max(options.ready_after, 0.0)
    if not options.never_ready:
        yield ready, get_ready
    told_how = options.exit_status is not None or options.signal_self is not None
    if options.die_after_ready is not None:
        yield ready + options.die_after_ready, lambda: die(options)
    if options.die_after is not None:
        yield options.die_after, lambda: die(options)
    elif told_how and options.die_after_ready is None:
        yield ready, lambda: die(options)


def main() -> None:
    """Be rude."""
    options = arguments()
    begin(options)
    if options.at_usr1:
        signal.signal(signal.SIGUSR1, lambda *_: indulge(options))
    tasks = sorted(agenda(options), key=lambda task: task[0])
    # Whoever is ready at once says so before the vices begin, for them to happen in a known state.
    while tasks and tasks[0][0] <= 0:
        tasks.pop(0)[1]()
    if not options.at_usr1:
        indulge(options)
    for when, task in tasks:
        time.sleep(max(0.0, STARTED + when - time.monotonic()))
        task()
    stay()


if __name__ == "__main__":
    main()
