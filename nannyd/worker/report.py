"""How a worker's failure is told: a traceback on stderr, and the same text to nannyd."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core import wire
from nannyd.worker.api import notify

if TYPE_CHECKING:
    from types import TracebackType

_MACHINERY = (
    str(Path(__file__).parent),
    str(Path(importlib.__file__).parent),
    "<frozen importlib",
    "<string>",
)
"""Beginnings of the file names of frames that tell the user nothing."""


def report_failure(error: BaseException) -> None:
    """Report *error* as what the worker dies of: to nannyd first, for stderr may block."""
    notify(X_NANNYD_ERROR=wire.format_error(_text(error)), STOPPING="1")
    report(error)


def report_exit(request: SystemExit) -> None:
    """Tell nannyd the text of a sys.exit("text"), which the interpreter itself prints at the end."""
    if request.code is not None and not isinstance(request.code, int):
        notify(X_NANNYD_ERROR=wire.format_error(str(request.code)), STOPPING="1")


def report(error: BaseException) -> None:
    """Write the traceback of *error* to stderr, without the frames of this program."""
    if sys.stderr is not None:  # as it is for who started without a descriptor 2
        with contextlib.suppress(OSError, ValueError):  # a broken pipe, or closed
            sys.stderr.write(_text(error))
            sys.stderr.flush()


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, _trim(error.__traceback__)))


def _trim(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_MACHINERY):
        trace = trace.tb_next
    return trace
