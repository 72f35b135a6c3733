"""How values and suggestions are worded in messages; what looks secret is never shown."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from nannyd.core.environ import MASK, looks_secret, mask_arguments, mask_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST = 80


def is_secret_path(path: Sequence[str]) -> bool:
    """Say whether something on the way to a value is called like a secret."""
    return any(looks_secret(key) for key in path)


def show(value: Any, path: Sequence[str] = ()) -> str:
    """Return *value*, found at *path*, as a message names it: `'lots'`, `true`, `["a", 1]`."""
    if is_secret_path(path):
        return MASK
    if isinstance(value, str):
        text = repr(mask_url(mask_arguments([value])[0]))
    elif isinstance(value, list | dict | bool | int | float) or value is None:
        text = json.dumps(masked(value), default=str, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def masked(value: Any) -> Any:
    """Return a copy of *value* in which nothing secret is left, however deep it stands."""
    if isinstance(value, dict):
        return {
            key: MASK if looks_secret(str(key)) or key == "credential" else masked(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item) for item in mask_arguments(value)]
    return mask_url(value) if isinstance(value, str) else value


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the one of *known* that *name* was probably meant to be."""
    names = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=likeness)
    return names[found[0]] if found else None
