"""A reload: the launcher runs again as a short-lived child and hands back a new plan, or all errors."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from nannyd.core import plan as plans
from nannyd.supervisor import notices
from nannyd.supervisor.control import CallError
from nannyd.supervisor.notices import say
from nannyd.supervisor.spawn import SpawnError

if TYPE_CHECKING:
    from nannyd.supervisor.helpers import Helpers
    from nannyd.supervisor.supervisor import Supervisor

_TIMEOUT = 60.0


class Reloader:
    """Reloads one at a time."""

    def __init__(self, supervisor: Supervisor, helpers: Helpers) -> None:
        """Reload *supervisor*'s plan."""
        self._supervisor = supervisor
        self._helpers = helpers
        self._lock = asyncio.Lock()

    async def reload(self) -> str:
        """Compile a new plan and put it in force; return what changed, in words.

        Raises CallError with all problems, the old plan still in force.
        """
        async with self._lock:
            self._supervisor.systemd.reloading()
            try:
                compiled = await self._compile()
                changes = self._supervisor.adopt(compiled)
            except CallError as error:
                say(notices.RELOAD_FAILED, problems="\n".join(error.parameters["problems"]))
                raise
            finally:
                self._supervisor.reloaded()
            say(notices.RELOADED, changes=changes)
            return changes

    async def _compile(self) -> plans.Plan:
        arguments = self._supervisor.plan.arguments
        argv = [sys.executable, "-I", "-m", "nannyd", "compile", *arguments[1:]]
        try:
            _, written = await self._helpers.output(argv, _TIMEOUT)
            answer = json.loads(written)
            compiled = answer.get("plan")
            problems = [] if compiled else [str(problem) for problem in answer["problems"]]
        except (SpawnError, TimeoutError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise _invalid([f"the launcher gave no plan: {error!r}"]) from None
        if problems:
            raise _invalid(problems)
        try:
            return plans.from_json(json.dumps(compiled))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"nannyd was upgraded; this instance must be restarted before it can reload ({error})"
            raise _invalid([problem]) from None


def _invalid(problems: list[str]) -> CallError:
    return CallError("InvalidConfiguration", problems=problems)
