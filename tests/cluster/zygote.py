"""Schedulers and clients of one version of distributed, each in a process of its own.

    PYTHON zygote.py DESCRIPTOR

distributed is imported once; each line on the socket DESCRIPTOR is a process to be forked, whose own socket
(descriptor 0 of the message) and log (1) come with it.  Such a process ends when its socket does.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

dask: Any = importlib.import_module("dask")  # untyped
distributed: Any = importlib.import_module("distributed")


def main() -> None:
    """Fork what is wanted until the socket ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    wishes = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, descriptors, _, _ = socket.recv_fds(wishes, 1 << 16, 2)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            wishes.close()
            _be(json.loads(data), *descriptors)
        for fd in descriptors:
            os.close(fd)
        wishes.sendall(b"%d\n" % pid)


def _be(wish: dict[str, Any], line: int, log: int) -> None:
    """Be the process of this *wish*; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        dask.config.set(wish["config"])
        roles = {"scheduler": _schedule, "client": _converse, "program": _perform}
        roles[wish["role"]](socket.socket(fileno=line), wish)
        status = 0
    except BaseException:  # noqa: BLE001 (the log is where a test looks)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _schedule(line: socket.socket, wish: dict[str, Any]) -> None:
    """Be a scheduler until SIGTERM, and say its address first."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        security = distributed.Security(**wish["security"])
        loop.add_reader(line, os._exit, 0)
        options = {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0", "dashboard": False}
        async with distributed.Scheduler(security=security, **{**options, **wish["options"]}) as scheduler:
            loop.add_signal_handler(
                signal.SIGTERM, lambda: loop.create_task(scheduler.close(reason="signal"))
            )
            line.sendall(scheduler.address.encode())
            await scheduler.finished()

    asyncio.run(run())


def _converse(line: socket.socket, wish: dict[str, Any]) -> None:
    """Be a client that runs the code it is sent, and says what its last expression gives."""
    # Of __main__, because cloudpickle sends the functions of that module whole.
    names: dict[str, Any] = {"__name__": "__main__", "distributed": distributed, "dask": dask}
    security = distributed.Security(**wish["security"])
    with distributed.Client(wish["address"], security=security, timeout=30) as client:
        names["client"] = client
        file = line.makefile("rwb")
        for request in file:
            code, values = pickle.loads(bytes.fromhex(request.decode()))
            names.update(values)
            try:
                answer = pickle.dumps((None, _run(code, names)))
            except BaseException:  # noqa: BLE001 (told whole)
                answer = pickle.dumps((traceback.format_exc(), None))
            file.write(answer.hex().encode() + b"\n")
            file.flush()
        os._exit(0)  # nobody waits for its farewell to a scheduler that may be gone


def _perform(line: socket.socket, wish: dict[str, Any]) -> None:
    """Run a function of a module, and say how that went: `done`, or the traceback."""
    threading.Thread(target=lambda: line.recv(1) or os._exit(1), daemon=True).start()
    sys.path[:0] = wish["path"]
    try:
        getattr(importlib.import_module(wish["module"]), wish["function"])()
        answer = "done"
    except BaseException:  # noqa: BLE001 (told whole)
        answer = traceback.format_exc()
    line.sendall(answer.encode())


def _run(code: str, names: dict[str, Any]) -> Any:
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        del tree.body[-1]
    exec(compile(tree, "<test>", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<test>", "eval"), names)
    return None


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    main()
