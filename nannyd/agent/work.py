"""Code of the user's, run so that it can harm only itself.

A plain function runs in a daemon thread of its own; if what it returns is awaitable (it was async), that is
awaited in the event loop.  Whatever is raised, SystemExit included, becomes a `Failed`, and so does a
deadline that is over: a coroutine is cancelled then, a thread cannot be, and is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from nannyd.core import wire
from nannyd.core.trace import format_trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

    Witness = Callable[[BaseException], object]


class Failed(Exception):  # noqa: N818 (it is no error of the agent's)
    """User code raised or took too long; `error` is what the supervisor is told."""

    def __init__(self, error: dict[str, str]) -> None:
        """Keep *error*, which has no reference to any frame."""
        super().__init__(error["message"])
        self.error = error


def describe(where: str, error: BaseException) -> dict[str, str]:
    """Return *error* as it travels."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return _bounded(where, name, _told_by(str, error), _told_by(format_trace, error))


def _told_by(how: Callable[[BaseException], str], error: BaseException) -> str:
    try:
        return how(error)
    except BaseException:  # noqa: BLE001 (the user's code)
        return "(its __str__ fails)"


def _bounded(where: str, kind: str, message: str, trace: str) -> dict[str, str]:
    most, short = wire.ERROR_MAX, 200
    error = {
        "where": where[:short],
        "type": kind[:short],
        "message": message[:most],
        "traceback": trace[-most:],
    }
    return {key: value.encode("utf-8", "backslashreplace").decode() for key, value in error.items()}


def nobody(_error: BaseException) -> None:
    """Be the witness where there is none."""


class Work:
    """One call of user code."""

    _cancelled: set[asyncio.Task[Any]] = set()  # noqa: RUF012
    """Kept from the garbage collector until they have noticed."""

    def __init__(self, where: str, function: Callable[[], Any], witness: Witness = nobody) -> None:
        """*where* is how the user knows *function*, which takes no arguments.

        *witness* sees what is raised, where it is raised: what travels has no reference to any frame.
        """
        self._where = where
        self._function = function
        self._witness = witness
        self._thread: threading.Thread | None = None
        self._called: asyncio.Future[tuple[bool, Any]] | None = None
        self._task: asyncio.Task[Any] | None = None

    def is_running(self) -> bool:
        """Say whether it still runs, perhaps past its deadline."""
        # A thread that has told its outcome may live a moment longer; it does not count.
        return any(end is not None and not end.done() for end in (self._called, self._task))

    async def run(self, timeout: float | None) -> Any:
        """Run it for at most *timeout* seconds, and return what it returns.  Raises Failed."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        self._called = self._in_thread(loop)
        result = await self._until(self._called, deadline, timeout)
        if inspect.isawaitable(result):
            self._task = loop.create_task(self._outcome(result))
            result = await self._until(self._task, deadline, timeout)
        return result

    async def _until(self, end: asyncio.Future[Any], deadline: float | None, timeout: float | None) -> Any:
        left = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0)
        await asyncio.wait({end}, timeout=left)
        if not end.done():
            trace = self._whereabouts()
            if self._task is not None:
                self._task.cancel()
                self._cancelled.add(self._task)
                self._task.add_done_callback(self._cancelled.discard)
            raise Failed(_bounded(self._where, "TimeoutError", f"did not end within {timeout:.3g} s", trace))
        is_good, result = end.result()
        if not is_good:
            raise Failed(result)
        return result

    def _in_thread(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[tuple[bool, Any]]:
        end: asyncio.Future[tuple[bool, Any]] = loop.create_future()

        def body() -> None:
            try:
                outcome = True, self._function()
            except BaseException as error:  # noqa: BLE001 (the user's code)
                outcome = False, self._error(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, end, outcome)

        self._thread = threading.Thread(target=body, name=self._where, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # too many of them
            self._thread = None
            end.set_result((False, describe(self._where, error)))
        return end

    async def _outcome(self, awaitable: Awaitable[Any]) -> tuple[bool, Any]:
        """Await, and return what was raised: SystemExit must not escape from a task, it ends the loop."""
        try:
            return True, await awaitable
        except BaseException as error:  # noqa: BLE001 (the user's code)
            return False, self._error(error)

    def _error(self, error: BaseException) -> dict[str, str]:
        self._witness(error)
        return describe(self._where, error)

    def _whereabouts(self) -> str:
        """Return the stack of what takes so long."""
        if self._task is not None:
            stack: list[traceback.FrameSummary] = traceback.StackSummary.extract(
                _awaiting(self._task.get_coro())
            )
        else:
            ident = self._thread.ident if self._thread is not None else None
            frame = sys._current_frames().get(ident or 0)  # noqa: SLF001 (documented, for debuggers)
            stack = traceback.StackSummary.extract(traceback.walk_stack(frame)) if frame else []
            stack.reverse()
        theirs = [frame for frame in stack if frame.filename not in (__file__, threading.__file__)]
        return "".join(["It is here (most recent call last):\n", *traceback.format_list(theirs)])


def _awaiting(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a suspended coroutine, each that awaits the next."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _settle(end: asyncio.Future[Any], outcome: tuple[bool, Any]) -> None:
    if not end.done():
        end.set_result(outcome)
