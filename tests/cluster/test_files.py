"""Dask's own configuration: nannyd finds in it what distributed does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from nannyd.config.compile import Compiled, Request, Surroundings, compile_plan
from nannyd.config.explain import explain_text
from nannyd.config.machine import Machine
from nannyd.core.errors import ConfigError
from nannyd.core.memory import Bound

from .lab import VERSIONS, interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MACHINE = Machine((Bound("the host's MemTotal", 8 << 30),), 4.0)

THEIRS = """
import json, dask, distributed
from distributed.nanny import _get_env_variables
get = dask.config.get
print(json.dumps({
    "scheduler": get("scheduler-address", None),
    "environ": _get_env_variables("distributed.nanny.environ"),
    "pre-spawn": _get_env_variables("distributed.nanny.pre-spawn-environ"),
    "nanny": [get("distributed.nanny.preload"), get("distributed.nanny.preload-argv")],
    "worker": [get("distributed.worker.preload"), get("distributed.worker.preload-argv")],
    "blocked": get("distributed.nanny.blocked-handlers", []),
    "terminate": get("distributed.worker.memory.terminate"),
}))
"""


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    """Return an interpreter of each version."""
    return interpreter(request.param)


class Place:
    """Directories of configuration, and the variables that lead there."""

    def __init__(self, directory: Path) -> None:
        """Make them, empty."""
        self.directory = directory
        self.environ = {
            "PATH": os.environ["PATH"],
            "DASK_ROOT_CONFIG": str(directory / "root"),
            "HOME": str(directory / "home"),
            "DASK_CONFIG": str(directory / "own"),
        }

    def write(self, path: str, text: str) -> Path:
        """Write a file: `root`, `home` or `own`, and its name."""
        place, name = path.split("/")
        file = self.directory / (f"{place}/.config/dask" if place == "home" else place) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def compile(self, python: str, toml: str = "") -> Compiled:
        """Compile an instance."""
        (self.directory / "w.toml").write_text(f"dask.nthreads = 1\nworker.python = '{python}'\n{toml}")
        return compile_plan(Request("w", self.directory), Surroundings(self.environ, MACHINE))

    def problems(self, python: str, toml: str = "") -> list[str]:
        """Return what is wrong; DIR stands for the directory."""
        with pytest.raises(ConfigError) as caught:
            self.compile(python, toml)
        return [str(problem).replace(str(self.directory), "DIR") for problem in caught.value.problems]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place without any configuration."""
    return Place(tmp_path)


