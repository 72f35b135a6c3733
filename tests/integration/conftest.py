"""What the integration tests share: a place to run nannyd in, which must be as it was afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import Host

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nannyd() -> Iterator[Host]:
    """Start `nannyd run`; afterwards no process, socket or scratch directory is left of it."""
    host = Host()
    try:
        yield host
    finally:
        wrong = host.finish()
    assert not wrong, "\n".join(wrong)
