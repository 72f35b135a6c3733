"""What bash completes, by one of our scripts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def completer(script: Path, home: Path) -> Callable[..., list[str]]:
    """Return a function that completes a command line, `complete("nannyd", "ru")`.

    *home* has the configuration of worker1 and web.
    """
    (home / "nannyd").mkdir()
    for name in ("nannyd", "worker1", "web"):
        (home / f"nannyd/{name}.toml").touch()

    def complete(*words: str) -> list[str]:
        program = f'compopt() {{ :; }}; . "{script}"; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _{words[0]}; '
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
