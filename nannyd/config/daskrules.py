"""What goes together in `[dask]`, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nannyd.config import tree as trees
from nannyd.config.dask import DASK_KEYS, OTHER_PLACES
from nannyd.config.dotted import flat, parts
from nannyd.config.tree import NOT_DASK, problem_at
from nannyd.config.wording import show
from nannyd.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nannyd.config.dask import Dask, Tls
    from nannyd.config.settings import Settings
    from nannyd.config.tree import Path, Tree

MEMORY = "distributed.worker.memory"
FRACTIONS = ("target", "spill", "pause")
"""What a Dask worker does before the limit, in this order."""
_ENCRYPTED = ("tls", "wss")


def rules(settings: Settings, dask: Dask, tree: Tree, bad: set[Path], home: str | None) -> Iterator[Problem]:
    """Yield what is wrong between the settings of a Dask worker; a bad value is not judged again."""
    wrong = {key for section, *rest in bad if section == "dask" for key in rest}
    yield from _program_rule(tree)
    if not wrong & {"scheduler", "scheduler-file"}:
        yield from _scheduler_rule(dask, tree, home)
    if not wrong & {"listen-address", "contact-address", "worker-port", "host", "interface"}:
        yield from _address_rule(dask, tree)
    if not wrong & {"tls", "scheduler", "protocol"}:
        yield from _tls_rule(dask.tls, tree)
        yield from _encryption_rule(dask, tree)
    if "worker" not in wrong:
        yield from _worker_rule(dask, tree)
    if "config" not in wrong:
        yield from _config_rule(settings, dask, tree)
    if not dask.reconnect and trees.find(tree, ("restart", "mode")) is not None:
        yield problem_at(tree, ("dask", "reconnect"), "stands beside restart.mode; write only one of them")


def _program_rule(tree: Tree) -> Iterator[Problem]:
    for key in NOT_DASK:
        if trees.find(tree, ("worker", key)) is None:
            continue
        if key in ("command", "class"):
            what = "write dask.worker-class" if key == "class" else "write only one of them"
            message = f"stands beside [dask]; {what}"
        else:
            message = "is for worker.class; write the worker's keyword arguments in [dask.worker]"
        yield problem_at(tree, ("worker", key), message)


def _scheduler_rule(dask: Dask, tree: Tree, home: str | None) -> Iterator[Problem]:
    address, file = trees.find(tree, ("dask", "scheduler")), trees.find(tree, ("dask", "scheduler-file"))
    if dask.scheduler is None and dask.scheduler_file is None:
        if home is not None:
            message = 'is missing; write scheduler = "tcp://HOST:8786" or scheduler-file = "/PATH"'
            yield Problem(home, "dask.scheduler", message)
    elif address is not None and file is not None and address.origin.where == file.origin.where:
        message = "stands beside dask.scheduler; write only one of them"
        yield problem_at(tree, ("dask", "scheduler-file"), message)


def _address_rule(dask: Dask, tree: Tree) -> Iterator[Problem]:
    if dask.contact_address is not None and dask.listen_address is None:
        message = "is without dask.listen-address; write where the worker listens, too"
        yield problem_at(tree, ("dask", "contact-address"), message)
    if dask.listen_address is not None:
        for key, value in (
            ("worker-port", dask.worker_port), ("host", dask.host), ("interface", dask.interface)
        ):  # fmt: skip
            if value is not None:
                message = f"stands beside dask.{key}; write only one of them"
                yield problem_at(tree, ("dask", "listen-address"), message)
    elif dask.host is not None and dask.interface is not None:
        message = "stands beside dask.host; write only one of them"
        yield problem_at(tree, ("dask", "interface"), message)


def _tls_rule(tls: Tls, tree: Tree) -> Iterator[Problem]:
    for key, other in (("key", "cert"), ("cert", "key"), ("cert", "ca")):
        if getattr(tls, key) is not None and getattr(tls, other) is None:
            hint = "; it may be the same file" if (key, other) == ("cert", "key") else ""
            message = f"is without dask.tls.{other}; write that, too{hint}"
            yield problem_at(tree, ("dask", "tls", key), message)
            return
    if tls.min_version is not None and tls.max_version is not None and tls.min_version > tls.max_version:
        message = (
            f"{tls.min_version} is above max-version ({tls.max_version}); write min-version <= max-version"
        )
        yield problem_at(tree, ("dask", "tls", "min-version"), message)


def _encryption_rule(dask: Dask, tree: Tree) -> Iterator[Problem]:
    """Yield what would end as a refused connection, each time anew."""
    tls = dask.tls
    if not (tls.ca and tls.cert and tls.key and dask.scheduler) or tls.require_encryption is False:
        return
    scheme, _, rest = dask.scheduler.partition("://")
    if scheme in ("tcp", "ws"):
        secure = {"tcp": "tls", "ws": "wss"}[scheme]
        message = (
            f"{show(dask.scheduler)} is not encrypted, and [dask.tls] requires it;"
            f" write {secure}://{rest}, or dask.tls.require-encryption = false"
        )
        yield problem_at(tree, ("dask", "scheduler"), message)


def needs_certificate(dask: Dask) -> str | None:
    """Return the key of the setting that TLS follows from, if there is no certificate in `[dask.tls]`."""
    if dask.tls.cert is not None:
        return None
    if dask.scheduler is not None and dask.scheduler.partition("://")[0] in _ENCRYPTED:
        return "scheduler"
    return "protocol" if dask.protocol in _ENCRYPTED else None


def _worker_rule(dask: Dask, tree: Tree) -> Iterator[Problem]:
    for key in dask.worker:
        name = key.replace("-", "_")
        if not name.isidentifier():
            message = "is not the name of an argument; write letters, digits and _"
        elif name in OTHER_PLACES:
            message = f"has a setting of its own; write {OTHER_PLACES[name]}"
        else:
            continue
        yield problem_at(tree, ("dask", "worker", key), message)


def _config_rule(settings: Settings, dask: Dask, tree: Tree) -> Iterator[Problem]:
    ours = {theirs: name for name, theirs in DASK_KEYS.items()}
    table = flat(dask.config)
    for key, value in table.items():
        path, plain = ("dask", "config", *parts(key)), key.replace("_", "-")
        found = next((name for name in ours if plain == name or f"{plain}.".startswith(f"{name}.")), None)
        if found is not None:
            yield problem_at(tree, path, f"has a setting of its own; write {ours[found]}")
        elif plain.removeprefix(f"{MEMORY}.") in FRACTIONS:
            yield from _fraction_rule(settings, path, value, tree)


def _fraction_rule(settings: Settings, path: Path, value: Any, tree: Tree) -> Iterator[Problem]:
    memory = settings.memory
    end, name = (memory.max, "max") if memory.terminate is None else (memory.terminate, "terminate")
    if value is False:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        yield problem_at(tree, path, f"{show(value)} is not a fraction of the limit; write 0.8 or false")
    elif end is not None and value >= end:
        message = f"{value:g} is not below memory.{name} ({end:g}); the worker would be ended before"
        yield problem_at(tree, path, message)
