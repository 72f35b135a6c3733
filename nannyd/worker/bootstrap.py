"""What a Python worker's process does before the worker lives: from the channel to the event loop.

Imports may be long and some want no running event loop; so all of this happens without one.  A signal
simply ends the process here, since there is nothing to close yet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from nannyd.core import boot, preload, wire
from nannyd.core.target import find_target
from nannyd.worker import signals
from nannyd.worker.channel import Channel
from nannyd.worker.life import Life
from nannyd.worker.report import report_exit, report_failure


def main() -> None:
    """Run the worker that the channel specifies, and exit."""
    status: int | str | None
    try:
        status = _run()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except SystemExit as request:
        report_exit(request)
        status = request.code
    except Exception as error:  # noqa: BLE001 (it ends here, and is told)
        report_failure(error)
        status = 1
    signals.ignore()  # if the worker never came to life
    sys.exit(status)


def _run() -> int | str | None:
    boot.arrive()
    channel = Channel(wire.CHANNEL_FD)
    signals.leave_at_once()
    os.register_at_fork(after_in_child=channel.close)
    os.register_at_fork(after_in_child=signals.be_a_child)
    watchdog = _take_watchdog()
    spec = channel.read_specification()
    os.environ.update(spec.environ)
    argvs = [*spec.preload_argv, *([] for _ in spec.preload)]
    preloads = [preload.load(name, argv) for name, argv in zip(spec.preload, argvs, strict=False)]
    make = find_target(spec.target, "worker class")
    find_runner = getattr(make, "nannyd_runner", None)  # a class of nannyd's own, with a loop of its own
    run = asyncio.run if find_runner is None else find_runner(spec.kwargs)
    return run(Life(spec, channel, make, preloads, watchdog).run())


def _take_watchdog() -> float | None:
    """Return WATCHDOG_USEC in seconds, if it is for us, and take it from the environment.

    The loop answers for the worker; a child that believed the watchdog to be its own would hide a hang.
    """
    pid = os.environ.pop("WATCHDOG_PID", None)
    usec = os.environ.pop("WATCHDOG_USEC", None)
    return int(usec) / 1e6 if usec and pid in (None, str(os.getpid())) else None
