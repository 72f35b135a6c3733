"""An operator: runs `nannyctl` on a terminal, or in a script, beside the instances of a test."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pexpect
from harness import PATIENCE

if TYPE_CHECKING:
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
        timeout=PATIENCE * 2,
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
