"""Run the system tests, a script or a shell in a freshly booted Debian.

    python -m tests.system.run [--suite SUITE] [--timeout SECONDS] [PYTEST-ARGUMENT…]
    python -m tests.system.run [--suite SUITE] --exec FILE.py|FILE.sh [ARGUMENT…]
    python -m tests.system.run [--suite SUITE] --shell

Run it from the root of a checkout.  The guest gets the files that git knows or would add, and nannyd as it
is built from them: in Debian 13 (trixie) its package, in Debian 12 (bookworm), which cannot install that, by
pip.  The exit status is that of pytest or the script.  A guest that ends without the token of this run has
failed, whatever else it said.

Journal, console, core dumps and junit.xml are kept in $NANNYD_TEST_ARTIFACTS, or else, only after a
failure, in a temporary directory that is printed.
"""

import argparse
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from .chroot import cached_deb, pack, source_files
from .debian import DebianError
from .image import DEFAULT, SUITES, Image, base_image
from .machine import MEMORY_MIB, Guest, GuestError

AGAIN = "again"
"""File of the share with the arguments of the pytest that a test wants to be run after a reboot."""
GUEST_TESTS = {"trixie": "tests/system/guest", "bookworm": "tests/system/guest/test_debian_12.py"}
MAIN = Path(__file__).with_name("main.sh")
FAILED = 1
DEADLINE = 1200.0  # a multiple of what all tests take; each has a limit of its own
EXPORT_TIME = 30.0  # how long before the deadline the guest stops by itself, to save its journal
SHELL_TIMEOUT = 24 * 3600.0
EX_SOFTWARE = 70

PYTEST = (
    *("env", "PYTHONDONTWRITEBYTECODE=1", "python3", "-P", "-m", "pytest"),  # -P: test what is installed
    *("-v", "-p", "no:cacheprovider", "--junitxml=/mnt/share/artifacts/junit.xml"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """What the guest is asked to do."""

    command: tuple[str, ...]  # empty: an interactive shell
    timeout: float
    suite: str

    def script(self, token: str) -> str:
        """Return the assignments that main.sh reads."""
        columns, rows = shutil.get_terminal_size()
        variables = {
            "token": token,
            "suite": self.suite,
            "mode": "run" if self.command else "shell",
            "time_limit": f"{max(self.timeout - EXPORT_TIME, 1.0):.0f}",
            "columns": str(columns),
            "rows": str(rows),
            "TERM": os.environ.get("TERM", "dumb"),
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        return "\n".join([*lines, "export TERM", shlex.join(["set", "--", *self.command]), ""])


def main() -> int:
    job = parse_arguments(sys.argv[1:])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_on_signal)
    try:
        return run_job(job, base_image(job.suite))
    except DebianError as error:
        print(f"tests.system: {error}", file=sys.stderr)
        return EX_SOFTWARE


def parse_arguments(arguments: list[str]) -> Job:
    parser = argparse.ArgumentParser(prog="python -m tests.system.run", allow_abbrev=False)
    parser.add_argument("--timeout", type=float, default=DEADLINE, metavar="SECONDS")
    parser.add_argument("--suite", choices=SUITES, default=DEFAULT)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--shell", action="store_true", help="an interactive root shell")
    mode.add_argument("--exec", nargs=argparse.REMAINDER, metavar="FILE", help="run FILE.py or FILE.sh")
    options, rest = parser.parse_known_args(arguments)
    if options.shell:
        if not sys.stdin.isatty():
            parser.error("--shell takes a terminal; use --exec for a script")
        return Job((), SHELL_TIMEOUT, options.suite)
    if options.exec is not None:
        return Job(_interpreted(parser, options.exec), options.timeout, options.suite)
    colour = "yes" if sys.stdout.isatty() else "no"
    paths = [] if any(Path(word.split("::")[0]).exists() for word in rest) else [GUEST_TESTS[options.suite]]
    return Job((*PYTEST, f"--color={colour}", *rest, *paths), options.timeout, options.suite)


def run_job(job: Job, image: Image) -> int:
    """Boot a guest, let it do the job, and return the job's exit status."""
    token = secrets.token_hex(8)
    deadline = time.monotonic() + job.timeout
    with Guest(image, memory_mib=int(os.environ.get("NANNYD_TEST_MEMORY", MEMORY_MIB))) as guest:
        _fill(guest.share, job, token)
        guest.boot()
        status: int | None = None
        try:
            if job.command:
                guest.talk(output=sys.stdout.fileno(), deadline=deadline)
            else:
                with _raw_terminal():
                    guest.talk(output=sys.stdout.fileno(), keyboard=sys.stdin.fileno(), deadline=deadline)
            status = _read_result(guest, token)
            if job.command and (guest.share / AGAIN).exists():
                status = _second_boot(guest, job, token, deadline) or status
        except GuestError as error:
            print(f"\ntests.system: {error}", file=sys.stderr)
        finally:
            _keep_artifacts(guest, failed=bool(job.command) and status != 0)
    return FAILED if status is None else status


def _second_boot(guest: Guest, job: Job, token: str, deadline: float) -> int:
    """Boot the same disk again for what is to be looked at then; return the exit status."""
    (guest.share / "result").unlink()
    junit = f"--junitxml=/mnt/share/artifacts/{AGAIN}/junit.xml"
    colour = [word for word in job.command if word.startswith("--color=")]
    command = (*PYTEST, junit, *colour, *(guest.share / AGAIN).read_text().split())
    (guest.share / "job").write_text(Job(command, deadline - time.monotonic(), job.suite).script(token))
    guest.boot()
    guest.talk(output=sys.stdout.fileno(), deadline=deadline)
    return _read_result(guest, token)


def _fill(share: Path, job: Job, token: str) -> None:
    (share / "artifacts").mkdir()
    (share / "main.sh").write_bytes(MAIN.read_bytes())
    (share / "job").write_text(job.script(token))
    shutil.copy(cached_deb(), share / "nannyd.deb")
    pack(share / "tree.tar", source_files())


def _read_result(guest: Guest, token: str) -> int:
    try:
        said, status = (guest.share / "result").read_text().split()
    except (FileNotFoundError, ValueError):
        raise GuestError(f"the guest ended without a result\n{guest.console_tail()}") from None
    if said != token:
        raise GuestError(f"the guest's result has a wrong token: {said!r}")
    return int(status)


def _keep_artifacts(guest: Guest, *, failed: bool) -> None:
    chosen = os.environ.get("NANNYD_TEST_ARTIFACTS")
    if not chosen and not failed:
        return
    target = Path(chosen or tempfile.mkdtemp(prefix="nannyd-artifacts-"))
    shutil.copytree(guest.share / "artifacts", target, dirs_exist_ok=True)
    shutil.copy(guest.console, target)
    print(f"tests.system: journal, console and results are in {target}", file=sys.stderr)


def _interpreted(parser: argparse.ArgumentParser, command: list[str]) -> tuple[str, ...]:
    if not command or not Path(command[0]).is_file():
        parser.error("--exec takes a script of the checkout")
    interpreters = {".py": "python3", ".sh": "bash"}
    suffix = Path(command[0]).suffix
    if suffix not in interpreters:
        parser.error(f"--exec: {command[0]} is neither a .py nor a .sh file")
    return (interpreters[suffix], *command)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let every key, ^C too, go to the guest."""
    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    tty.setraw(keyboard)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
