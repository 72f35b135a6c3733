"""What `dask worker` understands by sizes, ports and shares of the processors, for its command line.

Pure.  The rules are those of dask.utils.parse_bytes, distributed.utils.parse_ports, distributed.worker_memory
and distributed.cli.dask_worker; nannyd's own differ in what `5M` is.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_UNITS = {
    "": 1, "b": 1,
    **{f"{letter}{end}": 1000**power for power, letter in enumerate("kmgtp", 1) for end in ("", "b")},
    **{f"{letter}{end}": 1024**power for power, letter in enumerate("kmgtp", 1) for end in ("i", "ib")},
}  # fmt: skip
_SIZE = re.compile(r"(\d*\.?\d+(?:e[+-]?\d+)?|\d+\.)?([a-z]*)")
_LARGEST_PORT = 65535


def memory_limit(text: str) -> str:
    """Return `--memory-limit` in nannyd's form.  Raises ValueError for what is none."""
    word = text.strip().lower().replace(" ", "")
    if word in ("auto", "none"):
        return word
    try:
        number = float(word)
    except ValueError:
        match = _SIZE.fullmatch(word)
        if not word or match is None or match[2] not in _UNITS:
            raise ValueError(f"{text!r} is not a size; write auto, 5GB, 0.5 or 0 for none") from None
        return f"{int(float(match[1] or 1) * _UNITS[match[2]])}B"
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{text!r} is not a size; write auto, 5GB, 0.5 or 0 for none")
    if number == 0:
        return "none"
    return f"{number * 100:.10g}%" if number <= 1 else f"{int(number)}B"


def resources(text: str) -> dict[str, float]:
    """Return what `--resources "GPU=2 MEM=10e9"` means.  Raises ValueError."""
    found = {}
    for pair in text.replace(",", " ").split():
        name, _, amount = pair.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise ValueError(f"{pair!r} is not a resource; write for example GPU=2") from None
    return found


def processes(nworkers: str | None, nthreads: int, cpus: Callable[[], int]) -> tuple[int, int | None]:
    """Return how many workers are meant, and the threads of each (None: as many as there are CPUs)."""
    if nworkers == "auto":
        return _share(cpus())
    try:
        count = 1 if nworkers is None else int(nworkers)
    except ValueError:
        raise ValueError(f"{nworkers!r} is not a number of workers; write 4, -1 or auto") from None
    if count < 0:
        count += cpus() + 1
    if count <= 0:
        raise ValueError(f"{nworkers!r} is no worker at all on {cpus()} CPUs; write a larger number or auto")
    if nthreads > 0:
        return count, nthreads
    return count, None if count == 1 else max(1, cpus() // count)


def _share(cpus: int) -> tuple[int, int]:
    """Return workers and threads of each (distributed.deploy.utils.nprocesses_nthreads)."""
    count = cpus
    if cpus > 4:
        count = min(n for n in range(1, cpus + 1) if cpus % n == 0 and n >= math.sqrt(cpus))
    return count, cpus // count


def apportion(worker: str | None, nanny: str | None, count: int) -> list[tuple[str | None, str | None]]:
    """Return the ports of each of *count* workers and of its nanny, none of them for two.

    They are dealt in turn, as Dask does it.  Raises ValueError where they do not suffice.
    """
    if count == 1:
        return [(worker, nanny)]
    hands: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
    seen: set[int] = set()
    piles = [_ports(worker), _ports(nanny)]
    turn = 0
    while any(piles):
        for side, pile in enumerate(piles):
            while pile and pile[0] in seen:
                del pile[0]
            if pile:
                seen.add(pile[0])
                hands[turn % count][side].append(pile.pop(0))
        turn += 1
    for side, text in enumerate((worker, nanny)):
        if _ports(text) and not all(hand[side] for hand in hands):
            raise ValueError(f"{text} are not enough ports for {count} workers")
    return [(_text(own), _text(nannys)) for own, nannys in hands]


def _ports(text: str | None) -> list[int]:
    """Return a list of ports; an empty one: whatever is free."""
    if text is None or text.strip() in ("", "0"):
        return []
    first, colon, last = text.partition(":")
    try:
        ports = list(range(int(first), int(last) + 1)) if colon else [int(first)]
    except ValueError:
        ports = []
    if not ports or ports[0] < 1 or ports[-1] > _LARGEST_PORT:
        raise ValueError(f"{text!r} is not a port or range of ports; write 8788 or 8788:8798")
    return ports


def _text(ports: list[int]) -> str | None:
    if not ports:
        return None
    return str(ports[0]) if len(ports) == 1 else f"[{','.join(map(str, ports))}]"
