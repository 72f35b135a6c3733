"""Rows of figures, as one table for people and as JSON for programs."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = ("nannyd", "Nanny", "supervisord", "circusd", "systemd")
PEER = "Nanny"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of several programs."""

    group: str
    label: str
    unit: str
    samples: dict[str, list[float]]
    """By column: all that was measured."""
    statistic: str = "median"
    """`median` or `max`: which of the samples counts."""
    at_most: float | None = None
    """What nannyd shall not exceed."""
    ratio: float | None = None
    """Which share of the Nanny's figure nannyd shall not exceed."""
    note: str = ""

    def value(self, column: str) -> float | None:
        """Return what counts for *column*."""
        samples = self.samples.get(column)
        if not samples:
            return None
        return max(samples) if self.statistic == "max" else statistics.median(samples)

    def share(self) -> float | None:
        """Return nannyd's figure divided by the Nanny's."""
        own, other = self.value("nannyd"), self.value(PEER)
        return own / other if own is not None and other else None

    def met(self) -> bool | None:
        """Say whether nannyd meets its target; None: it has none here."""
        own, share = self.value("nannyd"), self.share()
        verdicts = []
        if self.at_most is not None and own is not None:
            verdicts.append(own <= self.at_most)
        if self.ratio is not None and share is not None:
            verdicts.append(share <= self.ratio)
        return all(verdicts) if verdicts else None

    def target(self) -> str:
        """Return the target in words."""
        words = [] if self.at_most is None else [f"≤ {self.at_most:g}"]
        words += [] if self.ratio is None else [f"≤ {self.ratio:g} ×"]
        return ", ".join(words)


def render(rows: Sequence[Row]) -> str:
    """Return *rows* as a table, one section for each group."""
    head = ["", *COLUMNS[:2], "ratio", *COLUMNS[2:], "target", ""]
    lines: list[list[str]] = [head]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append([group])
        share = row.share()
        cells = {column: _number(row.value(column)) for column in COLUMNS}
        lines.append(
            [
                f"  {row.label}, {row.unit}",
                *(cells[column] for column in COLUMNS[:2]),
                "" if share is None else f"{share:.2f}",
                *(cells[column] for column in COLUMNS[2:]),
                row.target(),
                {True: "met", False: "MISSED", None: ""}[row.met()],
            ]
        )
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(head))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    if len(cells) == 1:
        return f"\n{cells[0]}"
    numbers = len(cells) - 3  # the label, the target and the verdict begin at the left
    aligned = [cells[0].ljust(widths[0])]
    aligned += [cells[i + 1].rjust(widths[i + 1]) for i in range(numbers)]
    aligned += [cells[-2].ljust(widths[-2]), cells[-1]]
    return "  ".join(aligned).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0:
        return "0"
    for above, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= above:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def to_json(rows: Sequence[Row], circumstances: Mapping[str, Any]) -> str:
    """Return everything that was measured, and where."""
    figures = [
        {
            **asdict(row),
            "values": {column: row.value(column) for column in row.samples},
            "share": row.share(),
            "met": row.met(),
        }
        for row in rows
    ]
    return json.dumps({**circumstances, "rows": figures}, indent=1, ensure_ascii=False) + "\n"
