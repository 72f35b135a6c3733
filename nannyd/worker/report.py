"""How a worker's failure is told: a traceback on stderr, and the same text to nannyd."""

from __future__ import annotations

import contextlib
import sys

from nannyd.core import wire
from nannyd.core.trace import format_trace
from nannyd.worker.api import notify


def report_failure(error: BaseException) -> None:
    """Report *error* as what the worker dies of: to nannyd first, for stderr may block."""
    notify(X_NANNYD_ERROR=wire.format_error(format_trace(error)), STOPPING="1")
    report(error)


def report_exit(request: SystemExit) -> None:
    """Tell nannyd the text of a sys.exit("text"), which the interpreter itself prints at the end."""
    if request.code is not None and not isinstance(request.code, int):
        notify(X_NANNYD_ERROR=wire.format_error(str(request.code)), STOPPING="1")


def report(error: BaseException) -> None:
    """Write the traceback of *error* to stderr, without the frames of this program."""
    if sys.stderr is not None:  # as it is for who started without a descriptor 2
        with contextlib.suppress(OSError, ValueError):  # a broken pipe, or closed
            sys.stderr.write(format_trace(error))
            sys.stderr.flush()
