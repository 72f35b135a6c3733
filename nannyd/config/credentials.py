"""Secrets that systemd keeps for a unit: the files of `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).

A credential of another process's unit may be out of reach for whoever asks for its plan.  That is said
in a note and is no problem; for nannyd itself it is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Credentials:
    """The credentials of this process, or of a unit."""

    directory: str | None
    unit: str | None = None
    notes: list[str] = field(default_factory=list)

    def read(self, name: str) -> tuple[str, str | None]:
        """Return the text of a credential without one newline at its end, and what is wrong, if anything."""
        if self.directory is None:
            wrong = "cannot be read: $CREDENTIALS_DIRECTORY is not set; write LoadCredential= into the unit"
            return self._unreadable(name, wrong)
        try:
            text = (Path(self.directory) / name).read_bytes().decode()
        except FileNotFoundError:
            wrong = f"is not in $CREDENTIALS_DIRECTORY ({self.directory}); write LoadCredential={name}:PATH"
            return "", wrong + " into the unit"
        except UnicodeDecodeError:
            return "", "is not UTF-8 text; write it in UTF-8"
        except OSError as error:
            return self._unreadable(name, f"cannot be read ({error.strerror})")
        if "\0" in text:
            return "", "has a NUL character; leave it out"
        return text.removesuffix("\n"), None

    def _unreadable(self, name: str, wrong: str) -> tuple[str, str | None]:
        if self.unit is None:
            return "", wrong
        self.notes.append(f"credential {name} of {self.unit} could not be read; its value is not checked")
        return "", None
