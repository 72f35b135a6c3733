"""What an instance leaves behind when it ends: why it is not there any more, for `nannyctl`.

systemd knows only that a unit ended well, and forgets that too as soon as it has no reason to keep the unit.
So there is a file in the state directory, as long as no nannyd runs; one that was killed leaves none.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from nannyd.core.exits import describe
from nannyd.core.lifecycle import State
from nannyd.core.paths import end_file, given_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nannyd.supervisor.supervisor import Supervisor

_KINDS = {"Terminate": "terminated", "CloseGracefully": "drained"}
"""By the method that was called."""


def forget(environ: Mapping[str, str]) -> None:
    """Remove what an earlier nannyd left."""
    if state := given_directory("STATE_DIRECTORY", environ):
        with suppress(OSError):
            end_file(state).unlink(missing_ok=True)


def leave(supervisor: Supervisor, environ: Mapping[str, str]) -> None:
    """Write down how *supervisor*, which has ended, did."""
    if (state := given_directory("STATE_DIRECTORY", environ)) is None:
        return
    kind, reason = _kind(supervisor)
    exit_ = supervisor.worker.exit
    worker = describe(exit_) if exit_ is not None else ""
    told = {"kind": kind, "reason": reason, "worker": worker, "at": time.time_ns() // 1000}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):  # a full disk, say; then only systemd tells
        descriptor = os.open(end_file(state), flags, 0o644)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - not by its name
            file.write(json.dumps(told).encode() + b"\n")


def _kind(supervisor: Supervisor) -> tuple[str, str]:
    if asked := supervisor.why_down:
        method, _, reason = asked.partition(": ")
        return _KINDS.get(method, "stopped"), reason
    return "succeeded" if supervisor.worker.state is State.INACTIVE else "failed", ""
