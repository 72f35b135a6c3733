"""The record that `eater.c` keeps, and the gate it waits at."""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from . import procs

_HEAD = struct.Struct("6q")
_CHUNK = 256 << 10
_ENTRIES = 4096
_SIZE = _HEAD.size + 8 * _ENTRIES


@dataclass(frozen=True, slots=True)
class Eaten:
    """What an eater did.  Times are nanoseconds of CLOCK_MONOTONIC."""

    pid: int
    asked: int
    """When SIGTERM came; 0: it did not."""
    peak: int
    oom_kill: int
    oom: int
    at: list[int]
    """When each chunk had been written to."""

    @property
    def size(self) -> int:
        """Bytes that were written to."""
        return len(self.at) * _CHUNK

    def crossed(self, size: int) -> int | None:
        """Return when it had eaten *size* bytes."""
        index = -(-size // _CHUNK) - 1
        return self.at[max(0, index)] if index < len(self.at) else None


class Record:
    """The eater's record, which outlives it, and the FIFO that lets it begin."""

    def __init__(self, path: Path) -> None:
        """Make both, for workers of any user."""
        self.path = path
        path.write_bytes(bytes(_SIZE))
        path.chmod(0o666)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.gate = path.with_suffix(".go")
        os.mkfifo(self.gate)
        self.gate.chmod(0o666)
        self._gate = os.open(self.gate, os.O_RDWR | os.O_CLOEXEC)

    def command(self, program: Path, rate: float, largest: int, *, polite: bool = False) -> list[str | Path]:
        """Return the command line of an eater with this record."""
        return [program, self.path, self.gate, f"{rate:g}", str(largest), *(["polite"] if polite else [])]

    def read(self) -> Eaten:
        """Return what stands in it."""
        pid, asked, peak, oom_kill, oom, chunks = _HEAD.unpack_from(self._map)
        at = list(struct.unpack_from(f"{min(chunks, _ENTRIES)}q", self._map, _HEAD.size))
        return Eaten(pid, asked, peak, oom_kill, oom, at)

    def clear(self) -> None:
        """Forget an eater that has ended."""
        self._map[:] = bytes(_SIZE)

    def waiting(self) -> int:
        """Return the pid of the eater that waits at the gate."""
        return procs.until(lambda: self.read().pid, "an eater")

    def go(self) -> None:
        """Open the gate for one eater."""
        os.write(self._gate, b"g")

    def close(self) -> None:
        """Give back the descriptors."""
        self._map.close()
        os.close(self._gate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
