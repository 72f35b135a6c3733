"""What a Python worker may import: `from nannyd.worker import Worker, notify`.

This package runs inside the user's interpreter, which is any Python from 3.10 on and has nothing of
nannyd's installed.  It uses the standard library only, and of nannyd itself `core.wire`.
"""

from nannyd.worker.api import Worker, notify

__all__ = ["Worker", "notify"]
