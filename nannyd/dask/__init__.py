"""nannyd for Dask clusters: the worker and the nanny of a real scheduler.

Everything here but `nanny` runs in the user's interpreter, beside the `distributed` that is installed there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nannyd.dask.nanny import Nanny

__all__ = ["Nanny"]


def __getattr__(name: str) -> Any:
    """Import `Nanny` when it is asked for: who only wants a worker has no supervisor."""
    if name != "Nanny":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nannyd.dask.nanny import Nanny

    return Nanny
