"""The preloads of the nanny: imported and set up in order, torn down in reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nannyd.agent.manner import PLAIN
from nannyd.agent.nanny import Nanny
from nannyd.agent.work import Work
from nannyd.core import preload

if TYPE_CHECKING:
    from nannyd.agent.link import Link
    from nannyd.agent.manner import Manner

_FAMILIES = ("nannyd", "dask")


class Preloads:
    """Those whose setup was complete."""

    def __init__(self, link: Link, foreign: Manner = PLAIN) -> None:
        """There is none yet; *foreign* is for those that speak of `dask_setup`."""
        self._link = link
        self._foreign = foreign
        self._loaded: dict[str, preload.Preload] = {}

    def names(self) -> list[str]:
        """Return their names, in order."""
        return list(self._loaded)

    async def set_up(self, name: str, argv: list[str], timeout: float) -> None:
        """Import one and call its setup.  Raises Failed."""
        where = f"preload {name}"
        loaded: list[preload.Preload] = []

        def set_up() -> object:
            loaded.append(preload.load(name, argv, _FAMILIES))
            return self._manner(loaded[0]).set_up(loaded[0].set_up, Nanny(self._link, where))

        await Work(where, set_up).run(timeout)
        self._loaded[name] = loaded[0]

    async def end(self, name: str, timeout: float) -> None:
        """Call the teardown of one.  Raises Failed."""
        where = f"preload {name}"
        loaded = self._loaded.pop(name)
        manner, nanny = self._manner(loaded), Nanny(self._link, where)
        await Work(where, lambda: manner.tear_down(loaded.tear_down, nanny)).run(timeout)

    def _manner(self, loaded: preload.Preload) -> Manner:
        return self._foreign if loaded.family == "dask" else PLAIN
