"""How a Python worker is started inside the user's interpreter.

That interpreter need not have nannyd.  Needs the standard library of Python 3.10 only.
"""

from __future__ import annotations

_PROGRAM = (
    "import sys; sys.path.insert(0, {directory!r}); from nannyd.worker.bootstrap import main; "
    "sys.path.append(sys.path.pop(0)); main()"
)
"""First while nannyd itself is imported, so that no other `nannyd` of the user's can stand in for the one
that speaks to this supervisor; last from then on, so that nothing of the user's is shadowed."""


def boot_argv(python: str, directory: str, name: str, target: str) -> list[str]:
    """Return the argv that runs the class *target* (`pkg.mod:Class`) as worker *name*.

    *directory* holds nothing but the package `nannyd`.  *name* and *target* are there for whoever reads
    the process list: the bootstrap is told what to do through its channel (`wire.CHANNEL_FD`).
    """
    return [python, "-c", _PROGRAM.format(directory=directory), name, target]
