"""Everything nannyd has to say, one entry each: text, priority, MESSAGE_ID and fields.

The text is made from the very fields that the journal stores, so the two cannot differ.  The journal's
catalog (`journalctl -x`) is keyed by the MESSAGE_ID; the ids were made with `systemd-id128 new`.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

LOGGER = ContextVar("nannyd_logger", default=logging.getLogger("nannyd"))  # noqa: B039
"""Who writes the records: another where nannyd is not the program but a part of it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A kind of record."""

    event: str
    """NANNYD_EVENT=, for programs."""
    message_id: str
    level: int
    text: str
    """A format string; its names, in upper case, are the journal's fields."""


class Aside(str):
    """A field that the text shows in parentheses, if there is anything in it."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        """Return ` (…)` or nothing."""
        return f" ({self!s})" if self else ""


class Fields(dict[str, Any]):
    """What a record says beside its text, found by handlers as `record.fields`."""


def say(notice: Notice, **fields: Any) -> None:
    """Log *notice*; None stands for what is unknown."""
    told = Fields(nannyd_event=notice.event, message_id=notice.message_id, **fields)
    known = {key: "?" if value is None else value for key, value in fields.items()}
    LOGGER.get().log(notice.level, "%s", notice.text.format_map(known), extra={"fields": told})


STARTING = Notice(
    "starting",
    "658c7ddf2fb94023936811aac66ab979",
    logging.INFO,
    "supervising {nannyd_instance}; {memory}",
)
WORKER_STARTED = Notice(
    "worker-started",
    "56012dc43b8e43ca894cf4491a0687ec",
    logging.INFO,
    "worker {worker_pid} started (generation {nannyd_generation})",
)
WORKER_READY = Notice(
    "worker-ready",
    "e142c35a02ea4c59945a012f811a1222",
    logging.INFO,
    "worker {worker_pid} is ready after {after}",
)
START_FAILED = Notice(
    "start-failed",
    "73b47e9eddad4395b1fd7a880f30ce8b",
    logging.ERROR,
    "the worker could not be started: {detail}",
)
MEMORY_WARNING = Notice(
    "memory-warning",
    "57583d85fda34308b0769aa68e266240",
    logging.WARNING,
    "worker {worker_pid} uses {used} of {limit} ({share}): warning threshold {threshold} passed",
)
MEMORY_TERMINATE = Notice(
    "memory-terminate",
    "f1cb2b89bfc7460c89b33cf7ac99a2aa",
    logging.ERROR,
    "worker {worker_pid} uses {used} of {limit} ({share}), at or above the threshold {threshold}; "
    "terminating it ({breakdown}; largest: {largest})",
)
STOPPING_WORKER = Notice(
    "stopping-worker",
    "f10a4018e47948dca12f509ad9e89cb8",
    logging.INFO,
    "stopping worker {worker_pid}: {reason}; {grace} to end by itself",
)
KILLING_WORKER = Notice(
    "killing-worker",
    "e1fc7809fdc04a768003e61b1a1656a3",
    logging.WARNING,
    "killing worker {worker_pid} and all its processes: {reason}",
)
WORKER_REMAINS = Notice(
    "worker-remains",
    "1e61f34e4d4f44ec90bd54f8f92ba0b5",
    logging.ERROR,
    "processes of worker {worker_pid} do not die ({pids}); waiting, nothing starts beside them",
)
WORKER_ENDED = Notice(
    "worker-ended",
    "746e5ec414184043a521fb3e69f23af8",
    logging.INFO,
    "worker {worker_pid} {how} after {uptime}: result {result}, by {who}{detail}",
)
WORKER_FAILED = Notice(
    "worker-failed",
    "3e3e556241cf4b38a56dfd3cf8ed5282",
    logging.WARNING,
    "worker {worker_pid} {how} after {uptime}: result {result}, by {who}{detail}",
)
WORKER_ERROR = Notice(
    "worker-error",
    "cd4112f65806439093e2d3027aaa4002",
    logging.ERROR,
    "worker {worker_pid} reports an error:\n{detail}",
)
RESTARTING = Notice(
    "restarting",
    "fd1b24fa9ad44e9c8dc861ad7213aa02",
    logging.INFO,
    "next start in {delay} (restart {restarts})",
)
START_LIMIT_HIT = Notice(
    "start-limit-hit",
    "d2725623f63a4da4be0f07246760fba3",
    logging.ERROR,
    "giving up: {burst} starts within {interval} (restart.start-limit-burst, restart.start-limit-interval)",
)
GIVING_UP = Notice(
    "giving-up",
    "55c4955e466d42b8b04299f0138736e0",
    logging.ERROR,
    "not restarting after result {result}: restart.mode is {mode}",
)
FINISHED = Notice(
    "finished",
    "d2331a9df9ad4d5ca3d6ba8b0cbc91ea",
    logging.INFO,
    "{nannyd_instance} has ended: exit status {exit_status} ({reason})",
)
STOP_REQUESTED = Notice(
    "stop-requested",
    "9799e33cf1784a7a8393b3b0769e8781",
    logging.INFO,
    "asked to stop by {reason}",
)
CALLED = Notice(
    "called",
    "1aec4d3842de4c87a69f8c07c152611c",
    logging.INFO,
    "{method} called by uid {peer_uid} (process {peer_pid}){reason}",
)
LOG_EVENT = Notice(
    "log-event",
    "bdd018405f244ee49dc221d0120433b1",
    logging.INFO,
    "{topic}: {text}",
)
CONTROL_FAILED = Notice(
    "control-failed",
    "0dc5d8292d6e49b48f0ef6f670ea3450",
    logging.ERROR,
    "bug in nannyd, please report it: a call could not be answered ({detail}); the worker is not concerned",
)
AGENT_STARTED = Notice(
    "agent-started",
    "706614c3aab44fa0ae9ee4936926666d",
    logging.INFO,
    "agent {agent_pid} started",
)
AGENT_FAILED = Notice(
    "agent-failed",
    "1bd9e84ef2054a63a8fb3955ff80c110",
    logging.WARNING,
    "{detail}; the worker is not concerned",
)
PLUGIN_ADDED = Notice(
    "plugin-added",
    "c694f927e8f440368f4c8941109230c9",
    logging.INFO,
    "plugin {plugin} ({target}) was added",
)
PLUGIN_REMOVED = Notice(
    "plugin-removed",
    "030caf37332641b28ae8979d74193414",
    logging.INFO,
    "plugin {plugin} was removed",
)
PLUGIN_FAILED = Notice(
    "plugin-failed",
    "6e97bdaa7ac2490a9abe7376836dd962",
    logging.ERROR,
    "{where} failed: {error}\n{detail}",
)
PLUGIN_DEPRECATED = Notice(
    "plugin-deprecated",
    "c6fda35abc7c42c0ae2a5b30e32b3945",
    logging.WARNING,
    "{detail}",
)
DASK_NONSENSE = Notice(
    "dask-nonsense",
    "5f22c3330ff74d30b421521d14f463e3",
    logging.WARNING,
    "ignored what worker {worker_pid} says of Dask: {detail}",
)
SCHEDULER_MISSING = Notice(
    "scheduler-missing",
    "09241749708345b4ad4e306c8a736b0b",
    logging.ERROR,
    "giving up: no Dask scheduler was found within dask.death-timeout",
)
RELOADED = Notice(
    "reloaded",
    "f7442bc92d674d058dd19e88fbd6e8b9",
    logging.INFO,
    "configuration reloaded: {changes}",
)
RELOAD_FAILED = Notice(
    "reload-failed",
    "51059d1f1c094cb5a66aa3639ef221c0",
    logging.ERROR,
    "configuration not reloaded, the old one stays:\n{problems}",
)
FOREIGN_MESSAGE = Notice(
    "foreign-message",
    "a70548fcae3b4a0bae55f0602e8e7020",
    logging.WARNING,
    "ignored a notification from process {sender_pid}, {known} of worker {worker_pid}",
)
LEFTOVER_ENDED = Notice(
    "leftover-ended",
    "80f1ecc2d1fa46cb88bba6ff41fff6df",
    logging.WARNING,
    "ended what an earlier nannyd left behind: {what}",
)
SCRATCH_FAILED = Notice(
    "scratch-failed",
    "ca0151d810b34e808741fc19c19408a6",
    logging.WARNING,
    "cannot remove the scratch directory {path}: {detail}",
)
INTERNAL_ERROR = Notice(
    "internal-error",
    "a7645a60cf4e484696dee10ccb2e46f4",
    logging.CRITICAL,
    "bug in nannyd, please report it: {detail}",
)
