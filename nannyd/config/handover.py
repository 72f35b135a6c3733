"""What the launcher hands to the supervisor: three lines of JSON.

The plan; then what the supervisor answers to whoever asks it for its plan and for an explanation, as text
and as the documents of `nannyd plan --json` and `nannyd explain --json`, secrets masked.  The supervisor has
no pydantic to make them itself, and the files may have changed since.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from nannyd.config.compile import Source
from nannyd.config.explain import explain_document, explain_text, plan_document, plan_text
from nannyd.core.plan import to_json

if TYPE_CHECKING:
    from nannyd.config.compile import Compiled


def handover(compiled: Compiled) -> bytes:
    """Return the three lines for *compiled*."""
    shown = replace(compiled, source=Source.SELF)
    plan = {"text": plan_text(shown), "plan": plan_document(shown)}
    explanation = {"text": explain_text(shown), "explanation": explain_document(shown)}
    lines = [to_json(compiled.plan), json.dumps(plan), json.dumps(explanation)]
    return "".join(f"{line}\n" for line in lines).encode()
