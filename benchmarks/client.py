"""How fast `nannyctl` is: a figure of the command as a person runs it, its interpreter included."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .lab import Lab
from .procs import BenchmarkError
from .table import Row

COUNT = 200
RUNS = 15
LIST = [sys.executable, "-I", "-m", "nannyd.ctl", "list", "--user"]


def listing(lab: Lab) -> list[Row]:
    """The list of many instances, all well, or one of them hung."""
    lab.say(f"list: {COUNT} instances")
    rows = []
    for label, hung in (("all answer", 0), ("one is hung", 1)):
        place = lab.place("run")
        with _instances(place / "nannyd", COUNT - hung, hung):
            times = [_milliseconds(place) for _ in range(RUNS)]
        text = f"nannyctl list ({COUNT} instances)"
        rows.append(Row(text, label, "ms", {"nannyd": times}, at_most=300))
    return rows


@contextmanager
def _instances(directory: Path, count: int, hung: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.answering", str(directory), str(count), str(hung)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchmarkError("benchmarks.answering has ended")
            yield
        finally:
            process.terminate()


def _milliseconds(runtime: Path) -> float:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    began = time.monotonic_ns()
    done = subprocess.run(LIST, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    took = (time.monotonic_ns() - began) / 1e6
    if f"\n{COUNT} instances listed.\n" not in done.stdout:
        raise BenchmarkError(f"nannyctl list said {done.stdout[-200:]!r}")
    return took
