"""Every mistake in a configuration, and the line that says so."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nannyd.config.compile import LEAST_LIMIT, Request, Surroundings, compile_plan
from nannyd.config.explain import plan_text
from nannyd.config.machine import Machine
from nannyd.config.settings import every_setting
from nannyd.core.errors import ConfigError, Problem
from nannyd.core.memory import Bound
from nannyd.core.plan import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MACHINE = Machine((Bound("the host's MemTotal", 8 << 30),), 4.0)


def problems(
    directory: Path,
    toml: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    options: Sequence[tuple[str, str]] = (),
    command: list[str] | None = None,
    name: str = "w",
    machine: Machine = MACHINE,
) -> list[str]:
    """Return the lines that say what is wrong; DIR stands for the configuration's directory."""
    if toml is not None:
        (directory / "w.toml").write_text(toml)
    request = Request(name, directory, list(options), command=command)
    try:
        compile_plan(request, Surroundings(environ or {}, machine))
    except ConfigError as error:
        return [str(problem).replace(str(directory), "DIR") for problem in error.problems]
    return []


WORKER = '[worker]\ncommand = ["sleep", "1"]\n'
CLASS = '[worker]\nclass = "a.b:C"\n'

_TABLE = r"""
memory.limit = "lots"
    'lots' is not a size; write auto, 512M, 4GiB, 0.5 or none
memory.limit = 1
    1 is ambiguous; write 1GiB, 1.0 or 100%
memory.limit = "1"
    '1' is ambiguous; write 1GiB, 1.0 or 100%
memory.limit = "64"
    '64' is ambiguous; write 64GiB or 64%
memory.limit = 512
    512 is ambiguous; write 512MiB or 512GiB
memory.limit = 4294967296
    4294967296 is ambiguous; write 4294967296B or 4294967296KiB
memory.limit = 1.5
    1.5 is not a size; write auto, 512M, 4GiB, 0.5 or none
memory.limit = true
    true is not a size; write auto, 512M, 4GiB, 0.5 or none
memory.limit = []
    [] is not a size; write auto, 512M, 4GiB, 0.5 or none
memory.limit = "120%"
    '120%' is not a size; write auto, 512M, 4GiB, 0.5 or none
memory.warn = "soon"
    'soon' is not a fraction of the limit; write 0.8, 80% or none
memory.terminate = 95
    95 is not a fraction of the limit; write 0.8, 80% or none
memory.max = true
    true is not a fraction of the limit; write 0.8, 80% or none
memory.swap = 4
    4 is ambiguous; write 4MiB or 4GiB
memory.swap = "none"
    'none' is not a size; write 0, 512M, 4GiB or infinity
memory.mode = "v2"
    'v2' is not a way to watch memory; write auto, cgroup or poll
worker.command = "sleep 1"
    'sleep 1' is not a command; write a list of strings, for example ["/usr/bin/worker", "--fast"]
worker.command = []
    [] is not a command; write a list of strings, for example ["/usr/bin/worker", "--fast"]
worker.command = ["sleep", 1]
    1 is not a string; write it in quotes, for example "1"
worker.command = ["sleep", true]
    true is not a string; write it in quotes, for example "true"
worker.command = ["a\u0000b"]
    'a\x00b' has a NUL character; leave it out
worker.class = "a.b"
    'a.b' is not a class; write package.module:Class
worker.python = "python3"
    'python3' is not an absolute path; write for example /srv/app/venv/bin/python
worker.working-directory = "app"
    'app' is not an absolute path; write for example /srv/app
worker.local-directory = 3
    3 is not an absolute path; write for example /var/tmp
worker.ready = "soon"
    'soon' is not a kind of readiness; write exec or notify
worker.umask = "0999"
    '0999' is not a umask; write "0027" or 0o027
worker.umask = -1
    -1 is not a umask; write "0027" or 0o027
worker.nice = 20
    20 is not a nice level; write a whole number from -20 to 19
worker.nice = 1.5
    1.5 is not a nice level; write a whole number from -20 to 19
worker.oom-score-adj = "high"
    'high' is not an OOM score adjustment; write a whole number from -1000 to 1000
worker.start-timeout = 0
    0 is not a duration above 0; write 30s, 5min or none
worker.start-timeout = "1 fortnight"
    '1 fortnight' is not a duration above 0; write 30s, 5min or none
worker.stop-timeout = "infinity"
    'infinity' is not a finite duration above 0; write 30, 30s or 5min
worker.stop-timeout = inf
    Infinity is not a finite duration above 0; write 30, 30s or 5min
worker.stop-timeout = 0
    0 is not a finite duration above 0; write 30, 30s or 5min
worker.stop-signal = "SIGNOPE"
    'SIGNOPE' is not a signal; write SIGTERM, SIGINT or another name from signal(7)
worker.stop-signal = 0
    0 is not a signal; write SIGTERM, SIGINT or another name from signal(7)
worker.kill-mode = "process"
    'process' is not a kill mode; write mixed or control-group
worker.watchdog = -5
    -5 is not a duration above 0; write 30s, 5min or none
worker.threads = 0
    0 is not a number of threads; write a whole number from 1
worker.preload = "mod"
    'mod' is not a list of modules; write for example ["my.module"]
worker.preload-argv = ["a", ["b"]]
    ["a", ["b"]] is not a list of arguments; write ["--option"] for every preload, or [["--first"],
    ["--second"]] for each its own
worker.args = { a = 1 }
    {"a": 1} is not a list; write for example ["a", 2]
worker.kwargs = 3
    3 is not a table; write [worker.kwargs]
worker.kwargs.since = 2024-01-01
    2024-01-01 is a date or time; write it as a string
worker.kwargs.key = { credential = "../x" }
    ******** is not the name of a credential; write a file's name without a slash
worker.kwargs.x = { credential = "../x" }
    '../x' is not the name of a credential; write a file's name without a slash
restart.mode = "sometimes"
    'sometimes' is not a restart mode; write no, on-success, on-failure, on-abnormal, on-abort,
    on-watchdog or always
restart.mode = false
    false is not a restart mode; write no, on-success, on-failure, on-abnormal, on-abort, on-watchdog or
    always
restart.delay = "fast"
    'fast' is not a duration; write 0, 500ms or 30s
restart.growth = 0.5
    0.5 is not a factor of at least 1; write for example 2
restart.jitter = 2
    2 is not a fraction from 0 to 1; write for example 0.1 or 10%
restart.reset-after = true
    true is not a duration above 0; write 30s, 5min or none
restart.start-limit-interval = "none"
    'none' is not a finite duration above 0; write 30, 30s or 5min
restart.start-limit-burst = -1
    -1 is not a number of starts; write 0 or more
nanny.environ.FOO = true
    true is not a string; write a string, for example "true" or "1"
nanny.environ.FOO = [1]
    [1] is not a string; write a string, a number, false or { credential = "name" }
nanny.environ.FOO = 2024-01-01
    2024-01-01 is not a string; write a string, a number, false or { credential = "name" }
nanny.env.DB_PASSWORD = [1]
    ******** is not a string; write a string, a number, false or { credential = "name" }
nanny.env.NOTIFY_SOCKET = "x"
    'NOTIFY_SOCKET' is set by nannyd itself; choose another name
nanny.unset = "FOO"
    'FOO' is not a list of names; write for example ["LS_COLORS"]
nanny.unset = ["A=B"]
    'A=B' is not the name of a variable; write letters, digits and _
"""
"""A setting in TOML, and indented the answer to it."""


