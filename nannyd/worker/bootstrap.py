"""What a Python worker's process does before the worker lives: from the channel to the event loop.

Imports may be long and some want no running event loop; so all of this happens without one.  A signal
simply ends the process here, since there is nothing to close yet.
"""

from __future__ import annotations

import asyncio
import importlib
import operator
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.core import wire
from nannyd.worker import preload, signals
from nannyd.worker.channel import Channel
from nannyd.worker.life import Life
from nannyd.worker.report import report_exit, report_failure

if TYPE_CHECKING:
    from collections.abc import Callable


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
    signals.ignore()
    sys.exit(status)


def _run() -> int | str | None:
    sys.argv[:] = sys.argv[1:2]
    if sys.path[:1] == [""]:  # because of `python -c`; as with `python -m`, the directory of now is meant
        sys.path[0] = str(Path.cwd())
    channel = Channel(wire.CHANNEL_FD)
    signals.leave_at_once()
    os.register_at_fork(after_in_child=channel.close)
    os.register_at_fork(after_in_child=signals.be_a_child)
    watchdog = _take_watchdog()
    spec = channel.read_specification()
    os.environ.update(spec.environ)
    argvs = [*spec.preload_argv, *([] for _ in spec.preload)]
    preloads = [preload.load(name, argv) for name, argv in zip(spec.preload, argvs, strict=False)]
    return asyncio.run(Life(spec, channel, find_target(spec.target), preloads, watchdog).run())


def find_target(target: str) -> Callable[..., Any]:
    """Import what `pkg.mod:Class` names: a class, or any callable that returns a worker.

    Raises what the import raises; ValueError, AttributeError or TypeError if there is no such thing.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"worker class {target!r}: is not of the form 'package.module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but not what it imports
        where = f"{sys.executable} (working directory {Path.cwd()})"
        raise ModuleNotFoundError(f"worker class {target!r}: {error} for {where}", name=error.name) from None
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise AttributeError(f"worker class {target!r}: {error} ({module.__file__})") from None
    if not callable(found):
        raise TypeError(f"worker class {target!r}: is no class, but {found!r}")
    return found  # type: ignore[no-any-return]


def _take_watchdog() -> float | None:
    """Return WATCHDOG_USEC in seconds, if it is for us, and take it from the environment.

    The loop answers for the worker; a child that believed the watchdog to be its own would hide a hang.
    """
    pid = os.environ.pop("WATCHDOG_PID", None)
    usec = os.environ.pop("WATCHDOG_USEC", None)
    return int(usec) / 1e6 if usec and pid in (None, str(os.getpid())) else None
