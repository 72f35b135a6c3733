"""Preloads: the user's modules that are imported before the worker's own, and meet the worker.

Vocabulary and order are Dask's: a preload is a module name or the path of a .py file; its
`nannyd_setup(worker)` runs between constructor and `start`, its `nannyd_teardown(worker)` after `close`.
Both may be plain or async, both may be missing.
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

    async def set_up(self, worker: object) -> None:
        """Call `nannyd_setup(worker)`, or `nannyd_setup(worker, argv)` if it takes two."""
        function = getattr(self.module, "nannyd_setup", None)
        takes_argv = function is not None and _takes_two(function)
        if self.argv and not takes_argv:
            raise TypeError(
                f"preload {self.name}: has arguments {self.argv}, but no nannyd_setup(worker, argv)"
            )
        if function is not None:
            await maybe_await(function(worker, list(self.argv)) if takes_argv else function(worker))

    async def tear_down(self, worker: object) -> None:
        """Call `nannyd_teardown(worker)`."""
        function = getattr(self.module, "nannyd_teardown", None)
        if function is not None:
            await maybe_await(function(worker))


def load(name: str, argv: list[str]) -> Preload:
    """Import the preload *name*, a dotted module name or the path of a .py file."""
    module = _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    return Preload(name, argv, module)


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
