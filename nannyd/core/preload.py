"""Preloads: the user's modules that are imported before all else, and meet the worker or the nanny.

Vocabulary and order are Dask's: a preload is a module name or the path of a .py file; its
`nannyd_setup(worker)` runs before the worker's start, its `nannyd_teardown(worker)` at the end, and in the
agent both get the nanny.  Both may be plain or async, both may be missing.  Needs the standard library of
Python 3.10 only: it runs inside the user's interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@dataclass(frozen=True)
class Preload:
    """One imported preload and its arguments."""

    name: str
    argv: list[str]
    module: ModuleType
    families: tuple[str, ...]
    """Whose `FAMILY_setup` and `FAMILY_teardown` are meant; the first that the module has."""

    @property
    def family(self) -> str | None:
        """Whose vocabulary it speaks; None: it has neither setup nor teardown."""
        words = ("setup", "teardown")
        spoken = (it for it in self.families if any(hasattr(self.module, f"{it}_{word}") for word in words))
        return next(spoken, None)

    def set_up(self, subject: object) -> Any:
        """Call `nannyd_setup(subject)`, or `nannyd_setup(subject, argv)` if it takes two; may be awaitable.

        A `dask_setup` may be a command of click's, which parses the arguments.
        """
        function = self._function("setup")
        if hasattr(function, "make_context"):
            context = function.make_context(function.name, list(self.argv))
            return function.callback(subject, *context.args, **context.params)
        takes_argv = function is not None and _takes_two(function)
        if self.argv and not takes_argv:
            parameter = "nanny" if "dask" in self.families else "worker"
            raise TypeError(
                f"preload {self.name}: has arguments {self.argv}, but no nannyd_setup({parameter}, argv)"
            )
        if function is None:
            return None
        return function(subject, list(self.argv)) if takes_argv else function(subject)

    def tear_down(self, subject: object) -> Any:
        """Call `nannyd_teardown(subject)`; what it returns may be awaitable."""
        function = self._function("teardown")
        return None if function is None else function(subject)

    def _function(self, what: str) -> Any:
        found = (getattr(self.module, f"{family}_{what}", None) for family in self.families)
        return next((function for function in found if function is not None), None)


def load(name: str, argv: list[str], families: tuple[str, ...] = ("nannyd",)) -> Preload:
    """Import the preload *name*, a dotted module name or the path of a .py file."""
    module = _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    return Preload(name, argv, module, families)


async def maybe_await(result: Any) -> Any:
    """Return *result*, or what awaiting it gives."""
    return await result if inspect.isawaitable(result) else result


def _import_file(path: Path) -> ModuleType:
    """Import *path* under its own name; what lies beside it can be imported meanwhile, as in Dask."""
    name = path.stem
    while name in sys.modules or name in sys.stdlib_module_names:
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"preload {path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    beside = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if beside in sys.path:
            sys.path.remove(beside)
    return module


def _takes_two(function: Callable[..., Any]) -> bool:
    """Say whether *function* can be called with two positional arguments."""
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):  # the latter: a builtin without a signature
        return False
    return True
