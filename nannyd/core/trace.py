"""The traceback of the user's code, as the user wants to read it.

Needs the standard library of Python 3.10 only: it runs inside the user's interpreter.
"""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_MACHINERY = (
    str(Path(__file__).parent.parent),
    str(Path(importlib.__file__).parent),
    "<frozen importlib",
    "<string>",
)
"""Beginnings of the file names of frames that tell the user nothing."""


def format_trace(error: BaseException) -> str:
    """Return the traceback of *error*, without the frames of nannyd that it begins with."""
    return "".join(traceback.format_exception(type(error), error, _trim(error.__traceback__)))


def _trim(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_MACHINERY):
        trace = trace.tb_next
    return trace