def _values() -> list[tuple[str, str, str]]:
    values: list[tuple[str, str, str]] = []
    for line in _TABLE.strip().splitlines():
        if line.startswith(" "):
            key, value, message = values.pop()
            values.append((key, value, f"{message} {line.strip()}".strip()))
        else:
            key, _, value = line.partition(" = ")
            values.append((key, value, ""))
    return values


VALUES = _values()


@pytest.mark.parametrize(("key", "value", "message"), VALUES, ids=[f"{k} {v}" for k, v, _ in VALUES])
def test_a_wrong_value_is_named_with_what_would_be_right(
    key: str, value: str, message: str, tmp_path: Path
) -> None:
    command = ["sleep", "1"] if not key.startswith("worker.") else None
    needs_class = key.startswith("worker.") and key not in ("worker.command", "worker.class")
    class_ = 'worker.class = "a.b:C"\n' if needs_class else ""
    assert problems(tmp_path, f"{class_}{key} = {value}\n", command=command) == [
        f"DIR/w.toml: {key}: {message}"
    ]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[memory]\nlimt = 3\n", "DIR/w.toml: memory.limt: is not a setting; did you mean memory.limit?"),
        ("[memry]\nlimit = 3\n", "DIR/w.toml: memry: is not a setting; did you mean memory?"),
        ("command = [1]\n", "DIR/w.toml: command: is not a setting; did you mean worker.command?"),
        (
            "[memory]\nstop_timeout = 3\n",
            "DIR/w.toml: memory.stop_timeout: is not a setting; did you mean worker.stop-timeout?",
        ),
        (
            "[memory]\nxyzzy = 3\n",
            (
                "DIR/w.toml: memory.xyzzy: is not a setting; [memory] has limit, warn, terminate, max,"
                " swap, mode"
            ),
        ),
        (
            "[xyzzy]\n",
            "DIR/w.toml: xyzzy: is not a setting; the tables are worker, memory, restart, nanny, agent, dask",
        ),
        ("memory = 3\n", "DIR/w.toml: memory: 3 is not a table; write [memory]"),
        ("[[memory]]\nlimit = 3\n", 'DIR/w.toml: memory: [{"limit": 3}] is not a table; write [memory]'),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known(toml: str, line: str, tmp_path: Path) -> None:
    assert problems(tmp_path, toml, command=["true"]) == [line]


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("NANNYD_MEMORY__LIMT", "1G", "is not a variable of nannyd; did you mean NANNYD_MEMORY__LIMIT?"),
        ("NANNYD_MEMORY_LIMIT", "1G", "is not a variable of nannyd; did you mean NANNYD_MEMORY__LIMIT?"),
        ("NANNYD_LOG_LEVL", "info", "is not a variable of nannyd; did you mean NANNYD_LOG_LEVEL?"),
        ("NANNYD_Q", "x", "is not a variable of nannyd; the settings are listed by nannyd run --help"),
        ("NANNYD_MEMORY__LIMIT", "lots", "'lots' is not a size; write auto, 512M, 4GiB, 0.5 or none"),
        ("NANNYD_MEMORY__LIMIT", "", "'' is not a size; write auto, 512M, 4GiB, 0.5 or none"),
        ("NANNYD_LOG_LEVEL", "loud", "'loud' is not a log level; write debug, info, warning or error"),
        ("NANNYD_LOG_FORMAT", "jsn", "'jsn' is not a log format; write json"),
        (
            "NANNYD_NANNY__UNSET",
            "FOO",
            'the value is not JSON of the right kind; write a list in JSON, for example ["a", "b"]',
        ),
        (
            "NANNYD_NANNY__ENV",
            '["hush"]',
            'the value is not JSON of the right kind; write a table in JSON, for example {"name": "value"}',
        ),
        ("NANNYD_RESTART", '{"mod": "no"}', "is not a setting; did you mean restart.mode?"),
    ],
)
def test_a_wrong_variable_is_named_itself(variable: str, value: str, line: str, tmp_path: Path) -> None:
    assert problems(tmp_path, environ={variable: value}, command=["true"]) == [
        f"environment: {variable}: {line}"
    ]


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--memory.limt", "5", "is not an option; did you mean --memory.limit?"),
        ("--memroy.limit", "5", "is not an option; did you mean --memory.limit?"),
        ("--memory.limit.x", "5", "is not an option; did you mean --memory.limit?"),
        ("--q.z", "5", "is not an option; the settings are listed by nannyd run --help"),
        ("--memory.limit", "5", "'5' is ambiguous; write 5GiB or 5%"),
        (
            "--worker.command",
            "sleep 1",
            'the value is not JSON of the right kind; write a list in JSON, for example ["a", "b"]',
        ),
    ],
)
def test_a_wrong_option_is_named_itself(option: str, value: str, line: str, tmp_path: Path) -> None:
    command = None if option == "--worker.command" else ["true"]
    lines = problems(tmp_path, WORKER, options=[(option, value)], command=command)
    assert lines == [f"command line: {option}: {line}"]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (
            "",
            'DIR/w.toml: worker.command: is missing; write command = [...] or class = "package.module:Class"',
        ),
        (
            f'{WORKER}class = "a:B"\n',
            "DIR/w.toml: worker.class: stands beside worker.command; write only one of them",
        ),
        (
            f"{WORKER}args = [1]\n",
            (
                "DIR/w.toml: worker.args: is for a class, and worker.command is set; write worker.class or"
                " leave it out"
            ),
        ),
        (
            f'{WORKER}kwargs.password = "x"\n',
            (
                "DIR/w.toml: worker.kwargs: is for a class, and worker.command is set; write worker.class"
                " or leave"
                " it out"
            ),
        ),
        (
            f'{CLASS}preload = ["a", "b"]\npreload-argv = [["x"]]\n',
            "DIR/w.toml: worker.preload-argv: has 1 lists for 2 preloads; write one list for each",
        ),
        (
            f"{WORKER}[memory]\nwarn = 0.97\n",
            (
                "DIR/w.toml: memory.warn: 0.97 is not below memory.terminate (0.95); write warn <"
                " terminate < max"
            ),
        ),
        (
            f"{WORKER}[memory]\nmax = 0.9\n",
            "DIR/w.toml: memory.max: 0.9 is not above memory.terminate (0.95); write warn < terminate < max",
        ),
        (
            f"{WORKER}[memory]\nterminate = 1.0\n",
            "DIR/w.toml: memory.terminate: 1 is not below memory.max (1); write warn < terminate < max",
        ),
        (
            f'{WORKER}[memory]\nterminate = "none"\nwarn = 1.0\n',
            "DIR/w.toml: memory.warn: 1 is not below memory.max (1); write warn < terminate < max",
        ),
        (
            f"{WORKER}[restart]\ndelay = 90\n",
            (
                "DIR/w.toml: restart.delay: the delay (1min 30s) is not within restart.max-delay (1min);"
                " write a longer max-delay or a shorter delay"
            ),
        ),
        (
            f"{CLASS}kwargs.token = {{ credential = 'tok' }}\n",
            (
                "DIR/w.toml: worker.kwargs.token: credential 'tok' cannot be read: $CREDENTIALS_DIRECTORY"
                " is not set;"
                " write LoadCredential= into the unit"
            ),
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_clear_error(toml: str, line: str, tmp_path: Path) -> None:
    assert problems(tmp_path, toml) == [line]


def test_an_empty_credentials_directory_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tok").write_text("of the working directory")
    monkeypatch.chdir(tmp_path)
    toml = f"{CLASS}kwargs.token = {{ credential = 'tok' }}\n"
    (line,) = problems(tmp_path, toml, environ={"CREDENTIALS_DIRECTORY": ""})
    assert "$CREDENTIALS_DIRECTORY is not set" in line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[worker]\ncommand = [\n", "DIR/w.toml:2: is not TOML: "),
        (
            b"[worker]\ncommand ~ 3\n",
            "DIR/w.toml:2: is not TOML: expected '=' after a key in a key/value pair",
        ),
        (b"# \xff\n", "DIR/w.toml:1: is not UTF-8 text; write it in UTF-8"),
        (b"a = 1\nb = '\xc3'\n", "DIR/w.toml:2: is not UTF-8 text; write it in UTF-8"),
        (b"[worker]\n[worker]\n", "DIR/w.toml:2: is not TOML: "),
        (
            b"a = " + b"[" * 5000,
            "DIR/w.toml: is not TOML that can be read: tables or lists are nested too deep",
        ),
        (b"a = " + b"9" * 5000, "DIR/w.toml:1: is not TOML: "),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_its_line(content: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_bytes(content)
    (found,) = problems(tmp_path)  # nor is what may stand in it said to be missing
    assert found.startswith(line)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.toml").mkdir()
    (tmp_path / "nannyd.toml.d").write_text("")
    assert problems(tmp_path, command=["true"]) == [
        "DIR/nannyd.toml.d: cannot be read (Not a directory)",
        "DIR/w.toml: cannot be read (Is a directory)",
    ]


def test_a_configuration_directory_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    lines = problems(tmp_path / "nowhere", command=["true"])
    assert lines == [
        "command line: --config-dir: 'DIR' is not a directory; write the directory that holds w.toml"
    ]
    (tmp_path / "file").write_text("")
    lines = problems(tmp_path / "file", command=["true"])
    assert lines == [
        "command line: --config-dir: 'DIR' is not a directory; write the directory that holds w.toml"
    ]


def test_a_file_that_is_not_there_is_told_from_one_that_says_nothing(tmp_path: Path) -> None:
    (line,) = problems(tmp_path)
    assert line.startswith("DIR/w.toml: worker.command: is missing, for there is no such file; write command")
    (line,) = problems(tmp_path, "[memory]\nlimit = '1GiB'\n")
    assert line.startswith("DIR/w.toml: worker.command: is missing; write command")


def test_a_name_that_cannot_be_is_the_only_problem(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "[x]\n", name="../w")
    assert line.startswith("command line: NAME: '../w' begins with '.'")


def test_an_automatic_limit_that_leaves_nothing_is_a_problem(tmp_path: Path) -> None:
    machine = Machine((Bound("memory.max of /a", (32 << 20) + LEAST_LIMIT - 1),), 1.0)
    assert problems(tmp_path, WORKER, machine=machine) == [
        (
            "default: memory.limit: leaves the worker 16.0 MiB (auto: memory.max of /a), less than"
            " 16.0 MiB; write a"
            " size such as 512M, or give this place more memory"
        )
    ]


def test_all_problems_of_all_layers_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "nannyd.toml").write_text("[memry]\n")
    (tmp_path / "w.toml.d").mkdir()
    (tmp_path / "w.toml.d" / "10.toml").write_text("broken\n")
    lines = problems(
        tmp_path,
        '[memory]\nlimit = "lots"\nwarn = "x"\n[worker]\nnice = 99\nargs = ["a"]\ncommand = ["b"]\n',
        environ={"NANNYD_RESTART__MODE": "x", "NANNYD_NOPE": "1"},
        options=[("--worker.nope", "1"), ("--restart.jitter", "9")],
    )
    assert [line.split(": ")[1] for line in lines] == [
        "memry",
        "is not TOML",
        "NANNYD_NOPE",
        "--worker.nope",
        "worker.nice",
        "memory.limit",
        "memory.warn",
        "NANNYD_RESTART__MODE",
        "--restart.jitter",
        "worker.args",
    ]


def test_a_wrong_value_that_is_overridden_is_not_judged(tmp_path: Path) -> None:
    assert problems(tmp_path, f'{WORKER}[memory]\nlimit = "lots"\n', options=[("--memory.limit", "1G")]) == []


FOREIGN_WORDS = re.compile(r"pydantic|validation|input|https?:|type=|errors?\b|traceback", re.IGNORECASE)


def test_no_word_of_pydantic_reaches_the_user(tmp_path: Path) -> None:
    toml = "\n".join(f"{key} = {value}" for key, value, _ in {value[0]: value for value in VALUES}.values())
    text = "\n".join(problems(tmp_path, toml.replace("worker.kwargs = 3\n", "")))
    assert text
    assert FOREIGN_WORDS.findall(text) == []


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec="ascii"), max_size=5)
)


