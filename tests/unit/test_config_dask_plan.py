"""Who is a Dask worker, and the plan that `[dask]` makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from dask_samples import DASK, compiled

from nannyd.config.explain import explain_text, plan_document, plan_text
from nannyd.core.dask import Cause, Then
from nannyd.core.plan import DaskPlan, PythonWorker, Ready, from_json, to_json
from nannyd.core.restart import RestartMode, restart_delay

if TYPE_CHECKING:
    from pathlib import Path

    from nannyd.config.compile import Compiled

TARGET = "nannyd.dask.worker:DaskWorker"


def parts(result: Compiled) -> tuple[PythonWorker, DaskPlan]:
    """Return the two parts of the plan that `[dask]` makes."""
    python, dask = result.plan.worker.python, result.plan.dask
    assert python is not None
    assert dask is not None
    return python, dask


# What is whose


def test_an_empty_table_makes_nobody_a_dask_worker(tmp_path: Path) -> None:
    assert compiled(tmp_path, "[dask]\n[dask.tls]\n", command=["true"]).plan.dask is None


@pytest.mark.parametrize(
    ("common", "own", "target"),
    [
        (DASK, '[worker]\ncommand = ["true"]\n', None),
        (DASK, '[worker]\nclass = "a:B"\nkwargs.x = 1\n', "a:B"),
        ('[worker]\nclass = "a:B"\nargs = [1]\nkwargs.x = 1\n', DASK, TARGET),
        ('[worker]\ncommand = ["true"]\n', DASK, TARGET),
    ],
)
def test_an_instances_own_file_says_whether_it_is_a_dask_worker(
    common: str, own: str, target: str | None, tmp_path: Path
) -> None:
    (tmp_path / "nannyd.toml").write_text(common)
    plan = compiled(tmp_path, own).plan
    assert (None if plan.worker.python is None else plan.worker.python.target) == target
    assert (plan.dask is not None) == (target == TARGET)


def test_options_make_any_instance_a_dask_worker(tmp_path: Path) -> None:
    options = [
        ("--dask.scheduler", "tcp://x:1"),
        ("--dask.config.a.b-c", "1"),
        ("--dask.worker.lifetime", "1 h"),
    ]
    python, _ = parts(compiled(tmp_path, '[worker]\ncommand = ["true"]\n', options=options))
    assert python.kwargs["scheduler"] == "tcp://x:1"
    assert python.kwargs["config"] == {"a.b-c": 1}
    assert python.kwargs["options"]["lifetime"] == "1 h"


# The plan


def test_the_least_configuration_makes_a_whole_plan(tmp_path: Path) -> None:
    result = compiled(tmp_path, f'{DASK}[memory]\nlimit = "8GiB"\n')
    python, dask = parts(result)
    assert result.plan.worker.ready is Ready.NOTIFY
    assert python.target == TARGET
    assert python.kwargs == {
        "scheduler": "tcp://10.0.0.1:8786",
        "scheduler_file": None,
        "worker_class": None,
        "options": {
            "name": "w",
            "nthreads": 4,  # of 3.5 CPUs
            "memory_limit": 8 << 30,
            "dashboard": True,
            "dashboard_address": ":0",
            "preload": [],
            "preload_argv": [],
            "protocol": "tcp",
        },
        "config": {},
        "security": {},
        "nanny": {
            "host": None,
            "interface": None,
            "port": None,
            "protocol": "tcp",
            "contact_address": None,
            "listen_address": None,
        },
        "death_timeout": None,
    }
    assert dask.after == {
        Cause.SCHEDULER_CLOSE: Then.END,
        Cause.RETIRE: Then.END,
        Cause.CONNECTION_LOST: Then.RESTART,
        Cause.LIFETIME: Then.RESTART,
    }
    assert dask.drain_timeout == 30
    assert dask.server["name"] == "w"
    assert from_json(to_json(result.plan)) == result.plan


def test_everything_that_is_set_arrives_as_dask_names_it(tmp_path: Path) -> None:
    toml = """
    [worker]
    preload = ["a.b"]
    preload-argv = ["--x"]
    [memory]
    limit = "1GiB"
    [dask]
    scheduler-file = "/srv/s.json"
    worker-class = "my.mod.Worker"
    nthreads = 2
    name = "7"
    worker-port = "3000:3010"
    port = [4000, 4002]
    host = "10.0.0.7"
    protocol = "tcp"
    dashboard = false
    death-timeout = "1min"
    drain-timeout = 0
    on-lifetime = "end"
    validate = true
    silence-logs = "warning"
    blocked-handlers = ["run"]
    resources = { GPU = 2, MEM = 10e9 }
    worker = { heartbeat-interval = "2s" }
    [dask.config]
    "distributed.comm.retry.count" = 2
    [dask.config.distributed.worker]
    profile.enabled = false
    """
    result = compiled(tmp_path, toml)
    python, dask = parts(result)
    assert python.kwargs["scheduler_file"] == "/srv/s.json"
    assert python.kwargs["worker_class"] == "my.mod.Worker"
    assert python.kwargs["options"] == {
        "name": 7,
        "nthreads": 2,
        "memory_limit": 1 << 30,
        "dashboard": False,
        "dashboard_address": ":0",
        "preload": ["a.b"],
        "preload_argv": ["--x"],
        "host": "10.0.0.7",
        "port": "3000:3010",
        "protocol": "tcp",
        "resources": {"GPU": 2.0, "MEM": 10e9},
        "validate": True,
        "silence_logs": 30,
        "heartbeat_interval": "2s",
    }
    assert (python.preload, python.preload_argv) == ([], [])
    assert python.kwargs["config"] == {
        "distributed.comm.retry.count": 2,
        "distributed.worker.profile.enabled": False,
    }
    assert python.kwargs["nanny"]["port"] == [4000, 4002]
    assert python.kwargs["death_timeout"] == 60
    assert dask.server == {
        "security": {},
        "config": python.kwargs["config"],
        "protocol": "tcp",
        "blocked_handlers": ["run"],
        "name": 7,
        "nthreads": 2,
    }
    assert dask.after[Cause.LIFETIME] is Then.END
    assert dask.drain_timeout == 0
    assert from_json(to_json(result.plan)) == result.plan


def test_a_listen_address_is_host_port_and_protocol_of_the_worker(tmp_path: Path) -> None:
    toml = f'{DASK}listen-address = "tls://[::1]:9000"\n[dask.tls]\nrequire-encryption = false\n'
    kwargs = parts(compiled(tmp_path, toml, {"DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": "/x"}))[0].kwargs
    assert kwargs["options"]["host"] == "[::1]"
    assert kwargs["options"]["port"] == 9000
    assert kwargs["options"]["protocol"] == "tls"
    assert kwargs["options"]["contact_address"] == "tls://[::1]:9000"
    assert kwargs["nanny"]["host"] == "[::1]"


@pytest.mark.parametrize("place", ["0.0.0.0:9000", ":9000", "[::]:9000", "[::1]:0"])
def test_a_worker_is_not_found_where_nobody_can_be(place: str, tmp_path: Path) -> None:
    kwargs = parts(compiled(tmp_path, f'{DASK}listen-address = "tcp://{place}"\n'))[0].kwargs
    assert "contact_address" not in kwargs["options"]


@pytest.mark.parametrize(
    ("toml", "fractions"),
    [
        ("", {}),
        ("[memory]\nterminate = 0.99\n", {}),
        ("[memory]\nterminate = false\n", {}),
        ("[memory]\nterminate = false\nmax = false\n", {}),
        ("[memory]\nwarn = 0.7\nterminate = 0.76\n", {"target": 0.48, "spill": 0.56, "pause": 0.64}),
        (
            "[memory]\nwarn = 0.7\nterminate = false\nmax = 0.76\n",
            {"target": 0.48, "spill": 0.56, "pause": 0.64},
        ),
        (
            "config.distributed.worker.memory.spill = false\n[memory]\nwarn = 0.7\nterminate = 0.76\n",
            {"target": 0.48, "spill": False, "pause": 0.64},
        ),
    ],
)
def test_the_worker_pauses_before_nannyd_ends_it(
    toml: str, fractions: dict[str, float], tmp_path: Path
) -> None:
    config = parts(compiled(tmp_path, DASK + toml))[0].kwargs["config"]
    assert config == {f"distributed.worker.memory.{name}": value for name, value in fractions.items()}


def test_what_dasks_own_configuration_says_of_the_fractions_stays(tmp_path: Path) -> None:
    environ = {"DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "0.7"}
    toml = f"{DASK}[memory]\nwarn = 0.7\nterminate = 0.76\n"
    config = parts(compiled(tmp_path, toml, environ))[0].kwargs["config"]
    assert "distributed.worker.memory.pause" not in config
    assert "distributed.worker.memory.spill" in config


def test_memory_is_shared_by_the_threads_of_the_worker(tmp_path: Path) -> None:
    limits = []
    for threads in (1, 3, 9):
        result = compiled(tmp_path, f"{DASK}nthreads = {threads}\n")
        limits.append(parts(result)[0].kwargs["options"]["memory_limit"])
        assert limits[-1] == result.plan.memory.thresholds.limit
    assert limits[1] == pytest.approx(3 * limits[0], rel=0.02)
    assert limits[2] == pytest.approx(3.5 * limits[0], rel=0.02)
    kwargs = parts(compiled(tmp_path, f'{DASK}[memory]\nlimit = "none"\n'))[0].kwargs
    assert kwargs["options"]["memory_limit"] is None


def test_the_first_restart_in_a_row_comes_at_once(tmp_path: Path) -> None:
    policy = compiled(tmp_path, f"{DASK}[restart]\njitter = 0\n").plan.restart
    assert [restart_delay(policy, row, 0.5) for row in range(4)] == [0, 0.2, 0.4, 0.8]
    policy = compiled(tmp_path, f"{DASK}[restart]\nimmediate = 0\n").plan.restart
    assert restart_delay(policy, 0, 0.5) == 0.2
    assert compiled(tmp_path, "", command=["true"]).plan.restart.immediate == 0


def test_without_reconnect_the_first_exit_is_the_last(tmp_path: Path) -> None:
    assert compiled(tmp_path, f"{DASK}reconnect = false\n").plan.restart.mode is RestartMode.NO


def test_quiet_is_about_nannyds_own_log(tmp_path: Path) -> None:
    assert compiled(tmp_path, f"{DASK}quiet = true\n").plan.log_level == "warning"
    assert compiled(tmp_path, f"{DASK}quiet = true\n", log_level="debug").plan.log_level == "debug"


def test_certificates_are_named_and_never_read(tmp_path: Path) -> None:
    for name in ("ca.pem", "w.pem", "w.key"):
        (tmp_path / name).write_text("hush")
    toml = f"""
    [dask]
    scheduler = "tls://10.0.0.1:8786"
    [dask.tls]
    ca = "{tmp_path}/ca.pem"
    cert = {{ credential = "w.pem" }}
    key = "{tmp_path}/w.key"
    ciphers = "ECDHE+AESGCM"
    min-version = 1.3
    """
    result = compiled(tmp_path, toml, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    python, dask = parts(result)
    assert python.kwargs["security"] == {
        "tls_ca_file": f"{tmp_path}/ca.pem",
        "tls_worker_cert": f"{tmp_path}/w.pem",
        "tls_worker_key": f"{tmp_path}/w.key",
        "tls_ciphers": "ECDHE+AESGCM",
        "tls_min_version": 1.3,
    }
    assert dask.server["security"] == python.kwargs["security"]
    shown = plan_text(result) + explain_text(result) + to_json(result.plan)
    assert f'ca = "{tmp_path}/ca.pem"' in shown
    assert f'key = "{tmp_path}/w.key"' in shown
    assert "hush" not in shown


def test_a_certificate_that_dask_has_of_its_own_is_enough(tmp_path: Path) -> None:
    environ = {"DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": "/etc/dask/w.pem"}
    toml = '[dask]\nscheduler = "tls://x:1"\n'
    assert parts(compiled(tmp_path, toml, environ))[0].kwargs["security"] == {}


def test_arguments_of_the_worker_may_be_credentials_that_nobody_sees(tmp_path: Path) -> None:
    (tmp_path / "tok").write_text("hush\n")
    toml = f'{DASK}worker.extra = {{ credential = "tok" }}\n'
    result = compiled(tmp_path, toml, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert parts(result)[0].kwargs["options"]["extra"] == "hush"
    assert "hush" not in plan_text(result) + explain_text(result)


def test_only_dask_workers_show_settings_of_dask(tmp_path: Path) -> None:
    assert "dask" not in plan_document(compiled(tmp_path, "", command=["true"]))["settings"]
    shown = plan_document(compiled(tmp_path, f"{DASK}[dask.config]\na.b = 1\n"))["settings"]["dask"]
    assert (shown["nthreads"], shown["name"], shown["config"]) == (4, "w", {"a.b": 1})


@pytest.mark.parametrize(
    "toml",
    [
        '"logging.distributed.worker" = "debug"',
        'logging.distributed.worker = "debug"',
        'logging = { "distributed.worker" = "debug" }',
        '[dask.config.logging]\n"distributed.worker" = "debug"',
        '[dask.config.logging.distributed]\nworker = "debug"',
    ],
)
def test_a_loggers_name_is_one_key_of_dasks_configuration(toml: str, tmp_path: Path) -> None:
    (tmp_path / "nannyd.toml").write_text('[dask.config]\n"logging.distributed" = "info"\n')
    result = compiled(tmp_path, f"{DASK}[dask.config]\n{toml}\n")
    assert parts(result)[0].kwargs["config"] == {
        "logging.distributed": "info",
        "logging.distributed.worker": "debug",
    }
    lines = [" ".join(line.split()) for line in explain_text(result).splitlines()]
    assert f'dask.config.logging.distributed.worker = "debug" # {tmp_path}/w.toml' in lines


def test_what_dictconfig_takes_stays_as_it_is(tmp_path: Path) -> None:
    toml = f"""{DASK}
    [dask.config.logging]
    version = 1
    [dask.config.logging.loggers."distributed.worker"]
    level = "DEBUG"
    """
    loggers = {"distributed.worker": {"level": "DEBUG"}}
    config = parts(compiled(tmp_path, toml))[0].kwargs["config"]
    assert config == {"logging.version": 1, "logging.loggers": loggers}


def test_dotted_keys_and_tables_of_dasks_configuration_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "nannyd.toml").write_text('[dask.config]\n"a.b" = 1\n"a.c.d" = 2\n')
    result = compiled(tmp_path, f"{DASK}[dask.config.a]\nb = 3\nc.e = 4\n")
    assert parts(result)[0].kwargs["config"] == {"a.b": 3, "a.c.d": 2, "a.c.e": 4}
    lines = [" ".join(line.split()) for line in explain_text(result).splitlines()]
    assert f"dask.config.a.b = 3 # {tmp_path}/w.toml (over {tmp_path}/nannyd.toml)" in lines
    assert f"dask.config.a.c.d = 2 # {tmp_path}/nannyd.toml" in lines


def test_what_toml_has_not_is_no_line_of_the_plan(tmp_path: Path) -> None:
    options = [("--dask.worker", '{"a": null, "b": {"c": [null]}, "d": 1}')]
    lines = plan_text(compiled(tmp_path, DASK, options=options)).splitlines()
    assert "# a = null" in lines
    assert "# b = { c = [null] }" in lines
    assert "d = 1" in lines
