"""Dask's own configuration, and what is made of it: to be laid before `distributed` is imported."""

from __future__ import annotations

import asyncio
import functools
import gc
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def configure(
    config: dict[str, Any], import_it: Callable[[], object] = lambda: import_module("distributed")
) -> None:
    """Lay *config* over Dask's own configuration, before distributed reads any of it, and import that.

    *import_it* does that.
    """
    with _yaml_in_c():
        _lay(config)
        _import_distributed(import_it)
    _lay(config)  # distributed has put its defaults where None was set


def find_runner() -> Callable[..., Any]:
    """Return what runs a coroutine as `asyncio.run` does, in the event loop that is configured."""
    from distributed.compatibility import asyncio_run
    from distributed.config import get_loop_factory

    factory = get_loop_factory()
    return asyncio.run if factory is None else functools.partial(asyncio_run, loop_factory=factory)


def make_security(arguments: dict[str, Any]) -> Any:
    """Return the Security of *arguments*, where a version of TLS is a number."""
    from distributed.security import Security

    versions = ("tls_min_version", "tls_max_version")
    for name in versions:
        if arguments.get(name) is not None:
            _lay({f"distributed.comm.tls.{name[4:7]}-version": arguments[name]})
    return Security(**{name: value for name, value in arguments.items() if name not in versions})


def _lay(config: dict[str, Any]) -> None:
    """Lay *config*, whose keys may be dotted, over Dask's; in the tables below, a dot means nothing."""
    import dask

    for key, value in config.items():
        tree = value
        for name in reversed(key.split(".", 1 if key.startswith("logging.") else -1)):  # names of loggers
            tree = {name: tree}
        dask.config.update(dask.config.config, tree)


def _import_distributed(import_it: Callable[[], object]) -> None:
    """Import it without the garbage collector, which finds nothing there but takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    import_it()
    gc.freeze()
    if was_enabled:
        gc.enable()


@contextmanager
def _yaml_in_c() -> Iterator[None]:
    """Let what is configured be read by PyYAML's parser in C, which nobody uses unless asked to."""
    import yaml

    slow, loader = yaml.safe_load, getattr(yaml, "CSafeLoader", None)
    if loader is not None:
        yaml.safe_load = lambda stream: yaml.load(stream, loader)  # noqa: S506 (a safe one)
    try:
        yield
    finally:
        yaml.safe_load = slow
