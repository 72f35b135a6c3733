"""Signals that come while `nannyd run` is on its way to a supervised worker, or has done with it."""

from __future__ import annotations

import os
import signal
import sysconfig
import time
import venv
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import blocks, catches, eventually

import nannyd as package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Host, Nannyd


def is_on_its_way(run: Nannyd) -> bool:
    """Say whether it is more than an interpreter that starts."""
    return catches(run.pid, signal.SIGTERM)


def is_past_the_launcher(run: Nannyd) -> bool:
    """Say whether it is the supervisor, or just about to be."""
    return blocks(run.pid, signal.SIGHUP) or catches(run.pid, signal.SIGHUP)


def moments(nannyd: Host, begun: Callable[[Nannyd], bool], count: int) -> Iterator[Nannyd]:
    """Launch again and again; give one that is ready, then one at each of *count* moments since *begun*."""
    length = 0.0
    for number in range(count, -1, -1):
        run = nannyd("--", "sleep", "60")
        eventually(partial(begun, run), "it has begun")
        began = time.monotonic()
        if number == count:  # the first shows how long it takes, on this machine, now
            run.ready()
            length = time.monotonic() - began
        else:
            time.sleep(length * number / count)
        yield run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_a_clean_end_at_every_moment(nannyd: Host, number: signal.Signals) -> None:
    """While it reads the configuration, at its execve, before its loop runs, until the worker runs."""
    ends = []
    for run in moments(nannyd, is_on_its_way, 12):
        run.signal(number)
        assert run.wait() == 0, run.story()
        assert run.noise == []
        ends.append(run.events()[-1:])
    assert ends[0] == ["finished"]
    assert [] in ends


def test_a_hangup_before_the_worker_runs_is_a_reload(nannyd: Host) -> None:
    """It is blocked from the launcher's execve until there is somebody to reload."""
    for run in moments(nannyd, is_past_the_launcher, 6):
        run.signal(signal.SIGHUP)
        run.wait_for("reloaded")
        assert run.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_that_ends_does_not_hide_how_it_ended(nannyd: Host, number: signal.Signals) -> None:
    run = nannyd("--restart.mode=no", "--", "sh", "-c", "exit 3")
    run.wait_for("finished")
    while run.process.poll() is None:
        with suppress(ProcessLookupError):
            run.signal(number)
        time.sleep(0.001)  # a flood would fill what the loop hears of signals by
    assert run.wait() == 1


def test_nannyd_may_be_found_by_pythonpath_alone(nannyd: Host, tmp_path: Path) -> None:
    venv.create(tmp_path)
    path = [str(Path(package.__file__).parents[1]), sysconfig.get_path("purelib")]
    environ: dict[str, str | None] = {"PYTHONPATH": os.pathsep.join(path)}
    run = nannyd("--", "sleep", "60", environ=environ, python=str(tmp_path / "bin" / "python"))
    run.ready()
    run.signal(signal.SIGHUP)
    run.wait_for("reloaded")
    assert run.stop() == 0
