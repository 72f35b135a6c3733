"""As much of distributed as a server needs, until somebody wants the rest.

When the agent has to be started for a connection, the import of distributed is the largest part of the time
to the answer, and a third of it is for clients, clusters and schedulers.  So the package is left as it is at
the beginning of its `__init__`: submodules can be imported.  Whoever looks for anything else in it lets
`__init__` run, and finds it; nobody can tell the difference.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_NAME = "distributed"
_LOCK = threading.RLock()


class _Begun(ModuleType):
    """The package before its `__init__` has run."""

    def __getattr__(self, name: str) -> Any:
        """Return what the package has of this name."""
        if not name.startswith("__") and importlib.util.find_spec(f"{_NAME}.{name}") is not None:
            return importlib.import_module(f"{_NAME}.{name}")
        if not name.startswith("__") or name in ("__all__", "__version__", "__git_revision__"):
            complete()
            if not isinstance(self, _Begun):
                return getattr(self, name)
        raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")


class _Completing(_Begun):
    """The package while its `__init__` runs."""


def begin() -> None:
    """Import what a server needs."""
    if _NAME not in sys.modules:
        spec = importlib.util.find_spec(_NAME)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {_NAME!r}", name=_NAME)
        module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        module.__class__ = _Begun
    for first in ("config", "widgets", "core"):
        importlib.import_module(f"{_NAME}.{first}")


def complete() -> None:
    """Import the rest.  Does nothing where that was done, or is being done by this thread."""
    with _LOCK:
        module = sys.modules.get(_NAME)
        if type(module) is not _Begun or module.__spec__ is None or module.__spec__.loader is None:
            return
        module.__class__ = _Completing
        module.__spec__.loader.exec_module(module)
        module.__class__ = ModuleType  # type: ignore[assignment]
