"""What `nannyctl top` shows, as lines of coloured cells.  Pure: `top` collects, paints and hears the keys."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nannyd.core.paths import Scope
from nannyd.ctl import listing, render
from nannyd.ctl.columns import GAP, Cell, Columns, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.ctl.instances import Instance
    from nannyd.ctl.render import Style

Key = tuple[str, Scope]
"""Of an instance."""

_HEADER = ("NAME", "STATE", "WORKER", "CPU", "UPTIME", "MEMORY", "", "RESTARTS", "LAST")
_COLUMNS = Columns(bar=6, right=frozenset({2, 3, 4, 7}))
_CPU = 3
_AROUND = 4
"""Lines that are no instance: title, blank, header; and the last one."""
_KEYS = "m s c u t n sort  i invert  r restart  k kill  l log  ? help  q quit"
_HELP = """\
nannyctl top: every instance of nannyd on this host, every two seconds.

  m  by memory        s  by the share of its limit        c  by CPU
  u  by uptime        t  by restarts                      n  by name
  i  the other way round

  up, down, page up, page down, home, end   select an instance
  r  restart its worker      k  kill its worker      l  what was said last

  q  quit

CPU is the share of one processor that the worker and all it forked use, where the
worker has a cgroup of its own; else that of its main process.
"""


class Mode(enum.Enum):
    """What the screen is for."""

    LIST = enum.auto()
    LOG = enum.auto()
    HELP = enum.auto()


@dataclass(frozen=True, slots=True)
class Log:
    """The last lines of one instance."""

    of: Key
    lines: list[str]
    why_not: str = ""
    """Why they are not the journal's, but nannyd's own."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at one moment."""

    instances: list[Instance] = field(default_factory=list)
    cpu: dict[Key, float] = field(default_factory=dict)
    """The share of one processor."""
    at: float = 0.0
    """Seconds since the epoch."""
    log: Log | None = None


@dataclass(slots=True)
class View:
    """What the user has chosen to see."""

    sight: Sight | None = None
    mode: Mode = Mode.LIST
    order: str = "m"
    inverted: bool = False
    selected: Key | None = None
    first: int = 0
    """The instance on the first line."""
    message: str = ""
    question: str = ""


# Order


def _memory(instance: Instance, _: Sight) -> float | None:
    return None if instance.status is None else instance.status.memory.working_set


def _share(instance: Instance, _: Sight) -> float | None:
    return listing.share(instance)


def _cpu(instance: Instance, sight: Sight) -> float | None:
    return sight.cpu.get(key_of(instance))


def _uptime(instance: Instance, sight: Sight) -> float | None:
    worker = None if instance.status is None else instance.status.worker
    return None if worker is None else sight.at - worker.started_at


def _restarts(instance: Instance, _: Sight) -> float | None:
    return None if instance.status is None else instance.status.restarts


@dataclass(frozen=True, slots=True)
class Order:
    """By what the instances are sorted."""

    word: str
    column: int
    value: Callable[[Instance, Sight], float | None] | None
    """The highest first; None: by name."""


ORDERS = {
    "m": Order("memory", 5, _memory),
    "s": Order("share of the limit", 5, _share),
    "c": Order("CPU", _CPU, _cpu),
    "u": Order("uptime", 4, _uptime),
    "t": Order("restarts", 7, _restarts),
    "n": Order("name", 0, None),
}
"""By key."""


def key_of(instance: Instance) -> Key:
    """Return what tells an instance from all others."""
    return instance.name, instance.scope


def arranged(view: View) -> list[Instance]:
    """Return the instances in their order; those without a value are last, either way."""
    if view.sight is None:
        return []
    sight, order = view.sight, ORDERS[view.order]
    by_name = sorted(view.sight.instances, key=key_of)
    if order.value is None:
        return by_name[::-1] if view.inverted else by_name
    values = [(order.value(instance, sight), instance) for instance in by_name]
    known = [(value, instance) for value, instance in values if value is not None]
    known.sort(key=lambda pair: pair[0], reverse=not view.inverted)
    return [instance for _, instance in known] + [instance for value, instance in values if value is None]


# Selection


def selection(view: View) -> Instance | None:
    """Return the selected instance: the first one where none is, or it is gone."""
    some = arranged(view)
    return next((one for one in some if key_of(one) == view.selected), some[0] if some else None)


def move(view: View, by: int) -> None:
    """Select the instance *by* so many lines further down."""
    some = arranged(view)
    if some and (present := selection(view)) is not None:
        view.selected = key_of(some[max(0, min(len(some) - 1, some.index(present) + by))])


# Lines


