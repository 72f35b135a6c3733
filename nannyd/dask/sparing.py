"""As much of `distributed` as a worker needs to start; the rest when it has started.

The package is there from the start, but its `__init__` is run as soon as somebody wants a name or another
module of it, and at the latest by `complete`.  So nobody sees a difference.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import threading
import weakref
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_NAME = "distributed"
_LEAVES = f"{_NAME}.http."
"""Modules that a worker imports when it starts, and that nothing of the package needs."""
_PATIENCE = 0.2
"""Seconds until who holds the lock of one module no longer waits for who may want it."""


def import_distributed(*modules: str) -> None:
    """Import these *modules* of distributed, and of the others what they need."""
    if _NAME in sys.modules:
        return
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {_NAME!r} for {sys.executable}", name=_NAME)
    weakref.finalize(import_distributed, lambda: None)  # its exit handler is there before distributed's
    package = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    for module in (f"{_NAME}.config", f"{_NAME}.widgets", *modules):  # begins as the package itself does
        importlib.import_module(module)
    del package.__dict__["config"]  # the package has something else of this name
    rest = _Rest(package, spec.loader.exec_module)
    package.__dict__["__getattr__"] = rest.get
    sys.meta_path.insert(0, rest)


def complete() -> None:
    """Import the rest."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Rest)]:
        finder.run()


class _Rest:
    """What is missing of the package: its `__init__`, which is to be run once."""

    def __init__(self, package: ModuleType, run: Callable[[ModuleType], None]) -> None:
        self._package, self._run = package, run
        self._lock = threading.RLock()
        self._is_running = False
        """In the thread that has the lock."""

    def run(self) -> None:
        """Run it, if nobody has."""
        with self._lock:
            if self._is_running or self not in sys.meta_path:
                return
            self._is_running = True
            names = self._package.__dict__
            try:
                self._run(self._package)
            finally:
                self._is_running = False
            sys.meta_path.remove(self)
            if names["__getattr__"] == self.get:  # and not what the package has for itself
                del names["__getattr__"]

    def get(self, name: str) -> Any:
        """Return what is asked of the package and not there yet."""
        if name == "__version__":  # each worker tells it to the scheduler
            told = getattr(importlib.import_module(f"{_NAME}._version"), name, None)
            return told or importlib.metadata.version(_NAME)
        self.run()
        names = self._package.__dict__
        if name not in names and names.get("__getattr__", self.get) != self.get:
            return names["__getattr__"](name)
        try:
            return names[name]
        except KeyError:
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}") from None

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Run it before another module of the package is imported: not every order of imports works."""
        if not name.startswith(f"{_NAME}.") or name.startswith(_LEAVES) or name.endswith("._version"):
            return None
        if not self._lock.acquire(timeout=_PATIENCE):
            return None
        try:
            self.run()
            module = sys.modules.get(name)
        finally:
            self._lock.release()
        return None if self._is_running or module is None else _spec_of(module)


class _Imported:
    """The loader of a module that was imported while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _spec_of(module: ModuleType) -> ModuleSpec:
    spec = ModuleSpec(module.__name__, _Imported(module))  # type: ignore[arg-type]
    if module.__spec__ is not None:
        spec.submodule_search_locations = module.__spec__.submodule_search_locations
    return spec
