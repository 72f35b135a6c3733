"""As much of `distributed` as a worker or the agent needs to start; the rest when it is wanted.

The package is there from the start, but its `__init__` is run as soon as somebody wants a name or another
module of it, and at the latest by `complete`.  The same goes for some dear modules that are imported on the
way by others, which use them later, if at all.  So nobody sees a difference.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import threading
import weakref
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_NAME = "distributed"
_LEAVES = f"{_NAME}.http."
"""Modules that a worker imports when it starts, and that nothing of the package needs."""
_WIDGETS = "dask.widgets"
"""Needs Jinja.  Others want a single function of it when they are imported."""
_FUNCTION = "get_template"
_DEAR = ("click", _WIDGETS, "logging.config", "urllib.request", "xml.etree.ElementTree")
_PATIENCE = 0.2
"""Seconds until who holds the lock of one module no longer waits for who may want it."""


def spare(*modules: str) -> Callable[[], None]:
    """Begin, before Dask is imported; return what imports these *modules* and, of others, what they need."""
    if _NAME not in sys.modules and not _finders():
        sys.meta_path.insert(0, _Finder())

    def import_modules() -> None:
        if _NAME in sys.modules:
            return
        spec = importlib.util.find_spec(_NAME)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {_NAME!r} for {sys.executable}", name=_NAME)
        weakref.finalize(spare, lambda: None)  # its exit handler is there before distributed's
        package = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        for module in (f"{_NAME}.config", *modules):  # begins as the package itself does
            importlib.import_module(module)
        del package.__dict__["config"]  # the package has something else of this name
        for finder in _finders():
            finder.unrun.insert(0, _Package(package, spec.loader.exec_module))

    return import_modules


def complete() -> None:
    """Import the rest."""
    for finder in _finders():
        for module in finder.unrun:
            module.run()
        sys.meta_path.remove(finder)


def _finders() -> list[_Finder]:
    return [finder for finder in sys.meta_path if isinstance(finder, _Finder)]


class _Finder:
    """Sees to it that the dear modules are put off, and that no module of a package comes before that."""

    def __init__(self) -> None:
        self.unrun: list[_Unrun] = []
        self._dear = {*_DEAR} - sys.modules.keys()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        if name in self._dear:
            self._dear.remove(name)
            return self._put_off(name, path)
        for module in self.unrun:
            if module.is_before(name):
                return module.run_before(name)
        return None

    def _put_off(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader, execute = spec.loader, spec.loader.exec_module

        def put_off(module: ModuleType) -> None:
            del loader.exec_module
            self.unrun.append((_Widgets if name == _WIDGETS else _Unrun)(module, execute))

        loader.exec_module = put_off  # type: ignore[method-assign]
        return spec


class _Unrun:
    """A module that was not run yet: that is to happen once."""

    def __init__(self, module: ModuleType, run: Callable[[ModuleType], None]) -> None:
        self._module, self._run = module, run
        self._lock = threading.RLock()
        self._is_running = False
        """In the thread that has the lock."""
        self._has_run = False
        self._names["__getattr__"] = self.get

    @property
    def _names(self) -> dict[str, Any]:
        return self._module.__dict__

    def run(self) -> None:
        """Run it, if nobody has."""
        with self._lock:
            if self._is_running or self._has_run:
                return
            self._is_running = True
            try:
                self._run(self._module)
            finally:
                self._is_running = False
            self._has_run = True
            if self._names["__getattr__"] == self.get:  # and not what the module has for itself
                del self._names["__getattr__"]

    def get(self, name: str) -> Any:
        """Return what is asked of the module and not there yet."""
        self.run()
        if name not in self._names and self._names.get("__getattr__", self.get) != self.get:
            return self._names["__getattr__"](name)
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}") from None

    def is_before(self, name: str) -> bool:
        """Say whether it has to be run before the module *name* is imported, if it is not now."""
        return not self._has_run and name.startswith(f"{self._module.__name__}.")

    def run_before(self, name: str) -> ModuleSpec | None:
        """Run it; return how *name* is found if it was imported by that."""
        if not self._lock.acquire(timeout=_PATIENCE):
            return None
        try:
            self.run()
            module = sys.modules.get(name)
        finally:
            self._lock.release()
        return None if self._is_running or module is None else _spec_of(module)


class _Package(_Unrun):
    """distributed: not every order of imports works, so its modules come after it, but for a few."""

    def get(self, name: str) -> Any:
        if name == "__version__":  # each worker tells it to the scheduler
            told = getattr(importlib.import_module(f"{_NAME}._version"), name, None)
            return told or importlib.metadata.version(_NAME)
        return super().get(name)

    def is_before(self, name: str) -> bool:
        return super().is_before(name) and not name.startswith(_LEAVES) and not name.endswith("._version")


class _Widgets(_Unrun):
    """dask.widgets, with a function in the place of the one that others take from it."""

    def __init__(self, module: ModuleType, run: Callable[[ModuleType], None]) -> None:
        super().__init__(module, run)

        def get_template(name: str) -> Any:
            self.run()
            return self._names[_FUNCTION](name)

        self._instead = self._names[_FUNCTION] = get_template

    def run(self) -> None:
        super().run()
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            if module is not self._module and names.get(_FUNCTION) is self._instead:
                names[_FUNCTION] = self._names[_FUNCTION]


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
