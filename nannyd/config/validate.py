"""From the merged tree to `Settings`: every value judged, every mistake said in nannyd's own words.

pydantic finds the values that are not of their kind; those are taken out of the tree, so that the rules
between settings (`_rules`) can still be checked on what is left.  No word of pydantic's reaches the user.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nannyd.config import daskrules
from nannyd.config import tree as trees
from nannyd.config.kinds import ERROR_TYPE
from nannyd.config.settings import Settings
from nannyd.config.tree import CLASS_ONLY, problem_at
from nannyd.config.wording import show
from nannyd.core.errors import Problem
from nannyd.core.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nannyd.config.tree import Path, Tree

_TYPE_ERRORS = {
    "dict_type": "is not a table; write [{key}]",
    "list_type": "is not a list; write [...]",
    "string_type": 'is not a string; write "..."',
    "missing": "is missing",
    "extra_forbidden": "is not a setting",
    "recursion_loop": "is nested too deep",
}
"""What pydantic's own error types mean; the kinds of `kinds` leave few of them to occur."""


def validate(tree: Tree, home: str | None) -> tuple[Settings, list[Problem]]:
    """Return the settings that *tree* means and all problems; with problems, bad values are defaults.

    *tree* loses the bad values.  *home* is the file in which a missing setting would stand; None: what is
    missing may stand in a file that cannot be read.
    """
    problems: list[Problem] = []
    bad: set[Path] = set()
    while True:
        try:
            settings = Settings.from_layers(trees.plain(tree))
        except ValidationError as error:
            for details in error.errors(include_url=False):
                path = tuple(str(key) for key in details["loc"])
                problem = _translate(tree, path, details)
                if problem not in problems:
                    problems.append(problem)
                bad.add(path[:2])
            # Two errors may stand in one leaf, so that all are said before any is removed.
            for details in error.errors(include_url=False):
                trees.remove(tree, [str(key) for key in details["loc"] if key != "[key]"])
        else:
            return settings, [*problems, *_rules(settings, tree, bad, home)]


def _translate(tree: Tree, path: Path, details: Any) -> Problem:
    context: Mapping[str, Any] = details.get("ctx", {})
    name = tuple(key for key in path if key != "[key]")
    if details["type"] == ERROR_TYPE:
        # A secret-looking key masks its value, but a bad key is itself what must be shown.
        shown = show(context["value"], () if "[key]" in path else name)
        return problem_at(tree, name, f"{shown} {context['text']}")
    sentence = _TYPE_ERRORS.get(details["type"], "is not a value that fits; see nannyd run --help")
    return problem_at(tree, name, f"{show(details['input'], name)} {sentence.format(key='.'.join(name))}")


# Rules between settings


def _rules(settings: Settings, tree: Tree, bad: set[Path], home: str | None) -> Iterator[Problem]:
    """Yield what is wrong between settings; a rule about a bad value is not applied."""
    if settings.dask is not None:
        yield from daskrules.rules(settings, settings.dask, tree, bad, home)
    elif not bad & {("worker", "command"), ("worker", "class")}:
        yield from _worker_rule(settings, tree, home)
    for section in ("worker", "nanny"):
        if not bad & {(section, "preload"), (section, "preload-argv")}:
            yield from _preload_rule(settings, section, tree)
    yield from _threshold_rule(settings, tree, bad)
    if not bad & {("restart", "delay"), ("restart", "max-delay")}:
        yield from _delay_rule(settings, tree)


def _worker_rule(settings: Settings, tree: Tree, home: str | None) -> Iterator[Problem]:
    worker = settings.worker
    if worker.command is None and worker.class_ is None:
        if home is not None:
            why = "is missing" if os.path.exists(home) else "is missing, for there is no such file"  # noqa: PTH110
            message = f'{why}; write command = [...] or class = "package.module:Class"'
            yield Problem(home, "worker.command", message)
    elif worker.command is not None and worker.class_ is not None:
        message = "stands beside worker.command; write only one of them"
        yield problem_at(tree, ("worker", "class"), message)
    elif worker.command is not None:
        for key in CLASS_ONLY:
            if trees.find(tree, ("worker", key)) is not None:
                message = "is for a class, and worker.command is set; write worker.class or leave it out"
                yield problem_at(tree, ("worker", key), message)


def _preload_rule(settings: Settings, section: str, tree: Tree) -> Iterator[Problem]:
    has = getattr(settings, section)
    lists = [element for element in has.preload_argv if isinstance(element, list)]
    if lists and len(lists) != len(has.preload):
        message = f"has {len(lists)} lists for {len(has.preload)} preloads; write one list for each"
        yield problem_at(tree, (section, "preload-argv"), message)


def _threshold_rule(settings: Settings, tree: Tree, bad: set[Path]) -> Iterator[Problem]:
    memory = settings.memory
    steps = [
        (key, value)
        for key, value in (("warn", memory.warn), ("terminate", memory.terminate), ("max", memory.max))
        if value is not None and ("memory", key) not in bad
    ]
    for low, high in itertools.pairwise(steps):
        if low[1] >= high[1]:
            # The one that was written last is to blame, not a default.
            low_is_newer = _rank(tree, low[0]) >= _rank(tree, high[0])
            (key, value), (other, limit) = (low, high) if low_is_newer else (high, low)
            side = "below" if low_is_newer else "above"
            message = f"{value:g} is not {side} memory.{other} ({limit:g}); write warn < terminate < max"
            yield problem_at(tree, ("memory", key), message)
            return


def _rank(tree: Tree, key: str) -> int:
    leaf = trees.find(tree, ("memory", key))
    return -1 if leaf is None else leaf.rank


def _delay_rule(settings: Settings, tree: Tree) -> Iterator[Problem]:
    delay, longest = settings.restart.delay, settings.restart.max_delay
    if delay > longest:
        key = "delay" if trees.find(tree, ("restart", "delay")) is not None else "max-delay"
        message = (
            f"the delay ({format_duration(delay)}) is not within restart.max-delay"
            f" ({format_duration(longest)}); write a longer max-delay or a shorter delay"
        )
        yield problem_at(tree, ("restart", key), message)
