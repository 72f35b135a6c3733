"""Import distributed as a Dask worker or the agent does; do what the argument says; tell what is there."""

import importlib
import importlib.machinery
import json
import sys
import threading
from typing import Any

sparing: Any = importlib.import_module("nannyd.dask.sparing")  # of the parts that a worker has
configuration: Any = importlib.import_module("nannyd.dask.configuration")
if sys.argv[1] == "worker":
    configuration.configure({}, sparing.spare("distributed.worker"))
else:
    configuration.configure({}, sparing.spare("distributed.core", "distributed.security"))
    importlib.import_module("nannyd.dask.endpoint")

distributed: Any = importlib.import_module("distributed")
dask: Any = importlib.import_module("dask")
DEAR = [
    *(f"distributed.{name}" for name in ("client", "scheduler", "nanny", "deploy")),
    "click.core",
    "jinja2",
]
MODULES = [
    *("active_memory_manager", "actor", "cli", "client", "core", "deploy", "diagnostics", "event", "http"),
    *("lock", "multi_lock", "nanny", "queues", "recreate_tasks", "scheduler", "semaphore", "shuffle"),
    *("spans", "stealing", "utils", "variable", "versions", "worker_client"),
]


def look() -> dict[str, Any]:
    """Return what was found."""
    dear = [name for name in DEAR if name in sys.modules]
    version = distributed.__version__
    act(sys.argv[2])

    names = ("click", "dask.widgets", "logging.config")
    click, widgets, config = (importlib.import_module(name) for name in names)
    return {
        "dear": dear,
        "versions": [version, distributed.__version__],
        "is_whole": all(hasattr(distributed, name) for name in (*distributed.__all__, "Client")),
        "is_config": distributed.config is dask.config.config,
        "has_nonsense": hasattr(distributed, "nonsense") or hasattr(click, "nonsense"),
        "others_are_whole": hasattr(click, "Command") and hasattr(config, "dictConfig"),
        "is_shown": "<table" in distributed.Security()._repr_html_(),
        "templates": len(widgets.TEMPLATE_PATHS),
        "left": left(),
    }


def act(what: str) -> None:
    """Do something that may show a difference."""
    if what == "star":
        exec("from distributed import *")
    elif what == "a module of another":
        importlib.import_module("dask.widgets.widgets")
        importlib.import_module("click.testing")
        exec("from dask.distributed import wait")
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
    elif what == "threads that need each other":
        need_each_other()


def need_each_other() -> None:
    """Import a module in one thread while another one runs the package, which imports it."""
    importing = threading.Thread(target=importlib.import_module, args=["distributed.client"])
    running = threading.Thread(target=getattr, args=(distributed, "Client"))
    imports = threading.Event()

    class Gate:
        def find_spec(self, name: str, path: Any, _target: object = None) -> Any:
            thread = threading.current_thread()
            if thread is importing:
                imports.set()  # it has the lock of the module
            if thread is not running or importing.ident is not None:
                return None
            spec: Any = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def execute_late(module: object) -> None:
                importing.start()
                imports.wait()
                execute(module)

            spec.loader.exec_module = execute_late
            return spec

    sys.meta_path.insert(0, Gate())
    running.start()
    running.join()
    importing.join()
    del sys.meta_path[0]


def left() -> list[str]:
    """Return where something of the sparing is left when everything is there."""
    sparing.complete()
    own = [repr(finder) for finder in sys.meta_path if type(finder).__module__ == sparing.__name__]
    for name, module in [*sys.modules.items()]:
        for attribute, value in [*getattr(module, "__dict__", {}).items()]:
            made = getattr(value, "__qualname__", "")
            if isinstance(made, str) and made.startswith(("_Unrun.", "_Package.", "_Widgets.")):
                own.append(f"{name}.{attribute}")
    return own


print(json.dumps(look()))
