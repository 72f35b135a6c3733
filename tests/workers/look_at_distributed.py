"""Import distributed as a Dask worker does, do what the argument says, and tell what is there."""

import importlib
import json
import sys
import threading
from typing import Any

sparing: Any = importlib.import_module("nannyd.dask.sparing")  # of the parts that a worker has
sparing.import_distributed("distributed.worker")

distributed: Any = importlib.import_module("distributed")
dask: Any = importlib.import_module("dask")
DEAR = ("client", "scheduler", "nanny", "deploy")
MODULES = [
    *("active_memory_manager", "actor", "cli", "client", "core", "deploy", "diagnostics", "event", "http"),
    *("lock", "multi_lock", "nanny", "queues", "recreate_tasks", "scheduler", "semaphore", "shuffle"),
    *("spans", "stealing", "utils", "variable", "versions", "worker_client"),
]


def look() -> dict[str, Any]:
    """Return what was found."""
    dear = [name for name in DEAR if f"distributed.{name}" in sys.modules]
    version = distributed.__version__
    act(sys.argv[1])
    return {
        "dear": dear,
        "versions": [version, distributed.__version__],
        "is_whole": all(hasattr(distributed, name) for name in (*distributed.__all__, "Client")),
        "is_config": distributed.config is dask.config.config,
        "has_nonsense": hasattr(distributed, "nonsense"),
        "is_itself": "Filling" not in repr(vars(distributed).get("__getattr__")),
    }


def act(what: str) -> None:
    """Do something that may show a difference."""
    if what == "star":
        exec("from distributed import *")
    elif what in ("modules", "modules, reversed"):
        for name in MODULES if what == "modules" else reversed(MODULES):
            importlib.import_module(f"distributed.{name}")
    elif what == "threads":
        wanted = ["Client", "Scheduler", "LocalCluster", "get_worker", "Nanny", "config"] * 3
        threads = [threading.Thread(target=getattr, args=(distributed, name)) for name in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


print(json.dumps(look()))
