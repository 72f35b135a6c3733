"""A worker that leaks: it says that it is ready, then holds on to more memory every moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import sdnotify

STEP = 2 << 20
PAUSE = 0.04  # 50 MiB a second


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def asked_to_stop(*_: object) -> None:
    Path(sys.argv[1]).write_text(f"{os.getpid()}\n")
    say("asked to stop: saving my work, then leaving")
    os._exit(0)  # an exception could be swallowed by what was interrupted


def main() -> None:
    signal.signal(signal.SIGTERM, asked_to_stop)
    sdnotify.SystemdNotifier().notify("READY=1\nSTATUS=leaking")
    kept: list[bytearray] = []
    while True:
        kept.append(bytearray(b"x" * STEP))
        if len(kept) % 20 == 0:
            say(f"holding {len(kept) * STEP >> 20} MiB")
        time.sleep(PAUSE)


main()
