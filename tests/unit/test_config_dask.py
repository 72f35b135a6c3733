"""Every mistake in `[dask]`, and the line that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dask_samples import DASK, SCHEDULER, compiled

from nannyd.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def problems(directory: Path, toml: str, **others: Any) -> list[str]:
    """Return the lines that say what is wrong; DIR stands for the configuration's directory."""
    with pytest.raises(ConfigError) as caught:
        compiled(directory, toml, **others)
    return [str(problem).replace(str(directory), "DIR") for problem in caught.value.problems]


_TABLE = r"""
dask.scheduler = "tcp//x:1"
    'tcp//x:1' is not an address; write for example tcp://10.0.0.1:8786
dask.scheduler = "x:8786"
    'x:8786' has no scheme; write tcp://x:8786
dask.scheduler = "tcp://x"
    'tcp://x' has no port; write tcp://x:8786
dask.scheduler = "tcp://x:0"
    'tcp://x:0' has no port; write tcp://x:8786
dask.scheduler = "tcp://:8786"
    'tcp://:8786' has no host; write for example tcp://10.0.0.1:8786
dask.scheduler = "tcp://x:88888"
    'tcp://x:88888' has a port above 65535; write tcp://HOST:PORT
dask.scheduler = "tcp://::1:8786"
    'tcp://::1:8786' has no brackets; write tcp://[::1]:8786
dask.scheduler = "inproc://x:1"
    'inproc://x:1' is of one process; write for example tcp://10.0.0.1:8786
dask.scheduler = 8786
    8786 is not an address; write for example tcp://10.0.0.1:8786
dask.scheduler-file = "scheduler.json"
    'scheduler.json' is not an absolute path; write for example /srv/dask/scheduler.json
dask.worker-class = "Worker"
    'Worker' is not a class; write package.module.Class or package.module:Class
dask.nthreads = 0
    0 is not a number of threads; write a whole number from 1
dask.name = ""
    '' is not a name; write for example worker-1
dask.name = 1.5
    1.5 is not a name; write for example worker-1
dask.worker-port = "8798:8788"
    '8798:8788' ends before it begins; write 8788:8798
dask.worker-port = 70000
    70000 is not a port; write 8788, a range "8788:8798", a list of ports or none
dask.port = "8788-8798"
    '8788-8798' is not a port; write 8788, a range "8788:8798", a list of ports or none
dask.port = []
    [] is not a port; write 8788, a range "8788:8798", a list of ports or none
dask.host = "two words"
    'two words' is not a host; write for example 10.0.0.7
dask.host = "fe80::1"
    'fe80::1' has no brackets; write [fe80::1]
dask.interface = 0
    0 is not a network interface; write for example eth0
dask.listen-address = "9000"
    '9000' is not an address; write for example tcp://0.0.0.0:9000
dask.dashboard = "maybe"
    'maybe' is not a yes or no; write true or false
dask.death-timeout = 0
    0 is not a duration above 0; write 30s, 5min or none
dask.drain-timeout = "none"
    'none' is not a duration; write 0, 30s or 5min
dask.on-retire = "stop"
    'stop' is not what can follow; write end or restart
dask.silence-logs = "loud"
    'loud' is not a level of Python's logging; write for example warning, 30 or none
dask.blocked-handlers = "run"
    'run' is not a list of operations; write for example ["run", "plugin_add"]
dask.resources = { GPU = "two" }
    dask.resources.GPU: 'two' is not a number; write for example 2 or 10e9
dask.resources = 2
    2 is not a table; write [dask.resources]
dask.worker = { nthreads = 2 }
    dask.worker.nthreads: has a setting of its own; write dask.nthreads
dask.worker = { memory-limit = 2 }
    dask.worker.memory-limit: has a setting of its own; write memory.limit
dask.worker = { "a b" = 2 }
    dask.worker.a b: is not the name of an argument; write letters, digits and _
dask.config = { scheduler-address = "tcp://x:1" }
    dask.config.scheduler-address: has a setting of its own; write dask.scheduler
dask.config = { "distributed.nanny.environ.A" = 1 }
    dask.config.distributed.nanny.environ.A: has a setting of its own; write nanny.environ
dask.config = { distributed.worker.memory.terminate = 0.9 }
    dask.config.distributed.worker.memory.terminate: has a setting of its own; write memory.terminate
dask.config = { "distributed.worker.memory.spill" = 70 }
    dask.config.distributed.worker.memory.spill: 70 is not a fraction of the limit; write 0.8 or false
dask.config = { "distributed.worker.memory.pause" = 0.96 }
    dask.config.distributed.worker.memory.pause: 0.96 is not below memory.terminate (0.95); the worker would
    be ended before
dask.contact-address = "tcp://x:1"
    is without dask.listen-address; write where the worker listens, too
dask.tls = { crt = "/x" }
    dask.tls.crt: is not a setting; did you mean dask.tls.cert?
dask.tls = { password = "x" }
    dask.tls.password: is not a setting; write ca, cert, key, require-encryption, ciphers, min-version,
    max-version
dask.tls = { ca = "ca.pem" }
    dask.tls.ca: 'ca.pem' is not an absolute path; write for example /etc/dask/tls/worker.pem or
    { credential = "name" }
dask.tls = { ca = "/nonexistent/ca.pem" }
    dask.tls.ca: '/nonexistent/ca.pem' is not there; write the path of a PEM file
dask.tls = { ca = "/proc" }
    dask.tls.ca: '/proc' is not a file; write the path of a PEM file
dask.tls = { min-version = 1.1 }
    dask.tls.min-version: 1.1 is not a version of TLS that Dask knows; write 1.2 or 1.3
dask.tls = { min-version = 1.3, max-version = 1.2 }
    dask.tls.min-version: 1.3 is above max-version (1.2); write min-version <= max-version
dask.protocol = "tls"
    is encrypted, and there is no certificate; write ca, cert and key in [dask.tls]
"""
"""A setting in TOML, and indented the answer to it; the key, too, where it is another."""


