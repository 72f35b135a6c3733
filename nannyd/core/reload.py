"""What a new plan changes, and when that takes effect.  Pure."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nannyd.core.memory import Thresholds
    from nannyd.core.plan import DaskPlan, Plan


class When(enum.StrEnum):
    """When a changed setting takes effect."""

    NOW = "now"
    NEXT_WORKER = "from the next worker on"
    NEXT_AGENT = "from the next agent on"
    RESTART = "after a restart of nannyd"


_NOW = {
    "dask.drain_timeout",
    "worker.start_timeout",
    "worker.stop_timeout",
    "worker.stop_signal",
    "worker.kill_mode",
    "log_level",
}
_RESTART = {
    "dask.port",
    "memory.mode",
    "log_format",
    "name",
    "nanny.preload",
    "nanny.preload_argv",
    "nanny.plugins",
    "nanny.preload_failure",
}
_OF_THE_NANNY = " of the nanny"
"""In the name of a setting that both have, worker and nanny: the nanny's socket is made once."""
_WORKER_SETTINGS = {
    "port": "dask.worker_port",
    "preload": "worker.preload",
    "preload_argv": "worker.preload_argv",
    **{
        name: f"dask.{name}"
        for name in (
            "contact_address", "dashboard", "dashboard_address", "host", "interface", "name", "nthreads",
            "protocol", "resources", "silence_logs", "validate",
        )
    },
}  # fmt: skip
"""Arguments of a Dask worker, but those in the table of the same name."""
_SILENT = {"arguments", "secrets", "memory.thresholds", "memory.where", "nanny.python"}


def is_possible(old: Plan, new: Plan) -> bool:
    """Say whether an instance can become another without a restart: not if it joins or leaves a cluster."""
    return (old.dask is None) == (new.dask is None)


def changes(old: Plan, new: Plan) -> dict[str, When]:
    """Return each part of the plan that differs, as `worker.stop-timeout`, with when it takes effect."""
    before, after = _flat(old), _flat(new)
    return {
        key.replace("_", "-"): _when(key)
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and key not in _SILENT
    }


def in_words(found: dict[str, When]) -> str:
    """Return `changes` as a sentence: `worker.nice from the next worker on; log-level now`."""
    said = {when: [key for key, w in found.items() if w is when] for when in When}
    return "; ".join(f"{', '.join(keys)} {when}" for when, keys in said.items() if keys) or "nothing changed"


def _when(key: str) -> When:
    if key in _RESTART or key.endswith(_OF_THE_NANNY):
        return When.RESTART
    if key == "dask.blocked_handlers":
        return When.NEXT_AGENT
    at_once = key in _NOW or key.startswith(("restart.", "memory.", "agent.", "dask.on-"))
    return When.NOW if at_once else When.NEXT_WORKER


def _flat(plan: Plan) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if field.name in ("worker", "memory", "restart"):
            flat.update(
                {f"{field.name}.{part.name}": getattr(value, part.name) for part in dataclasses.fields(value)}
            )
        elif field.name == "dask":
            flat.update(_dask_settings(value) if value is not None else {})
        elif field.name == "agent":
            for part in dataclasses.fields(value):
                section = "agent" if part.name in ("memory_limit", "idle_timeout") else "nanny"
                flat[f"{section}.{part.name}"] = getattr(value, part.name)
        else:
            flat[field.name] = value
    if plan.dask is not None and plan.worker.python is not None:
        del flat["worker.python"]
        flat.update(_worker_settings(**plan.worker.python.kwargs))
    return {**flat, **_memory_settings(plan.memory.thresholds)}


def _dask_settings(dask: DaskPlan) -> dict[str, Any]:
    follows = {f"dask.on-{cause}": then for cause, then in dask.after.items()}
    blocked = {"dask.blocked_handlers": dask.server["blocked_handlers"]}
    return {"dask.drain_timeout": dask.drain_timeout, **follows, **blocked}


def _worker_settings(
    *, options: dict[str, Any], security: dict[str, Any], nanny: dict[str, Any], **others: Any
) -> dict[str, Any]:
    """Return the keyword arguments of a Dask worker by the names of the settings that they are made of."""
    options = {_WORKER_SETTINGS.get(key, f"dask.worker.{key}"): value for key, value in options.items()}
    nanny = {f"dask.{key}{_OF_THE_NANNY}": value for key, value in nanny.items()}
    nanny["dask.port"] = nanny.pop(f"dask.port{_OF_THE_NANNY}")
    return {
        **options,
        **nanny,
        "dask.tls": security,
        **{f"dask.{key}": value for key, value in others.items()},
    }


def _memory_settings(thresholds: Thresholds) -> dict[str, Any]:
    """Return the thresholds as they are set: fractions of the limit do not change with it."""
    limit = thresholds.limit
    fractions = {"warn": thresholds.warn, "terminate": thresholds.terminate, "max": thresholds.max}
    settings: dict[str, Any] = {"memory.limit": limit}
    for name, size in fractions.items():
        settings[f"memory.{name}"] = None if size is None or limit is None else round(size / limit, 4)
    return settings
