"""`make demo`: nannyd keeps a leaking worker healthy.  Exit 0 only if every step really happened.

A real `nannyd run` supervises demo/leaky.py.  The story is told from nannyd's own records (JSON lines),
and each step is checked against what the record says and what the system shows.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]

LIMIT = "160M"
PATIENCE = 20.0
COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class StoryError(Exception):
    """A step of the story did not happen."""


def tell(text: str, colour: str = "") -> None:
    text = f"{time.monotonic() - began:6.2f}s  {text}"
    sys.stdout.write(f"\x1b[{colour}m{text}\x1b[0m\n" if COLOUR and colour else f"{text}\n")
    sys.stdout.flush()


class Story:
    """A running nannyd, its records, and the steps that were seen."""

    def __init__(self, directory: Path) -> None:
        self.saved = directory / "saved"
        self.steps: list[str] = []
        runtime = directory / "run"
        runtime.mkdir()
        environ = {**os.environ, "RUNTIME_DIRECTORY": str(runtime), "STATE_DIRECTORY": str(directory)}
        environ.pop("NOTIFY_SOCKET", None)
        options = ["--config-dir", str(directory), "--log-format", "json", "--worker.ready=notify"]
        options += [f"--memory.limit={LIMIT}", "--restart.delay=500ms", "--restart.growth=3"]
        options += ["--restart.jitter=0", "--worker.stop-timeout=5s"]
        worker = [sys.executable, str(Path(__file__).with_name("leaky.py")), str(self.saved)]
        self.nannyd = subprocess.Popen(
            [sys.executable, "-m", "nannyd", "run", "demo", *options, "--", *worker],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.records: queue.Queue[Record] = queue.Queue()
        for stream in (self.nannyd.stdout, self.nannyd.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            if line.startswith("{"):
                self.records.put(json.loads(line))
            else:
                tell(f"    worker: {line.rstrip()}", "2")

    def wait_for(self, event: str) -> Record:
        """Return the next record of kind *event*, telling all on the way."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                record = self.records.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise StoryError(f"nannyd did not say {event!r} within {PATIENCE:g}s") from None
            tell(f"  nannyd: {record['message']}", "36")
            if record.get("nannyd_event") == event:
                return record

    def step(self, name: str, *, happened: bool) -> None:
        if not happened:
            raise StoryError(name)
        self.steps.append(name)
        tell(f"✓ {name}", "1;32")


def play(story: Story) -> str:
    """Play all steps; return the memory mode that was in use."""
    mode = str(story.wait_for("starting")["memory_mode"])
    first = story.wait_for("worker-started")["worker_pid"]
    story.step(f"start: worker {first} runs", happened=Path(f"/proc/{first}").exists())
    story.wait_for("worker-ready")
    story.step("ready: the worker said so itself", happened=True)

    warning = story.wait_for("memory-warning")
    story.step(
        f"memory warning at {warning['share']} of {LIMIT}",
        happened=warning["memory_working_set"] >= warning["memory_threshold"],
    )
    story.wait_for("memory-terminate")
    ended = story.wait_for("worker-failed")
    story.step(
        "graceful termination at the fraction: the worker's own handler ran, no OOM kill",
        happened=ended["result"] == "memory"
        and ended["exit_status"] == 0
        and story.saved.read_text() == f"{first}\n",
    )

    first_delay = story.wait_for("restarting")["seconds"]
    second = story.wait_for("worker-started")["worker_pid"]
    story.wait_for("worker-ready")
    story.step(f"restart: worker {second} in its place", happened=second != first and not alive(first))

    tell(f"    demo: kill -9 {second}", "33")
    descriptor = os.pidfd_open(second)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    ended = story.wait_for("worker-failed")
    story.step(
        "kill -9: recognised as a signal from outside",
        happened=(ended["result"], ended["who"], ended["exit_signal"]) == ("signal", "outside", 9),
    )
    second_delay = story.wait_for("restarting")["seconds"]
    third = story.wait_for("worker-started")["worker_pid"]
    story.wait_for("worker-ready")
    story.step(
        f"restart with back-off: {second_delay:g}s after {first_delay:g}s",
        happened=second_delay > first_delay and third not in (first, second),
    )

    tell("    demo: SIGTERM to nannyd", "33")
    story.nannyd.terminate()
    ended = story.wait_for("worker-ended")
    code = story.nannyd.wait(PATIENCE)
    story.step(
        "clean stop: worker gone, exit status 0",
        happened=code == 0 and ended["result"] == "success" and not alive(third),
    )
    return mode


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def main() -> int:
    tell(f"nannyd supervises demo/leaky.py: it leaks 50 MiB a second under a limit of {LIMIT}", "1")
    with tempfile.TemporaryDirectory(prefix="nannyd-demo-") as directory:
        story = Story(Path(directory))
        mode, failure = "unknown", ""
        try:
            mode = play(story)
        except StoryError as error:
            failure = str(error)
        finally:
            if story.nannyd.poll() is None:
                story.nannyd.terminate()
                story.nannyd.wait(PATIENCE)
    sys.stdout.write("\nSummary\n")
    for step in story.steps:
        sys.stdout.write(f"  ✓ {step}\n")
    explained = {
        "cgroup": "cgroup: the kernel reports the crossing itself",
        "poll": "poll: no cgroup is delegated here; under systemd it is cgroup",
    }
    sys.stdout.write(f"  memory mode: {explained.get(mode, mode)}\n")
    if failure:
        sys.stdout.write(f"  ✗ did not happen: {failure}\n")
    return 1 if failure else 0


began = time.monotonic()
sys.exit(main())