def _cases() -> list[tuple[str, str]]:
    cases: list[tuple[str, str]] = []
    for line in _TABLE.strip().splitlines():
        if line.startswith(" "):
            setting, answer = cases.pop()
            cases.append((setting, f"{answer} {line.strip()}".strip()))
        else:
            cases.append((line, ""))
    return cases


@pytest.mark.parametrize(("setting", "answer"), _cases())
def test_a_wrong_value_is_named_with_what_would_be_right(setting: str, answer: str, tmp_path: Path) -> None:
    key = setting.partition(" = ")[0]
    toml = setting if key == "dask.scheduler" else f"dask.{SCHEDULER}{setting}"
    line = answer if answer.startswith("dask.") else f"{key}: {answer}"
    assert problems(tmp_path, toml) == [f"DIR/w.toml: {line}"]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (
            "dask.nthreads = 2\n",
            'dask.scheduler: is missing; write scheduler = "tcp://HOST:8786" or scheduler-file = "/PATH"',
        ),
        (
            f'{DASK}scheduler-file = "/x"\n',
            "dask.scheduler-file: stands beside dask.scheduler; write only one of them",
        ),
        (
            f'{DASK}[worker]\ncommand = ["a"]\n',
            "worker.command: stands beside [dask]; write only one of them",
        ),
        (f'{DASK}[worker]\nclass = "a:B"\n', "worker.class: stands beside [dask]; write dask.worker-class"),
        (
            f"{DASK}[worker.kwargs]\nx = 1\n",
            "worker.kwargs: is for worker.class; write the worker's keyword arguments in [dask.worker]",
        ),
        (
            f'{DASK}listen-address = "tcp://:9000"\nworker-port = 9000\n',
            "dask.listen-address: stands beside dask.worker-port; write only one of them",
        ),
        (
            f'{DASK}host = "x"\ninterface = "lo"\n',
            "dask.interface: stands beside dask.host; write only one of them",
        ),
        (
            f'{DASK}reconnect = false\n[restart]\nmode = "always"\n',
            "dask.reconnect: stands beside restart.mode; write only one of them",
        ),
        (f'{DASK}[dask.tls]\nkey = "/x"\n', "dask.tls.key: is without dask.tls.cert; write that, too"),
        (
            f'{DASK}[dask.tls]\ncert = "/x"\nca = "/x"\n',
            "dask.tls.cert: is without dask.tls.key; write that, too; it may be the same file",
        ),
        (
            f'{DASK}[worker]\npreload = ["a", "b"]\npreload-argv = [["x"]]\n',
            "worker.preload-argv: has 1 lists for 2 preloads; write one list for each",
        ),
        (
            '[dask]\nscheduler = "tls://x:1"\n',
            (
                "dask.scheduler: is encrypted, and there is no certificate; write ca, cert and key in"
                " [dask.tls]"
            ),
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_clear_error(toml: str, line: str, tmp_path: Path) -> None:
    found = problems(tmp_path, toml)
    assert [problem for problem in found if "is not there" not in problem] == [f"DIR/w.toml: {line}"]


def test_encryption_that_an_address_does_not_have_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("secret")
    tls = "".join(f'{key} = "{tmp_path}/pem"\n' for key in ("ca", "cert", "key"))
    line = (
        "DIR/w.toml: dask.scheduler: 'tcp://10.0.0.1:8786' is not encrypted, and [dask.tls] requires it;"
        " write tls://10.0.0.1:8786, or dask.tls.require-encryption = false"
    )
    assert problems(tmp_path, f"{DASK}[dask.tls]\n{tls}") == [line]
    assert compiled(tmp_path, f"{DASK}[dask.tls]\n{tls}require-encryption = false\n").notes == []


def test_variables_and_options_are_named_themselves(tmp_path: Path) -> None:
    environ = {"NANNYD_DASK__NTHREDS": "1", "NANNYD_DASK__TLS__CA": "x"}
    options = [("--dask.worker-port", "x"), ("--dask.resources.GPU", "x"), ("--dask.tls.crt", "/x")]
    assert problems(tmp_path, DASK, environ=environ, options=options) == [
        "environment: NANNYD_DASK__NTHREDS: is not a variable of nannyd; did you mean NANNYD_DASK__NTHREADS?",
        "command line: --dask.tls.crt: is not a setting; did you mean dask.tls.cert?",
        "command line: --dask.resources.GPU: 'x' is not a number; write for example 2 or 10e9",
        (
            "command line: --dask.worker-port: 'x' is not a port; write 8788, a range \"8788:8798\", a list"
            " of ports or none"
        ),
        (
            "environment: NANNYD_DASK__TLS__CA: 'x' is not an absolute path; write for example"
            ' /etc/dask/tls/worker.pem or { credential = "name" }'
        ),
    ]
