"""An operator: runs `nannyctl` on a terminal, or in a script, beside the instances of a test."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pexpect
from harness import PATIENCE, eventually, lives

if TYPE_CHECKING:
    from typing import Self

    from harness import Host, Nannyd

NANNYCTL = [sys.executable, "-m", "nannyd.ctl", "--user"]
"""The user's instances only: the machine may have others of its own."""
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_instance(host: Host, *arguments: str, name: str, **others: Any) -> Nannyd:
    """Run instance *name* where `nannyctl` looks for it."""
    directory = host.home.base / "nannyd" / name
    directory.mkdir(parents=True, exist_ok=True)
    return host(*arguments, name=name, environ={"RUNTIME_DIRECTORY": str(directory)}, **others)


def environ(host: Host) -> dict[str, str]:
    """Return the operator's environment."""
    return {
        **host.home.environ(),
        "XDG_RUNTIME_DIR": str(host.home.base),
        "TERM": "xterm-256color",
        "TZ": "UTC",
    }


def nannyctl(host: Host, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `nannyctl` without a terminal."""
    return subprocess.run(
        [*NANNYCTL, *arguments],
        env={**environ(host), **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Terminal:
    """`nannyctl` on a terminal."""

    def __init__(self, host: Host, *arguments: str, width: int = 100, height: int = 40) -> None:
        """Start it."""
        self.child = pexpect.spawn(
            NANNYCTL[0],
            [*NANNYCTL[1:], *arguments],
            env=environ(host),
            dimensions=(height, width),
            encoding="utf-8",
            timeout=PATIENCE,
        )

    def read(self) -> str:
        """Return all that it has written when it has ended, its colours left out."""
        return _SEQUENCE.sub("", self.coloured()).replace("\r\n", "\n")

    def coloured(self) -> str:
        """Return all that it has written when it has ended."""
        text: str = self.child.read()
        self.child.close()
        return text

    def expect(self, pattern: str) -> None:
        """Wait until it writes what matches *pattern*."""
        self.child.expect(pattern)

    def end(self) -> int:
        """Wait for its end and return the exit status."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus is not None, f"ended by signal {self.child.signalstatus}"
        return self.child.exitstatus


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


class Screen:
    """`nannyctl` on a terminal that shows what a person sees (tmux), among what a shell shows."""

    def __init__(
        self, host: Host, *arguments: str, width: int = 100, height: int = 20, **variables: str
    ) -> None:
        """Start it."""
        self._directory = tempfile.TemporaryDirectory(prefix="nannyd-test-")
        base = Path(self._directory.name)
        self._before, self._after = base / "before", base / "after"
        self._command = ["tmux", "-S", str(base / "tmux"), "-f", "/dev/null"]
        self._environ = {**environ(host), **variables}
        program = f"trap : INT; echo before; stty -a > {self._before}; {shlex.join([*NANNYCTL, *arguments])};"
        program += f" status=$?; stty -a > {self._after}; echo status $status; exec cat"
        size = ("-x", str(width), "-y", str(height))
        self._tmux("new-session", "-d", *size, "sh", "-c", program)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all that runs in it."""
        server, shell = map(int, self._tmux("display-message", "-p", "#{pid} #{pane_pid}").split())
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        mine = [server, *(pid for pid in pids if _session(pid) == shell)]
        self._tmux("kill-server")
        eventually(lambda: not any(map(lives, mine)), "nobody is left at the terminal")
        self._directory.cleanup()

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout

    def text(self) -> str:
        """Return what is to be seen."""
        return self._tmux("capture-pane", "-p")

    def coloured(self) -> str:
        """Return what is to be seen, with its colours."""
        return self._tmux("capture-pane", "-p", "-e")

    def title(self) -> str:
        """Return the title that somebody has given to the terminal."""
        return self._tmux("display-message", "-p", "#{pane_title}").rstrip("\n")

    def press(self, *keys: str) -> None:
        """Press keys, in tmux's names."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def wait_for(self, pattern: str) -> str:
        """Wait until something that matches *pattern* is to be seen, and return all that is."""
        seen = ""

        def found() -> bool:
            nonlocal seen
            seen = self.text()
            return re.search(pattern, seen, re.MULTILINE) is not None

        try:
            eventually(found, pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; seen:\n{seen}") from None
        return seen

    def names(self) -> list[str]:
        """Return the names on the lines of the table, from above."""
        lines = self.text().splitlines()
        heads = [index for index, line in enumerate(lines) if line.startswith("  NAME")]
        table = lines[heads[0] + 1 :] if heads else []
        return [line[2:].split()[0] for line in table[: table.index("")]] if "" in table else []

    def left_as_it_was(self) -> bool:
        """Say whether the terminal is again as it was before nannyctl."""
        return bool(self._before.read_text()) and self._before.read_text() == self._after.read_text()