def inherited(**values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


CASES: list[tuple[dict[str, str], Mapping[str, str]]] = [
    ({}, {}),
    (
        {
            "root/b.yaml": "scheduler-address: tcp://b:1\ndistributed: {nanny: {environ: {A: b, B: 1}}}",
            "root/a.yml": "scheduler_address: tcp://a:1\ndistributed: {nanny: {environ: {A: a, C: 2.50}}}",
            "root/c.txt": "{no yaml",
            "home/x.json": '{"distributed": {"nanny": {"environ": {"B": null, "D": true}}}}',
            "own/y.yaml": "distributed: {nanny: {pre_spawn_environ: {OMP_NUM_THREADS: 7, X: y}}}",
        },
        {},
    ),
    (
        {
            "root/a.yaml": "distributed: {worker: {preload: [a, b], preload-argv: [[x], [y]]}}",
            "home/a.yaml": "distributed: {worker: {memory: {terminate: 0.9}}, nanny: {preload: a.b}}",
        },
        {
            "DASK_SCHEDULER_ADDRESS": "tcp://x:9",
            "DASK_DISTRIBUTED__NANNY__PRELOAD_ARGV": "['1', '2']",
            "DASK_DISTRIBUTED__NANNY__ENVIRON__SOME": "3",
            "DASK_DISTRIBUTED__NANNY__BLOCKED_HANDLERS": "['run']",
            "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "0.97",
        },
    ),
    (
        {
            "root/a.yaml": "worker-memory-terminate: 0.85\ndistributed:\n",
            "own/a.yaml": "",
            "home/a.yaml": "{}",
        },
        {
            "DASK_INTERNAL_INHERIT_CONFIG": inherited(
                distributed={"nanny": {"preload": ["i"], "environ": {"I": 1}}}
            ),
            "DASK_DISTRIBUTED__NANNY": "{'environ': {'J': None, 'K': 2}}",
        },
    ),
]


@pytest.mark.parametrize(("files", "variables"), CASES)
def test_nannyd_finds_what_distributed_finds(
    files: dict[str, str], variables: Mapping[str, str], python: str, place: Place
) -> None:
    for path, text in files.items():
        place.write(path, text)
    place.environ.update(variables)
    done = subprocess.run(
        [python, "-W", "ignore", "-c", THEIRS], env=place.environ, capture_output=True, check=True
    )
    expected = json.loads(done.stdout)
    toml = "" if expected["scheduler"] else "dask.scheduler = 'tcp://none:1'\n"
    settings = place.compile(python, toml).settings
    assert settings.dask is not None
    assert settings.dask.scheduler == (expected["scheduler"] or "tcp://none:1")
    assert settings.nanny.environ == expected["environ"]
    assert settings.nanny.pre_spawn_environ == expected["pre-spawn"]
    for ours, (preload, argv) in ((settings.nanny, expected["nanny"]), (settings.worker, expected["worker"])):
        assert ours.preload == ([preload] if isinstance(preload, str) else preload)
        assert ours.preload_argv == argv
    assert settings.dask.blocked_handlers == expected["blocked"]
    assert settings.memory.terminate == expected["terminate"]


def test_everything_of_nannyds_own_wins_and_explain_names_the_origins(python: str, place: Place) -> None:
    below = place.write(
        "root/a.yaml",
        """
        scheduler-address: 10.0.0.1:8786
        distributed:
          nanny: {environ: {A: dask, B: dask}}
          worker: {memory: {terminate: 0.7}}
        """,
    )
    place.environ["DASK_DISTRIBUTED__NANNY__PRELOAD"] = "my.nanny"
    result = place.compile(python, 'nanny.environ.A = "own"\n')
    lines = [" ".join(line.split()) for line in explain_text(result).splitlines()]
    assert f'dask.scheduler = "tcp://10.0.0.1:8786" # {below}' in lines
    assert f'nanny.environ.A = "own" # {place.directory}/w.toml (over {below})' in lines
    assert f'nanny.environ.B = "dask" # {below}' in lines
    assert 'nanny.preload = ["my.nanny"] # DASK_DISTRIBUTED__NANNY__PRELOAD' in lines
    assert "A=own" in " ".join(lines)
    assert result.plan.memory.thresholds.terminate == int(0.7 * (result.plan.memory.thresholds.limit or 0))
    assert result.plan.environ["OMP_NUM_THREADS"] == "1"
    assert result.plan.late_environ == {"A": "own", "B": "dask"}


def test_variables_that_the_worker_gets_from_nannyd_lead_the_way(python: str, place: Place) -> None:
    place.write("other/a.yaml", "scheduler-address: tcp://x:1")
    result = place.compile(python, f'nanny.env.DASK_CONFIG = "{place.directory}/other"\n')
    assert result.settings.dask is not None
    assert result.settings.dask.scheduler == "tcp://x:1"


def test_an_instance_without_dask_reads_none_of_it(place: Place) -> None:
    place.write("root/a.yaml", "{not yaml")
    (place.directory / "w.toml").write_text('worker.command = ["true"]\n')
    result = compile_plan(Request("w", place.directory), Surroundings(place.environ, MACHINE))
    assert "OMP_NUM_THREADS" not in result.plan.environ


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a: 1\nb: [1, 2\n", ":3: is not YAML: did not find expected ',' or ']'"),
        ("- a\n", ": is no configuration of Dask; write a table such as distributed: {...}"),
        (
            "scheduler-address: [x]\n",
            ': scheduler-address: ["x"] is not an address; write for example tcp://10.0.0.1:8786',
        ),
        (
            "distributed: {worker: {memory: {terminate: lots}}}\n",
            (
                ": distributed.worker.memory.terminate: 'lots' is not a fraction of the limit; write 0.8, 80%"
                " or none"
            ),
        ),
        (
            "distributed: {nanny: {environ: 3}}\n",
            ": distributed.nanny.environ: 3 is not a table; write [nanny.environ]",
        ),
        (
            "distributed: {nanny: {environ: {NOTIFY_SOCKET: 3}}}\n",
            (
                ": distributed.nanny.environ.NOTIFY_SOCKET: 'NOTIFY_SOCKET' is set by nannyd itself; choose"
                " another name"
            ),
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_problem_that_names_it(
    text: str, answer: str, python: str, place: Place
) -> None:
    place.write("root/a.yaml", text)
    toml = "" if text.startswith("scheduler-address") else "dask.scheduler = 'tcp://x:1'\n"
    found = place.problems(python, toml)
    assert [line.partition("expected ',' or ']'")[0] for line in found] == [
        f"DIR/root/a.yaml{answer}".partition("expected ',' or ']'")[0]
    ]


def test_a_mistake_in_a_variable_is_named(python: str, place: Place) -> None:
    place.environ["DASK_SCHEDULER_ADDRESS"] = "tcp://nowhere"
    assert place.problems(python) == [
        "environment: DASK_SCHEDULER_ADDRESS: 'tcp://nowhere' has no port; write tcp://nowhere:8786"
    ]
    place.environ["DASK_INTERNAL_INHERIT_CONFIG"] = "x"
    assert place.problems(python, "dask.scheduler = 'tcp://x:1'\n") == [
        "environment: DASK_INTERNAL_INHERIT_CONFIG: is not a configuration that Dask has written; unset it"
    ]


def test_an_interpreter_without_dask_is_one_problem_that_says_what_to_install(place: Place) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", place.directory / "bare"], check=True)
    python = f"{place.directory}/bare/bin/python"
    assert place.problems(python, "dask.scheduler = 'tls://x:1'\n") == [
        (
            "DIR/w.toml: worker.python: 'DIR/bare/bin/python' has no distributed, which [dask] needs; install"
            " python3-distributed, or nannyd[dask] with pip, or write an interpreter that has it"
        )
    ]


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("#!/bin/sh\necho oh no >&2; exit 3\n", "cannot say Dask's configuration: status 3, oh no"),
        ("#!/bin/sh\necho nonsense\n", "cannot say Dask's configuration: "),
        ("#!/bin/sh\n", "cannot say Dask's configuration: status 0, it says nothing"),
        ("#!/nonexistent\n", "cannot be executed (No such file or directory)"),
    ],
)
def test_a_program_that_is_no_interpreter_is_one_problem(script: str, answer: str, place: Place) -> None:
    python = place.directory / "python"
    python.write_text(script)
    python.chmod(0o755)
    (line,) = place.problems(str(python), "dask.scheduler = 'tcp://x:1'\n")
    assert line.startswith(f"DIR/w.toml: worker.python: 'DIR/python' {answer}")


def test_an_interpreter_that_hangs_does_not_hang_nannyd(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nannyd.config.daskfiles.TIMEOUT", 0.2)
    python = place.directory / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    (line,) = place.problems(str(python), "dask.scheduler = 'tcp://x:1'\n")
    assert line.endswith("does not answer within 0.2 s when it is asked for Dask's configuration")


def test_modules_of_the_working_directory_are_not_taken_for_libraries(
    place: Place, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    (place.directory / "yaml.py").write_text("raise SystemExit('taken')\n")
    monkeypatch.chdir(place.directory)
    assert place.compile(python, "dask.scheduler = 'tcp://x:1'\n").plan.dask is not None
