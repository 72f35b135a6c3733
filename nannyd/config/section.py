"""What the sections of the settings have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from nannyd.config import texts
from nannyd.config.texts import Credential

VariableTable = dict[Annotated[str, texts.variable_name], Annotated[str | Credential, texts.variable_value]]


def kebab(name: str) -> str:
    """Return the key in a file of the attribute *name*."""
    return name.rstrip("_").replace("_", "-")


class Section(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=kebab)


@dataclass(frozen=True, slots=True)
class Table:
    """What is to be known of a setting that is a table of free keys; it stands in its annotation."""

    dotted: bool = False
    """A key with dots leads into tables."""
    cased: bool = False
    """The keys stay as they are written, in variables, too."""


NO_TABLE = Table()
