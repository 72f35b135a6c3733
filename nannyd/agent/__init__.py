"""What the author of a plugin may import: `from nannyd.agent import NannyPlugin`.

This package runs inside the user's interpreter, which is any Python from 3.10 on and has nothing of
nannyd's installed.  It uses the standard library only, and of nannyd itself `core`.
"""

from nannyd.agent.nanny import Answer, Nanny, NannyError
from nannyd.agent.plugin import MemoryReading, NannyPlugin, WorkerExited, WorkerStarted

__all__ = [
    "Answer",
    "MemoryReading",
    "Nanny",
    "NannyError",
    "NannyPlugin",
    "WorkerExited",
    "WorkerStarted",
]