def _tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(["A", "credential", "=", ""]), values, max_size=2)


_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=2) | _tables(inner), max_leaves=4)


@settings(deadline=None)
@given(st.sampled_from([setting.name for setting in every_setting()]), _VALUES)
@example("dask.resources", {"A": {}})
def test_any_value_is_taken_or_answered(name: str, value: Any) -> None:
    section, key = name.split(".")
    variable = f"NANNYD_{section.upper()}"
    request = Request("w", Path("/"), command=None if section == "dask" else ["true"])
    environ = {variable: json.dumps({key: value})}
    if section == "dask":
        environ["NANNYD_DASK__SCHEDULER"] = "tcp://x:1"
    wrong: list[Problem] = []
    try:
        compiled = compile_plan(request, Surroundings(environ, MACHINE))
    except ConfigError as error:
        wrong = error.problems
    else:
        assert from_json(to_json(compiled.plan)).name == "w"
        assert tomllib.loads(plan_text(compiled))
    assert {problem.key for problem in wrong} <= {variable}
    assert FOREIGN_WORDS.findall("\n".join(map(str, wrong))) == []


def test_a_number_too_long_to_print_is_answered(tmp_path: Path) -> None:
    digits = "0x" + "f" * 5000
    toml = f"[worker]\nclass = 'm:C'\nnice = {digits}\nargs = [[{digits}]]\nkwargs.a = {{ b = {digits} }}\n"
    message = "has a number that does not fit into 64 bits; write a smaller one"
    assert problems(tmp_path, toml) == [
        f"DIR/w.toml: worker.{key}: {message}" for key in ("nice", "args", "kwargs.a.b")
    ]
