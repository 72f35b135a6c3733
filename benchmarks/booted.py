"""What takes a real systemd and cgroup v2: the host's side of `guest`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .lab import SOURCES, Lab
from .procs import BenchmarkError
from .table import Row

TIMEOUT = 240
ROOT = SOURCES.parent


def everything(lab: Lab) -> list[Row]:
    """Run `guest` in a booted machine."""
    lab.say("guest: booting")
    checkout, results = lab.place("checkout"), lab.place("artifacts")
    _copy_checkout(checkout, [lab.first, lab.eater])
    command = [sys.executable, "-m", "tests.system.run", f"--timeout={TIMEOUT}", "--exec"]
    command += ["benchmarks/guest.sh"]
    environ = {**os.environ, "NANNYD_TEST_ARTIFACTS": str(results)}
    ended = subprocess.run(
        command, check=False, cwd=checkout, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    written = results / "bench.json"
    if ended.returncode != 0 or not written.exists():
        raise BenchmarkError(f"the guest's part ended with {ended.returncode}")
    return [Row(**row) for row in json.loads(written.read_text())]


def _copy_checkout(target: Path, programs: list[Path]) -> None:
    """Make a checkout that has *programs* in it: the guest gets what a checkout has, and has no compiler."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    paths = subprocess.run(listing, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout.split(b"\0")
    for path in map(os.fsdecode, filter(None, paths)):
        if os.path.lexists(ROOT / path):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path, follow_symlinks=False)
    for program in programs:
        shutil.copy2(program, target / "benchmarks")
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=target)
