"""Instances with `[dask]`, compiled on a machine of 8 GiB and 3.5 CPUs that has no files of Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nannyd.config.compile import Compiled, Request, Surroundings, compile_plan
from nannyd.config.machine import Machine
from nannyd.core.memory import Bound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MACHINE = Machine((Bound("the host's MemTotal", 8 << 30),), 3.5)
SCHEDULER = 'scheduler = "tcp://10.0.0.1:8786"\n'
DASK = f"[dask]\n{SCHEDULER}"


def compiled(
    directory: Path, toml: str, environ: Mapping[str, str] | None = None, **request: Any
) -> Compiled:
    """Compile instance `w`, whose Dask configuration is nowhere but in *environ*."""
    (directory / "w.toml").write_text(toml)
    nothing = {"DASK_ROOT_CONFIG": "/nonexistent", "HOME": "/nonexistent"}
    return compile_plan(
        Request("w", directory, **request), Surroundings({**nothing, **(environ or {})}, MACHINE)
    )
