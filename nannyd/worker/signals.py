"""The signals that end a worker, and who hears them: before the event loop runs, and in forked children."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from nannyd.worker.api import notify

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ours: dict[signal.Signals, Any] = {}
"""The handlers installed here, as opposed to what the user's code may have put in their place."""


def leave_at_once() -> None:
    """Let a signal end the process while there is no worker to close."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        notify(STOPPING="1")
        raise SystemExit(0)

    _install(leave)


def tell_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[signal.Signals], None]) -> None:
    """Let a signal call *callback* in the event loop.

    A handler that the loop itself has installed it also removes, and a signal that comes then is deadly.
    """

    def tell(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback, signal.Signals(number))

    _install(tell)


def ignore() -> None:
    """Ignore signals: the process is on its way out."""
    _install(signal.SIG_IGN)


def _install(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
        _ours[number] = handler


def be_a_child() -> None:
    """Give a forked child the default handlers back, except where the user's code has its own.

    Otherwise SIGTERM would not end it, and before Python 3.12 it would end its parent instead: asyncio
    hears of signals through a descriptor that both share.
    """
    signal.set_wakeup_fd(-1)
    defaults: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    for number, handler in _ours.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, defaults[number])
