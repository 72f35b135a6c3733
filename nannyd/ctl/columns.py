"""Tables: cells in columns that are narrowed until they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nannyd.ctl import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nannyd.ctl.render import Style

GAP = 2
_LAST_ENOUGH, _LAST_HALF, _LAST_LEAST = 24, 12, 8
_NAME_ENOUGH, _NAME_LEAST = 16, 8
_FIGURES = 2
"""The first column behind name and state."""
_NOTHING = ("", "-")


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its colour."""

    text: str = ""
    colour: str = ""


Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """What each column is, by its index: the name is the first, what there is to say the last."""

    bar: int
    right: frozenset[int]
    """Those of figures."""

    def fit(self, rows: Sequence[Row], width: int, *, utf8: bool) -> list[Row]:
        """Return *rows* filled up to columns, at most *width* wide (0: as wide as it is) with the gaps."""
        if not rows:
            return []
        widths = [max(render.width_of(row[index].text) for row in rows) for index in range(len(rows[0]))]
        if width:
            self._narrow(widths, width)
        return [self._row(row, widths, width, utf8=utf8) for row in rows]

    def _narrow(self, widths: list[int], width: int) -> None:
        """Take from the last column while it says enough; else the bars, then from it, then the name."""

        def over() -> int:
            used = [wide for wide in widths if wide]
            return sum(used) + GAP * (len(used) - 1) - width

        if over() > max(0, widths[-1] - _LAST_ENOUGH):
            widths[self.bar] = 0
        widths[-1] -= max(0, min(over(), widths[-1] - _LAST_HALF))
        widths[0] -= max(0, min(over(), widths[0] - _NAME_ENOUGH))
        widths[-1] -= max(0, min(over(), widths[-1] - _LAST_LEAST))
        widths[0] -= max(0, min(over(), widths[0] - _NAME_LEAST))

    def _row(self, row: Row, widths: list[int], width: int, *, utf8: bool) -> Row:
        cells: list[Cell] = []
        left, right = width or sum(widths) + GAP * len(widths), self.right
        if render.width_of(row[-1].text) > widths[-1] and all(it.text in _NOTHING for it in row[_FIGURES:-1]):
            # Where there are no figures, the words may have their room.
            row, widths, right = (*row[:_FIGURES], row[-1]), [*widths[:_FIGURES], left], frozenset()
        for index, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            if not wide or left <= 0:
                continue
            text = render.ellipsize(cell.text, min(wide, left), utf8=utf8)
            cells.append(Cell(render.pad(text, min(wide, left), right=index in right), cell.colour))
            left -= wide + GAP
        return tuple(cells)


def painted(row: Row, style: Style) -> str:
    """Return a row as a line, the blanks between its texts without colour."""
    parts = []
    for cell in row:
        text = cell.text.strip(" ")
        parts.append(cell.text.replace(text, style.paint(text, cell.colour), 1) if text else cell.text)
    return (" " * GAP).join(parts).rstrip()
