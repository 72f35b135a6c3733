"""As much of `distributed` as a worker or the agent needs to start; the rest when it is wanted.

The package is there from the start, but its `__init__` is run as soon as somebody wants a name or another
module of it, and at the latest by `complete`.  The same goes for some dear modules that are imported on the
way by others, which use them later, if at all.  So nobody sees a difference.
"""

from __future__ import annotations

import contextlib
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
_PATIENCE = 0.05
"""Seconds after which who waits looks whether somebody waits for him, too."""


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
                return module.spec_after(name, path)
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
        self._runner = 0
        """The thread that runs it now, and has the lock."""
        self._has_run = False
        self._names["__getattr__"] = self.get

    @property
    def _names(self) -> dict[str, Any]:
        return self._module.__dict__

    def run(self) -> None:
        """Run it, if nobody has.

        Where it is half run, and goes on when this thread has imported something, it stays so.
        """
        if not self._enter():
            return
        try:
            if self._runner or self._has_run:
                return
            self._runner = threading.get_ident()
            try:
                self._run(self._module)
            finally:
                self._runner = 0
            self._has_run = True
            if self._names["__getattr__"] == self.get:  # and not what the module has for itself
                del self._names["__getattr__"]
        finally:
            self._lock.release()

    def _run_aside(self) -> None:
        """Run it in another thread: this one has the lock of a module that may be wanted there."""
        thread = threading.Thread(target=self._try_to_run, name="imports distributed", daemon=True)
        while not (self._has_run or _waits_for_us(self._runner)):
            if thread.ident is None:
                thread.start()
            elif not thread.is_alive():
                self.run()  # raises what went wrong there
                return
            thread.join(_PATIENCE)

    def _try_to_run(self) -> None:
        with contextlib.suppress(Exception):
            self.run()

    def _enter(self) -> bool:
        """Take the lock, or say that who has it waits for a module that this thread imports.

        Python itself knows of no other locks than those of modules, and would let both wait for ever.
        """
        while not self._lock.acquire(timeout=_PATIENCE):
            if _waits_for_us(self._runner):
                return False
        return True

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

    def spec_after(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return how *name* is imported: when this has been run, which may have imported that, too.

        That is not done here, where whoever looks for a module has the lock of all imports.
        """
        spec = None if self._runner == threading.get_ident() else PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader, create, execute = spec.loader, spec.loader.create_module, spec.loader.exec_module
        imported: ModuleType | None = None
        its_own: ModuleSpec | None = None

        def create_module(spec: ModuleSpec) -> ModuleType | None:
            nonlocal imported, its_own
            self._run_aside()
            imported = sys.modules.get(name)
            its_own = None if imported is None else imported.__spec__
            return imported or create(spec)

        def exec_module(module: ModuleType) -> None:
            del loader.create_module, loader.exec_module
            if imported is None:
                execute(module)
            else:
                module.__spec__ = its_own

        loader.create_module = create_module  # type: ignore[method-assign]
        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _waits_for_us(thread: int) -> bool:
    """Say whether *thread* waits for the lock of a module that this thread has, or for who waits for it."""
    frames, waiting = sys._current_frames(), set()  # noqa: SLF001 (documented)
    while thread not in waiting:
        waiting.add(thread)
        frame = frames.get(thread)
        if frame is None or frame.f_code.co_name != "acquire" or "importlib" not in frame.f_code.co_filename:
            return False
        thread = getattr(frame.f_locals["self"], "owner", None) or 0
        if thread == threading.get_ident():
            return True
    return False


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
