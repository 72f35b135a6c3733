"""What bash completes, by one of our scripts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def completer(script: Path, home: Path) -> Callable[..., list[str]]:
    """Return a function that completes a command line, `complete("nannyd", "ru")`; in whole words.

    *home* has the configuration of worker1 and web.
    """
    (home / "nannyd").mkdir()
    for name in ("nannyd", "worker1", "web"):
        (home / f"nannyd/{name}.toml").touch()

    def complete(*words: str) -> list[str]:
        last = words[-1].rpartition("=")[2]
        program = f'compopt() {{ :; }}; . "{script}"; COMP_LINE=$* COMP_POINT=${{#COMP_LINE}}; '
        program += f'_{words[0]} {words[0]} "{last}" ""; '
        program += 'printf "%s\\n" "${COMPREPLY[@]}"'
        result = subprocess.run(
            ["bash", "-c", program, "bash", *words],
            check=True,
            capture_output=True,
            text=True,
            env={"XDG_CONFIG_HOME": str(home), "HOME": str(home), "PATH": "/usr/bin:/bin"},
        )
        assert result.stderr == ""
        return result.stdout.split()

    return complete
