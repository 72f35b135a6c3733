"""Dask's own configuration, as far as a nanny acts on it; run by the launcher as a script of its own.

It runs in the interpreter, and in the environment, of the worker, so that it finds what the worker will
find, by the rules of dask.config: distributed's defaults, then YAML and JSON files in $DASK_ROOT_CONFIG
(/etc/dask), etc/dask of the interpreter, ~/.config/dask and $DASK_CONFIG, then DASK_* variables.  dask itself
is not imported: that takes four times as long as all of this, and one bad file makes it impossible.

Standard output gets a line of JSON:

    {"missing": name of a module | null,
     "layers": [{"where": path | "environment", "key": variable | "", "default": is distributed's own,
                 "values": {key: value}}],
     "problems": [[where, message]], "notes": [text]}

The layers stand from low to high; the keys are those of `WANTED`.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import site
import sys
from pathlib import Path
from typing import Any

WANTED = (
    "scheduler-address",
    "distributed.comm.default-scheme",
    "distributed.comm.tls.ca-file",
    "distributed.comm.tls.worker.cert",
    "distributed.nanny.blocked-handlers",
    "distributed.nanny.environ",
    "distributed.nanny.pre-spawn-environ",
    "distributed.nanny.preload",
    "distributed.nanny.preload-argv",
    "distributed.worker.memory.pause",
    "distributed.worker.memory.spill",
    "distributed.worker.memory.target",
    "distributed.worker.memory.terminate",
    "distributed.worker.preload",
    "distributed.worker.preload-argv",
)
_OLD = {
    "distributed.comm.default-scheme": "default-scheme",
    **{f"distributed.worker.memory.{name}": f"worker-memory-{name}" for name in ("pause", "spill", "target")},
    "distributed.worker.memory.terminate": "worker-memory-terminate",
}
"""Names of old that Dask still takes (distributed.config.deprecations)."""
_INHERITED = "DASK_INTERNAL_INHERIT_CONFIG"
_NOTHING = object()


class Reader:
    """What was found so far."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.layers: list[dict[str, Any]] = []
        self.problems: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def read(self, package: Path, environ: dict[str, str]) -> None:
        """Read everything; *package* is the directory of distributed."""
        self._file(package / "distributed.yaml", default=True)
        for path in _files(environ, self.notes):
            self._file(path)
        for variable, tree in _variables(environ, self.problems):
            self._add("environment", variable, tree)

    def _file(self, path: Path, *, default: bool = False) -> None:
        import yaml

        try:
            tree = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
            if isinstance(tree, dict):
                self._add(str(path), "", tree, default=default)
            elif tree is not None:
                message = "is no configuration of Dask; write a table such as distributed: {...}"
                self.problems.append((str(path), message))
        except OSError as error:
            self.notes.append(f"{path} cannot be read ({error.strerror}); Dask leaves it out")
        except UnicodeDecodeError as error:
            self.problems.append((str(path), f"is not {error.encoding} text; write it in that"))
        except RecursionError:
            self.problems.append((str(path), "is not YAML that can be read: it is nested too deep"))
        except Exception as error:  # noqa: BLE001 - ValueErrors of numbers and dates, and YAML's own
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = str(path) if mark is None else f"{path}:{mark.line + 1}"
            words = " ".join(str(problem or error).split())
            self.problems.append((where, f"is not YAML: {words}"))

    def _add(self, where: str, key: str, tree: dict[Any, Any], *, default: bool = False) -> None:
        old = {name: value for name in _OLD if (value := pick(tree, _OLD[name])) is not _NOTHING}
        values = {name: value for name in WANTED if (value := pick(tree, name)) is not _NOTHING}
        values = {name: _plain(value) for name, value in {**old, **values}.items()}
        if values:
            self.layers.append({"where": where, "key": key, "default": default, "values": values})


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it; Dask, too, makes strings of the names and values of variables."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def pick(tree: Any, name: str) -> Any:
    """Return the value of the dotted *name*; - and _ are the same (dask.config.canonical_name)."""
    for key in name.split("."):
        if not isinstance(tree, dict):
            return _NOTHING
        found = [spelling for spelling in (key, key.replace("-", "_")) if spelling in tree]
        if not found:
            return _NOTHING
        tree = tree[found[0]]
    return tree


def _files(environ: dict[str, str], notes: list[str]) -> list[Path]:
    """Return the files, those that win last (dask.config._get_paths and collect_yaml)."""
    places = [
        environ.get("DASK_ROOT_CONFIG", "/etc/dask"),
        os.path.join(sys.prefix, "etc", "dask"),  # noqa: PTH118
        *(os.path.join(prefix, "etc", "dask") for prefix in site.PREFIXES),  # noqa: PTH118
        os.path.join(os.path.expanduser("~"), ".config", "dask"),  # noqa: PTH111, PTH118
    ]
    if "DASK_CONFIG" in environ:
        places.append(environ["DASK_CONFIG"])
    places = list(reversed(dict.fromkeys(reversed(places))))
    files: list[Path] = []
    for place in (Path(place).absolute() for place in places):
        if not place.is_dir():
            files += [place] if place.exists() else []
            continue
        try:
            names = sorted(os.listdir(place))  # noqa: PTH208
        except OSError as error:
            notes.append(f"{place} cannot be read ({error.strerror}); Dask leaves it out")
            continue
        files += [place / name for name in names if name.lower().endswith((".json", ".yaml", ".yml"))]
    return files


def _variables(environ: dict[str, str], problems: list[tuple[str, str]]) -> list[tuple[str, dict[Any, Any]]]:
    """Return each variable of Dask's with what it means (dask.config.collect_env).

    Among them, unlike among files, a later table replaces an earlier one whole.
    """
    found: list[tuple[str, dict[Any, Any]]] = []
    if _INHERITED in environ:
        try:
            tree = json.loads(base64.urlsafe_b64decode(environ[_INHERITED]))
        except ValueError:
            tree = None
        if isinstance(tree, dict):
            found.append((_INHERITED, tree))
        else:
            problems.append((_INHERITED, "is not a configuration that Dask has written; unset it"))
    for variable, text in environ.items():
        if variable.startswith("DASK_") and variable != _INHERITED:
            value = _interpreted(text)
            path = variable[len("DASK_") :].lower().replace("__", ".").split(".")
            for _, tree in found:
                _remove(tree, path)
            for key in reversed(path):
                value = {key: value}
            found.append((variable, value))
    return found


def _remove(tree: Any, path: list[str]) -> None:
    """Take what stands at *path* out of *tree*."""
    for position, key in enumerate(path):
        if not isinstance(tree, dict):
            return
        dashed = key.replace("_", "-")
        name = key if key in tree else dashed
        if position == len(path) - 1:
            tree.pop(name, None)
        tree = tree.get(name)


def _interpreted(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except Exception:  # noqa: BLE001 - ValueError and SyntaxError, but also MemoryError and RecursionError
        words = {"none": None, "null": None, "false": False, "true": True}
        return words.get(text.lower(), text)


def main() -> None:
    """Print what there is."""
    missing = next((name for name in ("distributed", "yaml") if importlib.util.find_spec(name) is None), None)
    reader = Reader()
    if missing is None:
        spec = importlib.util.find_spec("distributed")
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if places and Path(places[0], "distributed.yaml").exists():
            reader.read(Path(places[0]), dict(os.environ))
        else:
            missing = "distributed"  # a directory of that name
    result = {
        "missing": missing,
        "layers": reader.layers,
        "problems": reader.problems,
        "notes": reader.notes,
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    if sys.path[0] == "":  # `python -c`: the working directory is no place for modules
        del sys.path[0]
    main()
