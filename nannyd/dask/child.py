"""The worker of an in-process Nanny, as its process sees it.

What makes it a worker is whatever the caller of the Nanny gave: a class and arguments, pickled.
"""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nannyd.dask.configuration import configure, find_runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Worker


class Child:
    """A worker of any class of Dask's, with the manners of a worker of nannyd's."""

    def __init__(self, pickled: bytes, failure: str, local_directory: str) -> None:
        """Make what is *pickled*, as `nannyd_runner` has left it.

        The exception of a start that fails is written to the file *failure*.
        """
        self._failure = Path(failure)
        self._parent = os.getppid()
        self._rooms = (self._failure.parent, Path(local_directory).parent)
        with _Told(self._failure):
            self._worker = _make(pickled, local_directory)

    @staticmethod
    def nannyd_runner(kwargs: dict[str, Any]) -> Callable[..., Any]:
        """Take *path*, where modules are found, and the configuration that was packed with the worker.

        Return what runs the event loop.
        """
        sys.path[:] = kwargs.pop("path")
        with _Told(Path(kwargs["failure"])):
            unpacked = pickle.loads(base64.b64decode(kwargs["pickled"]))  # noqa: S301 - the nanny's
            config, kwargs["pickled"] = unpacked
            configure(config)
            return find_runner()

    @property
    def address(self) -> str:
        """Where the worker listens."""
        return str(self._worker.address)

    @property
    def local_directory(self) -> str:
        """Where the worker keeps its files."""
        return str(self._worker.local_directory)

    async def start(self) -> None:
        """Register with the scheduler."""
        with _Told(self._failure):
            await self._worker

    async def finished(self) -> None:
        """Return when the worker was closed."""
        await self._worker.finished()

    async def close(self, timeout: float, reason: str) -> None:
        """Close the worker alone: its nanny knows, or is gone, and then this clears up for both."""
        try:
            await self._worker.close(nanny=False, timeout=timeout, reason=reason)
        finally:
            if os.getppid() != self._parent:
                self._leave_nothing()

    def _leave_nothing(self) -> None:
        for directory in self._rooms:
            shutil.rmtree(directory, ignore_errors=True)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with what tasks have started


def pack(config: dict[str, object], worker_class: object, arguments: dict[str, object]) -> str:
    """Return what a Child is made of.  Raises what cannot be pickled raises."""
    import cloudpickle

    # The configuration can be had without what the rest wants to import.
    return base64.b64encode(
        cloudpickle.dumps((config, cloudpickle.dumps((worker_class, arguments))))
    ).decode()


def _make(pickled: bytes, local_directory: str) -> Worker:
    from nannyd.dask.subject import make_patient

    worker_class, arguments = pickle.loads(pickled)  # noqa: S301 - the nanny's
    worker: Worker = make_patient(worker_class)(**arguments, local_directory=local_directory)
    return worker


class _Told:
    """Leaves the exception that comes this way, for the nanny to raise."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            self._path.write_bytes(_pickled(error))


def _pickled(error: Exception) -> bytes:
    import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301 - our own: some exceptions cannot be made again
    except Exception:  # noqa: BLE001 - whatever it is that its pickling raises
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return pickled
