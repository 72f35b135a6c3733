"""How the user's code of one kind is called with its nanny: an extension may know another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nannyd.agent.nanny import Nanny


class Manner(Protocol):
    """Calls a function with a nanny; both may return something awaitable."""

    def set_up(self, function: Callable[[Any], Any], nanny: Nanny) -> Any:
        """Call one that sets something up."""

    def tear_down(self, function: Callable[[Any], Any], nanny: Nanny) -> Any:
        """Call one that takes down what was set up with this nanny."""


class Extension(Manner, Protocol):
    """What an agent can besides; its manner is the one of plugins and preloads of its own kind."""

    does: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]]
    """Requests of the supervisor's, by word."""


class _Plain:
    """As it is documented for nannyd's own."""

    def set_up(self, function: Callable[[Any], Any], nanny: Nanny) -> Any:
        return function(nanny)

    tear_down = set_up


PLAIN: Manner = _Plain()
