"""What `pkg.mod:Class` names, imported.

Needs the standard library of Python 3.10 only: it runs inside the user's interpreter.
"""

from __future__ import annotations

import importlib
import operator
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def find_target(target: str, kind: str, noun: str = "class") -> Callable[..., Any]:
    """Import *target*, a class or any other callable; *kind* says in errors what it was to be.

    Raises what the import raises; ValueError, AttributeError or TypeError if there is no such thing.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{kind} {target!r}: is not of the form 'package.module:{noun.capitalize()}'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but not what it imports
        where = f"{sys.executable} (working directory {Path.cwd()})"
        raise ModuleNotFoundError(f"{kind} {target!r}: {error} for {where}", name=error.name) from None
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise AttributeError(f"{kind} {target!r}: {error} ({module.__file__})") from None
    if not callable(found):
        raise TypeError(f"{kind} {target!r}: is no {noun}, but {found!r}")
    return found  # type: ignore[no-any-return]
