"""asyncio without ssl, which it imports if it can, until somebody imports ssl: about 4 MiB, mostly unused.

Nobody can tell the difference: whoever imports ssl gets it, and asyncio has it from then on.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

_SSLPROTO = "asyncio.sslproto"


def import_asyncio() -> None:
    """Import asyncio, without ssl unless that is there already."""
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]
    sys.modules[_SSLPROTO] = types.ModuleType(_SSLPROTO)
    try:
        importlib.import_module("asyncio")
    finally:
        del sys.modules["ssl"], sys.modules[_SSLPROTO]
    sys.meta_path.insert(0, _Completion)


class _Completion:
    """Sees ssl being imported, and completes asyncio before anybody has it (under ssl's import lock)."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find ssl as usual; everything else is for the other finders."""
        if name != "ssl":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_complete(module: types.ModuleType) -> None:
            execute(module)
            _complete(module)

        spec.loader.exec_module = execute_and_complete  # type: ignore[method-assign]
        return spec


def _complete(ssl: types.ModuleType) -> None:
    sslproto = importlib.import_module(_SSLPROTO)
    for name in ("base_events", "selector_events"):
        module = sys.modules[f"asyncio.{name}"]
        module.__dict__.update(ssl=ssl, sslproto=sslproto)
