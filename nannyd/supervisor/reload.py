"""A reload: the launcher runs again as a short-lived child and hands back a new plan, or all errors."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

from nannyd.core.paths import interpreter
from nannyd.core.reload import is_possible
from nannyd.supervisor import notices
from nannyd.supervisor.handover import Handover
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    from nannyd.supervisor.helpers import Helpers
    from nannyd.supervisor.supervisor import Supervisor

_TIMEOUT = 60.0
_KILLED = "the launcher was killed before it gave a plan; it takes some 30 MiB: did the unit lack them?"


class ReloadFailedError(Exception):
    """The old plan stays.  Carries all problems."""

    def __init__(self, problems: list[str]) -> None:
        """Remember *problems*."""
        super().__init__("\n".join(problems))
        self.problems = problems


class Reloader:
    """Reloads one at a time."""

    def __init__(self, supervisor: Supervisor, helpers: Helpers, handover: Handover) -> None:
        """Reload *supervisor*'s plan, which came in *handover*."""
        self._supervisor = supervisor
        self._helpers = helpers
        self.handover = handover
        self._lock = asyncio.Lock()
        self._next: asyncio.Future[str] | None = None

    async def reload(self) -> str:
        """Compile a new plan and put it in force; return what changed, in words.

        All who ask while another reload runs get the verdict of the one after it, which reads what was
        there when they asked.  Raises ReloadFailedError, the old plan still in force.
        """
        if self._next is not None:
            return await asyncio.shield(self._next)
        verdict = self._next = asyncio.get_running_loop().create_future()
        try:
            async with self._lock:
                self._next = None
                changes = await self._reload()
        except ReloadFailedError as error:
            verdict.set_exception(error)
            verdict.exception()  # perhaps nobody else asks for it
            raise
        except BaseException:
            verdict.cancel()
            raise
        verdict.set_result(changes)
        return changes

    async def _reload(self) -> str:
        self._supervisor.systemd.reloading()
        try:
            handover = await self._compile()
            if not is_possible(self._supervisor.plan, handover.plan):
                handover.close()
                raise ReloadFailedError(
                    ["dask: an instance joins or leaves a cluster by a restart of nannyd"]
                )
            changes = self._supervisor.adopt(handover.plan)
        except ReloadFailedError as error:
            say(notices.RELOAD_FAILED, problems=str(error))
            raise
        finally:
            self._supervisor.reloaded()
        self.handover.close()
        self.handover = handover
        say(notices.RELOADED, changes=changes)
        return changes

    async def _compile(self) -> Handover:
        arguments = self._supervisor.plan.arguments
        argv = [*interpreter(os.environ), "-m", "nannyd", "compile", *arguments[1:]]
        try:
            code, written = await self._helpers.output(argv, _TIMEOUT)
            if code is None:
                raise ReloadFailedError([_KILLED])
            problems = [] if code == 0 else [str(problem) for problem in json.loads(written)["problems"]]
        except (SpawnError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
            raise ReloadFailedError([f"the launcher gave no plan: {error!r}"]) from None
        if problems:
            raise ReloadFailedError(problems)
        try:
            return Handover.of(written)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"nannyd was upgraded; this instance must be restarted before it can reload ({error})"
            raise ReloadFailedError([problem]) from None
