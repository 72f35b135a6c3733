"""Run benchmarks, print one table, and write all figures as JSON.

    python -m benchmarks [--json FILE] [NAME…]

Without names all of them run, in ten minutes.  `guest` boots the machine of the system tests.
"""

import argparse
import compileall
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nannyd

from . import booted, client, cluster, control, fleet, host
from .lab import Lab
from .procs import BenchmarkError
from .table import Row, render, to_json

BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "memory": host.memory,
    "idle": host.idle,
    "restart": host.restart,
    "ready": host.ready,
    "threshold": host.threshold,
    "thousand": host.thousand,
    "start": host.start,
    "control": control.everything,
    "list": client.listing,
    "dask": cluster.everything,
    "fleet": fleet.everything,
    "guest": booted.everything,
}
PACKAGES = ("nannyd", "distributed", "supervisor", "circus", "psutil")


def main() -> int:
    """Do what the command line says; return 1 when a target was missed or something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: unknown; write some of {', '.join(BENCHMARKS)}")
    names = options.names or list(BENCHMARKS)
    # As an installed package is; otherwise the first to start would compile it, and hold what that took.
    compileall.compile_dir(str(Path(nannyd.__file__).parent), quiet=2)
    with tempfile.TemporaryDirectory(prefix="nannyd-bench-") as directory:
        Path(directory).chmod(0o755)
        rows, troubles, seconds = run(names, Lab(Path(directory)))
    about = circumstances(seconds)
    print(f"{about['date']}, {about['machine']}\n{about['versions']}\n")
    print(render(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(to_json(rows, about))
    missed = [f"{row.group}: {row.label}" for row in rows if row.met() is False]
    for trouble in (*troubles, *(f"missed: {text}" for text in missed)):
        print(trouble, file=sys.stderr)
    return 1 if troubles or missed else 0


def run(names: list[str], lab: Lab) -> tuple[list[Row], list[str], dict[str, float]]:
    """Run the benchmarks *names*; return their rows, what went wrong, and how long each took."""
    rows: list[Row] = []
    troubles, seconds = [], {}
    for name in names:
        began = time.monotonic()
        try:
            rows += BENCHMARKS[name](lab)
        except BenchmarkError as error:
            troubles.append("\n".join([f"{name}: {error}", *getattr(error, "__notes__", [])]))
        seconds[name] = round(time.monotonic() - began, 1)
    return rows, troubles, seconds


def circumstances(seconds: dict[str, float]) -> dict[str, Any]:
    """Return when, where and with what was measured."""
    machine = f"{platform.system()} {platform.release()}, {_processor()}, {os.cpu_count()} CPUs"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{machine}, load {os.getloadavg()[0]:.2f}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "seconds": seconds,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


if __name__ == "__main__":
    sys.exit(main())
