"""A preload of the Nanny's worker: eat in a thread, as a task of Dask would, by the C code of `eater.c`."""

import ctypes
import os
import threading


def dask_setup(_worker: object) -> None:
    """Wait at the gate, then eat; ctypes gives up the interpreter's lock meanwhile."""
    library = ctypes.CDLL(os.environ["BENCH_EATER"])
    record, gate = (os.environ[name].encode() for name in ("BENCH_RECORD", "BENCH_GATE"))
    rate, largest = ctypes.c_double(float(os.environ["BENCH_RATE"])), ctypes.c_longlong(1 << 30)
    threading.Thread(target=library.eat, args=(record, gate, rate, largest), daemon=True).start()
