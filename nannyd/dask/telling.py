"""What a Dask worker says to its supervisor: JSON objects in the field X_NANNYD_DASK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nannyd.worker.api import notify

if TYPE_CHECKING:
    import socket


def tell(**facts: Any) -> None:
    """Tell *facts*, each a key of the object."""
    notify(X_NANNYD_DASK=_line(facts))


def hand_over(listening: socket.socket, **facts: Any) -> None:
    """Tell *facts*, and give the supervisor the nanny's socket: in systemd's words, it is to store it."""
    notify([listening.fileno()], FDSTORE="1", FDNAME="nanny", X_NANNYD_DASK=_line(facts))


def _line(facts: dict[str, Any]) -> str:
    return json.dumps(facts, separators=(",", ":"))
