"""Secrets that systemd keeps for a unit: the files of `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).

A credential of another process's unit may be out of reach for whoever asks for its plan.  That is said
in a note and is no problem; for nannyd itself it is one.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nannyd.config.texts import Credential


@dataclass(slots=True)
class Credentials:
    """The credentials of this process, or of a unit."""

    directory: str | None
    unit: str | None = None
    notes: list[str] = field(default_factory=list)

    def file(self, path: str | Credential) -> tuple[str, str | None]:
        """Return the path of a file that only its user will read, and what is wrong with it, if anything."""
        if isinstance(path, Credential):
            if self.directory is None:
                _, wrong = self.read(path.name)
                return "", None if wrong is None else f"credential {path.name!r} {wrong}"
            path = str(Path(self.directory) / path.name)
        wrong = None
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                wrong = "is not a file"
            elif self.unit is None and not os.access(path, os.R_OK):
                wrong = "cannot be read (Permission denied)"
        except (FileNotFoundError, NotADirectoryError):
            wrong = "is not there"
        except OSError as error:
            if self.unit is None:
                wrong = f"cannot be read ({error.strerror})"
            else:
                self.notes.append(f"{path} of {self.unit} could not be looked at; it is not checked")
        return path, None if wrong is None else f"{path!r} {wrong}; write the path of a PEM file"

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
