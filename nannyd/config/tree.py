"""Layers of settings laid one over the other, without forgetting where a value came from.

Pure.  A layer is a table of tables with an origin.  Tables merge by key; anything else, lists included,
replaces what is below it.  Each leaf of the result knows its origin and the origins it overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from nannyd.config.dask import DASK_KEYS
from nannyd.config.settings import catalogue
from nannyd.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLASS_ONLY = ("args", "kwargs", "preload", "preload-argv")
"""Settings of `[worker]` that mean something for a class alone; `[dask]` has a class, too."""
NOT_DASK = ("command", "class", "args", "kwargs")
"""Settings of `[worker]` that mean nothing beside `[dask]`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value stands."""

    where: str
    """`default`, the path of a file, `environment` or `command line`."""
    key: str = ""
    """The variable or option, where the value stands in one."""
    is_dask: bool = False
    """It is Dask's own configuration, with keys of its own."""

    def __str__(self) -> str:
        """Return the origin for people: the variable or option, else the file."""
        return self.key or self.where


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one place; each variable and each option is a layer of its own."""

    origin: Origin
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value in the merged tree."""

    value: Any
    origin: Origin
    rank: int
    """The number of its layer; a higher one wins."""
    overridden: tuple[Origin, ...] = ()


Tree: TypeAlias = "dict[str, Leaf | Tree]"
Path: TypeAlias = tuple[str, ...]


def is_table(value: Any, path: Path) -> bool:
    """Say whether *value* at *path* merges by key; a `{ credential = "name" }` is a value like a string."""
    if not isinstance(value, dict):
        return False
    if len(path) == 1:
        return True
    setting = catalogue()[path[0]][path[1]]
    if len(path) == 2:
        return setting.is_table
    return not setting.is_variables and set(value) != {"credential"}


def merge(layers: Sequence[Layer]) -> Tree:
    """Return *layers*, low to high, as one tree without the entries that `false` dropped."""
    tree: Tree = {}
    for rank, layer in enumerate(layers):
        _lay(tree, layer.values, layer.origin, rank, ())
    _drop_false(tree)
    _choose_command_or_class(tree)
    _choose_program_or_dask(tree)
    if next(origins(tree.get("dask", {})), None) is None:
        tree.pop(
            "dask", None
        )  # an empty [dask], as in the reference configuration, makes nobody a Dask worker
    return tree


def _lay(tree: Tree, table: dict[str, Any], origin: Origin, rank: int, path: Path) -> None:
    for key, value in table.items():
        below = tree.get(key)
        # An empty table within a setting is a value, with an origin, unless there is one to lay it on.
        if is_table(value, (*path, key)) and (value or len(path) < 2 or isinstance(below, dict)):
            if not isinstance(below, dict):
                tree[key] = below = {}
            _lay(below, value, origin, rank, (*path, key))
        else:
            overridden = () if below is None else tuple(origin for _, origin in origins(below))
            tree[key] = Leaf(value, origin, rank, overridden)


def origins(node: Leaf | Tree, path: Path = ()) -> Iterator[tuple[Path, Origin]]:
    """Yield every origin in *node*, the overridden ones before the one that won."""
    if isinstance(node, Leaf):
        for origin in (*node.overridden, node.origin):
            yield path, origin
    else:
        for key, child in node.items():
            yield from origins(child, (*path, key))


def _drop_false(tree: Tree) -> None:
    """Remove the variables that a higher layer set to false."""
    for section, settings in catalogue().items():
        for key, setting in settings.items():
            table = _table(tree, section, key) if setting.is_variables else {}
            for name in [n for n, leaf in table.items() if isinstance(leaf, Leaf) and leaf.value is False]:
                del table[name]


def _table(tree: Tree, *path: str) -> Tree:
    for key in path:
        node = tree.get(key, {})
        if isinstance(node, Leaf):
            return {}
        tree = node
    return tree


def _choose_command_or_class(tree: Tree) -> None:
    """Let a higher layer's command replace a lower layer's class, with all that is only for a class.

    Both in the same place stay, for `validate` to complain about.
    """
    worker = _table(tree, "worker")
    command, class_ = worker.get("command"), worker.get("class")
    if not isinstance(command, Leaf) or not isinstance(class_, Leaf):
        return
    if command.origin.where == class_.origin.where:
        return
    if class_.rank > command.rank:
        del worker["command"]
        worker["class"] = replace(class_, overridden=(*class_.overridden, command.origin))
        return
    del worker["class"]
    worker["command"] = replace(command, overridden=(*command.overridden, class_.origin))
    for key in CLASS_ONLY:
        if key in worker and _rank(worker[key]) < command.rank:
            del worker[key]


def _choose_program_or_dask(tree: Tree) -> None:
    """Let a higher layer's command or class replace a lower layer's `[dask]`, and the other way round.

    Both in the same place stay, for `validate` to complain about.
    """
    worker, dask = _table(tree, "worker"), _table(tree, "dask")
    programs = [leaf for key in ("command", "class") if isinstance(leaf := worker.get(key), Leaf)]
    if not dask or not programs:
        return
    top, last = find(dask, ()), max(programs, key=_rank)
    if top is None or any(origin.where == last.origin.where for _, origin in origins(dask)):
        return
    if top.rank > last.rank:
        for key in NOT_DASK:
            if key in worker and _rank(worker[key]) < top.rank:
                del worker[key]
    else:
        del tree["dask"]


def _rank(node: Leaf | Tree) -> int:
    if isinstance(node, Leaf):
        return node.rank
    return max((_rank(child) for child in node.values()), default=-1)


def plain(node: Leaf | Tree) -> Any:
    """Return the bare values of *node*."""
    if isinstance(node, Leaf):
        return node.value
    return {key: plain(child) for key, child in node.items()}


def find(tree: Tree, path: Sequence[str]) -> Leaf | None:
    """Return the leaf at *path*, or the one that *path* leads into; the topmost one below for a table."""
    node: Leaf | Tree = tree
    for key in path:
        if isinstance(node, Leaf):
            break
        if key not in node:
            return None
        node = node[key]
    while not isinstance(node, Leaf):
        if not node:
            return None
        node = max(node.values(), key=_rank)
    return node


def problem_at(tree: Tree, path: Sequence[str], message: str) -> Problem:
    """Return the problem *message* at the place where the value at *path* stands."""
    leaf = find(tree, path)
    origin = DEFAULT if leaf is None else leaf.origin
    return Problem(origin.where, _key(origin, path), message)


def _key(origin: Origin, path: Sequence[str]) -> str:
    if origin.key == "--":
        return "COMMAND"
    name = ".".join(path[:2])
    theirs = DASK_KEYS.get(name) if origin.is_dask else None
    return origin.key or ".".join((theirs or name, *path[2:]))


def remove(tree: Tree, path: Sequence[str]) -> None:
    """Remove the leaf at *path*, or the one that *path* leads into."""
    for key in path:
        node = tree.get(key)
        if node is None:
            return
        if isinstance(node, Leaf) or key == path[-1]:
            del tree[key]
            return
        tree = node
