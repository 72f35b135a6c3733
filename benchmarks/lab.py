"""What every benchmark needs: a directory, the compiled workers, and a voice."""

import itertools
import subprocess
import sys
from pathlib import Path

from .procs import BenchmarkError

SOURCES = Path(__file__).parent


class Lab:
    """A place to measure in.  It lies in memory or on a disk, but never in the source tree."""

    def __init__(self, directory: Path) -> None:
        """Use *directory*, which exists."""
        self.directory = directory
        self._names = itertools.count()

    def place(self, name: str) -> Path:
        """Return a path that nobody else was given."""
        return self.directory / f"{next(self._names)}-{name}"

    def say(self, text: str) -> None:
        """Tell how far we are."""
        print(text, file=sys.stderr, flush=True)

    @property
    def first(self) -> Path:
        """The worker that tells when it began."""
        return self._compiled("first", "-static")

    @property
    def eater(self) -> Path:
        """The worker that leaks."""
        return self._compiled("eater", "-static")

    @property
    def eater_library(self) -> Path:
        """The same leak for other programs."""
        return self._compiled("eater", "-shared", "-fPIC", suffix=".so")

    def _compiled(self, name: str, *options: str, suffix: str = "") -> Path:
        target = self.directory / f"{name}{suffix}"
        if not target.exists():
            command: list[str | Path] = ["gcc", "-O2", *options, "-o", target, SOURCES / f"{name}.c"]
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise BenchmarkError(f"cannot compile {name}.c: {error}") from error
        return target