def lines(view: View, style: Style, height: int) -> list[Row]:
    """Return the lines of a screen, *height* lines of `style.width` columns, each cell by cell."""
    if height < 1 or style.width < 1:
        return []
    some: list[Row]
    match view.mode:
        case Mode.HELP:
            some = [(Cell(line),) for line in _HELP.splitlines()]
        case Mode.LOG:
            some = [_title(view, style), (Cell(),), *_log_lines(view, height - 3)]
        case Mode.LIST:
            some = [_title(view, style), (Cell(),), *_table(view, style, height - _AROUND)]
    some = some[: height - 1]
    some += [(Cell(),)] * (height - 1 - len(some))
    return [_cut(line, style) for line in [*some, _foot(view)]]


def _cut(line: Row, style: Style) -> Row:
    cells: list[Cell] = []
    left = style.width
    for cell in line:
        if left <= 0:
            break
        text = render.ellipsize(cell.text, left, utf8=style.utf8)
        cells.append(Cell(text, cell.colour))
        left -= render.width_of(text)
    return tuple(cells)


def _title(view: View, style: Style) -> Row:
    sight = view.sight
    if sight is None:
        return (Cell("nannyctl top", render.BOLD), Cell(" - looking ..."))
    if view.mode is Mode.LOG:
        chosen = selection(view)
        name = "" if chosen is None else render.clean(chosen.name)
        log = _log(view)
        what = f"what {name} and its worker said last"
        if log is not None and log.why_not:
            what = f"nannyd's own last records of {name}: {log.why_not}"
        return (Cell("nannyctl top", render.BOLD), Cell(f" - {what}"))
    count = len(sight.instances)
    running = sum(one.state == "running" for one in sight.instances)
    ill = sum(one.active_state == "failed" or not one.is_well for one in sight.instances)
    way = ", inverted" if view.inverted else ""
    said = f"{count} instance{'' if count == 1 else 's'}, {running} running"
    return (
        Cell("nannyctl top", render.BOLD),
        Cell(f" - {render.clock(sight.at)}, {said}"),
        *((Cell(", "), Cell(f"{ill} need{'s' if ill == 1 else ''} a look", render.RED)) if ill else ()),
        Cell(f", by {ORDERS[view.order].word}{way}"),
    )


def _foot(view: View) -> Row:
    if view.question:
        return (Cell(f"{view.question} (y/n)", render.BOLD),)
    if view.message:
        return (Cell(view.message),)
    return (Cell(_KEYS if view.mode is Mode.LIST else "q back", render.GREY),)


def _log(view: View) -> Log | None:
    """Return the log of the selected instance, once it is there."""
    log = None if view.sight is None else view.sight.log
    return log if log is not None and log.of == view.selected else None


def _log_lines(view: View, height: int) -> list[Row]:
    log = _log(view)
    if log is None or height < 1:
        return []
    return [(Cell(line),) for line in (log.lines or ["Nothing."])[-height:]]


def _table(view: View, style: Style, height: int) -> list[Row]:
    """Return the header and *height* lines of instances, the selected one among them."""
    some = arranged(view)
    if view.sight is None or height < 1:
        return []
    if not some:
        return [(Cell("There are no instances."),)]
    present = selection(view)
    index = 0 if present is None else some.index(present)
    view.first = max(0, min(view.first, index, len(some) - height))
    view.first = max(view.first, index - height + 1)
    seen = some[view.first : view.first + height]
    head = tuple(_head(column, view) for column in range(len(_HEADER)))
    rows = [_row(one, view.sight, style) for one in seen]
    fitted = _COLUMNS.fit([head, *rows], style.width - GAP, utf8=style.utf8)
    dots = [Cell(), *(listing.dot(one, style) for one in seen)]
    return [
        _spread(dot, row, style, selected=number == index - view.first + 1)
        for number, (dot, row) in enumerate(zip(dots, fitted, strict=True))
    ]


def _head(column: int, view: View) -> Cell:
    sorted_by = ORDERS[view.order].column == column
    return Cell(_HEADER[column], SORTED if sorted_by else render.BOLD)


SORTED = "1;4"
SELECTED = "7"
"""Put before the colour of each cell of the line."""


def _row(instance: Instance, sight: Sight, style: Style) -> Row:
    cells = listing.row(instance, style, sight.at)
    cpu = sight.cpu.get(key_of(instance))
    return (*cells[:_CPU], Cell("-" if cpu is None else f"{100 * cpu:.0f}%"), *cells[_CPU:])


def _spread(dot: Cell, row: Row, style: Style, *, selected: bool) -> Row:
    """Return the cells with the gaps between them, over the whole width if it is the selected line."""
    cells = [Cell(render.pad(dot.text, GAP), dot.colour)]
    for cell in row:
        cells += [cell, Cell(" " * GAP)]
    if not selected:
        return tuple(cells)
    used = sum(render.width_of(cell.text) for cell in cells)
    cells.append(Cell(" " * max(0, style.width - used)))
    return tuple(Cell(cell.text, f"{SELECTED};{cell.colour}" if cell.colour else SELECTED) for cell in cells)
