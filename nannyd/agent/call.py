"""A function of the user's, called with arguments from afar."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from nannyd.agent.channel import encode
from nannyd.core import wire
from nannyd.core.target import find_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from nannyd.agent.nanny import Nanny

_VALUE_MAX = wire.LINE_MAX - 1024
"""Bytes of JSON that a function may return; the rest is for the frame of the answer."""
_OFFERED = ("nanny", "dask_worker")


def call(target: str, args: Sequence[Any], kwargs: Mapping[str, Any], nanny: Nanny) -> Any:
    """Call *target* and return its result as JSON, or what will be that if awaited.

    JSON is made where the function runs, for that may take long, too.
    """
    result = _bind(find_target(target, "function", "function"), args, kwargs, nanny)()
    return _later(result) if inspect.isawaitable(result) else _value(result)


def _bind(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], nanny: Nanny
) -> Callable[[], Any]:
    """Return a call of *function*; its parameter `nanny` or `dask_worker`, wherever it is, gets the nanny."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # something compiled that does not tell
        return lambda: function(*args, **kwargs)
    offered = [name for name in _OFFERED if name in signature.parameters and name not in kwargs]
    others = [parameter for name, parameter in signature.parameters.items() if name not in offered]
    given = signature.replace(parameters=others).bind(*args, **kwargs).arguments
    given.update(dict.fromkeys(offered, nanny))
    bound = inspect.BoundArguments(signature, given)
    return lambda: function(*bound.args, **bound.kwargs)


async def _later(result: Awaitable[Any]) -> str:
    return _value(await result)


def _value(result: Any) -> str:
    text = encode(result)
    if len(text) > _VALUE_MAX:
        raise ValueError(f"the result takes {len(text)} bytes as JSON; at most {_VALUE_MAX} travel")
    return text
