"""Instances that do nothing but answer: one process with many control sockets.

    python -m benchmarks.answering DIRECTORY COUNT [HUNG]

In DIRECTORY it makes the runtime directories worker1, worker2 … of COUNT instances that answer Status(), and
of HUNG more that listen and say nothing; it prints a line when they are there, and serves until it is ended.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from pathlib import Path

_MIB = 1 << 20


def reply(number: int) -> bytes:
    """Return what instance *number* answers to Status()."""
    now = time.time_ns() // 1000
    limit = 400 * _MIB
    answer = {
        "instance": f"worker{number}",
        "version": "0.1.0",
        "processId": 1000 + number,
        "startedAt": now - 3_600_000_000,
        "unit": None,
        "state": "running",
        "activeState": "active",
        "goal": "up",
        "sentence": f"worker {5000 + number} running, 100.0 of 400.0 MiB (25 %)",
        "generation": 2,
        "restarts": 1,
        "restartsByResult": {"memory": 1},
        "nextStartAt": None,
        "startLimitHit": False,
        "logLevel": 6,
        "worker": {
            "processId": 5000 + number,
            "startedAt": now - 60_000_000 * number,
            "readyAt": now - 60_000_000 * number,
            "status": "",
            "address": "",
            "directory": "",
            "localDirectory": f"/var/lib/nannyd/worker{number}/scratch/worker-abc",
            "controlGroup": f"/system.slice/system-nannyd.slice/nannyd@worker{number}.service/worker-2",
        },
        "memory": {
            "mode": "cgroup",
            "weaker": None,
            "limit": limit,
            "where": "memory.limit of /etc/nannyd/nannyd.toml",
            "warn": int(limit * 0.8),
            "terminate": int(limit * 0.95),
            "max": limit,
            "workingSet": limit * (number % 10) // 10,
            "anon": 90 * _MIB,
            "shmem": 0,
            "kernel": 10 * _MIB,
            "swap": 0,
            "peak": 150 * _MIB,
        },
        "lastExit": {
            "generation": 1,
            "result": "memory",
            "who": "nannyd",
            "how": "was killed by SIGTERM",
            "detail": "memory.terminate: 380.0 MiB of 400.0 MiB (95.0 %)",
            "exitStatus": None,
            "signal": "SIGTERM",
            "at": now - 60_000_000 * number,
            "uptime": 100.5,
            "memoryPeak": 390 * _MIB,
            "wasReady": True,
        },
    }
    return json.dumps({"parameters": answer}).encode() + b"\0"


def listen(directory: Path) -> socket.socket:
    """Return the listening control socket of the instance whose runtime directory is *directory*."""
    directory.mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listening.bind(str(directory / "control"))
    listening.listen(16)
    return listening


def main(parent: Path, count: int, hung: int) -> None:
    """Serve until somebody ends the process."""
    silent = [listen(parent / f"worker{count + index}") for index in range(1, hung + 1)]
    with selectors.DefaultSelector() as selector:
        for number in range(1, count + 1):
            listening = listen(parent / f"worker{number}")
            selector.register(listening, selectors.EVENT_READ, (True, number))
        print(f"{count} answer, {len(silent)} do not", flush=True)
        while True:
            for key, _ in selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                is_listening, number = key.data
                if is_listening:
                    connection, _ = source.accept()
                    selector.register(connection, selectors.EVENT_READ, (False, number))
                elif source.recv(1 << 16):
                    source.sendall(reply(number))
                else:
                    selector.unregister(source)
                    source.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0]))
