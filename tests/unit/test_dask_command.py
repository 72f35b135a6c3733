"""The command line of `dask worker`: nannyd understands by it what Dask does."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import dask
import pytest
from dask.utils import parse_bytes
from distributed.cli.dask_worker import _apportion_ports
from distributed.deploy.utils import nprocesses_nthreads
from distributed.worker_memory import parse_memory_limit

from nannyd.core.units import name_problem, parse_size
from nannyd.dask import amounts, command

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = 8_000_000_000


# Amounts


@pytest.mark.parametrize(
    "text",
    [
        "5GB", "5000M", "5 GiB", "1.5gb", "512k", "512Ki", "4e9", "4000000000", "4000000000.0", "1e3B", "2.T",
        "0.5", "1", "1.0", ".25", "0", "0.0", "100 MB", "MB", "3b",
    ],
)  # fmt: skip
def test_a_memory_limit_is_as_much_as_in_dask(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from distributed import system

    monkeypatch.setattr(system, "MEMORY_LIMIT", MEMORY << 20)
    expected = parse_memory_limit(text, 1, logger=logging.getLogger())
    found = amounts.memory_limit(text)
    if found.endswith("%"):
        assert int((MEMORY << 20) * float(found[:-1]) / 100) == expected
    else:
        assert (None if found == "none" else parse_size(found)) == expected


@pytest.mark.parametrize("text", ["5XB", "much", "-5", "-5GB", "nan", "inf", "5GBs", "1,5GB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write auto, 5GB"):
        amounts.memory_limit(text)


def test_units_are_all_those_of_dask() -> None:
    for unit in amounts._UNITS:
        assert parse_bytes(f"3{unit}") == 3 * amounts._UNITS[unit]


RANGES = [None, "0", "3000:3009", "3000:3020", "3004:3006", "4000:4009", "4000"]


@pytest.mark.parametrize(("worker", "nanny", "count"), list(itertools.product(RANGES, RANGES, [2, 3])))
def test_ports_are_dealt_as_dask_does(worker: str | None, nanny: str | None, count: int) -> None:
    try:
        theirs: Any = _apportion_ports(worker, nanny, count, True)
    except ValueError:
        with pytest.raises(ValueError, match="are not enough ports"):
            amounts.apportion(worker, nanny, count)
        return
    ours = amounts.apportion(worker, nanny, count)
    for (own, nannys), expected in zip(ours, theirs, strict=True):
        for text, ports in ((own, expected["worker_port"]), (nannys, expected["port"])):
            assert (0 if text is None else json.loads(text)) == (ports or 0)


@pytest.mark.parametrize("text", ["x", "3:", "9:3", "70000", "-1", "3000:99999"])
def test_what_are_no_ports_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a port or range of ports; write 8788 or 8788:8798"):
        amounts.apportion(text, None, 2)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 6, 7, 8, 12, 32, 96, 128])
def test_processors_are_shared_as_dask_does(cpus: int) -> None:
    assert amounts.processes("auto", 0, lambda: cpus) == nprocesses_nthreads(cpus)
    assert amounts.processes("-1", 0, lambda: cpus) == (cpus, None if cpus == 1 else 1)
    assert amounts.processes("1", 0, lambda: cpus) == (1, None)
    assert amounts.processes(None, 3, lambda: cpus) == (1, 3)
    assert amounts.processes("2", 0, lambda: cpus) == (2, max(1, cpus // 2))


@pytest.mark.parametrize("text", ["0", "-9", "many", "1.5"])
def test_no_worker_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        amounts.processes(text, 0, lambda: 4)


# Options


def translated(*arguments: str) -> list[tuple[str, dict[str, str]]]:
    """Return name and settings of each instance that *arguments* mean."""
    options, more = command._parse(command._parser(), arguments)
    result = []
    for name, words in command.instances(options, more):
        settings = [word for word in words if word not in more]
        assert len(settings) % 2 == 0
        pairs = dict(zip(settings[::2], settings[1::2], strict=True))
        result.append((name, {**pairs, **dict.fromkeys(more, "")}))
    return result


def test_the_command_line_of_dask_jobqueue_is_understood(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    arguments = "tcp://192.0.2.1:40000 --name SLURMCluster-0-1 --nthreads 4 --memory-limit 1.86GiB --nanny"
    arguments += f" --death-timeout 60 --local-directory {scratch} --interface ib0 --protocol tls://"
    ((name, settings),) = translated(*arguments.split())
    assert name == "SLURMCluster-0-1"
    assert settings == {
        "--dask.scheduler": "tcp://192.0.2.1:40000",
        "--dask.name": "SLURMCluster-0-1",
        "--dask.nthreads": "4",
        "--memory.limit": f"{int(1.86 * (1 << 30))}B",
        "--dask.death-timeout": "60",
        "--worker.local-directory": str(scratch),
        "--dask.interface": "ib0",
        "--dask.protocol": "tls",
    }
    assert scratch.is_dir()


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--scheduler-file=s.json", "--no-dashboard", "--resources", "GPU=2,MEM=10e9", "--name", "7"]
    arguments += ["--tls-cert", "both.pem", "--tls-ca-file", "/ca.pem", "--lifetime", "1 hour"]
    arguments += ["--preload-nanny", "n.py", "--preload", "a.b", "--preload", "c.py", "--mine", "5"]
    arguments += ["--lifetime-restart", "--memory.swap=1GiB", "--env", "A=b", "--worker-port", "3000:3010"]
    ((name, settings),) = translated(*arguments)
    assert name == "7"
    assert settings == {
        "--dask.scheduler-file": f"{tmp_path}/s.json",
        "--dask.dashboard": "false",
        "--dask.resources.GPU": "2.0",
        "--dask.resources.MEM": "10000000000.0",
        "--dask.name": "7",
        "--dask.tls.ca": "/ca.pem",
        "--dask.tls.cert": f"{tmp_path}/both.pem",
        "--dask.tls.key": f"{tmp_path}/both.pem",
        "--dask.worker.lifetime": "1 hour",
        "--dask.worker.lifetime_restart": "true",
        "--dask.on-lifetime": "restart",
        "--nanny.preload": json.dumps([f"{tmp_path}/n.py"]),
        "--worker.preload": '["a.b", "c.py"]',
        "--worker.preload-argv": '["--mine", "5"]',
        "--dask.worker-port": "3000:3010",
        "--env": "A=b",
        "--memory.swap=1GiB": "",
    }


@pytest.mark.parametrize(
    ("more", "configured", "then"),
    [
        ([], False, "end"),
        ([], True, "restart"),
        (["--no-lifetime-restart"], True, "end"),
        (["--lifetime-restart"], False, "restart"),
    ],
)
def test_a_worker_whose_lifetime_is_over_ends_unless_it_is_to_go_on(
    more: list[str],
    configured: bool,  # noqa: FBT001
    then: str,
) -> None:
    with dask.config.set({"distributed.worker.lifetime.restart": configured}):
        ((_, settings),) = translated("tcp://x:1", "--lifetime", "55m", *more)
    assert settings["--dask.on-lifetime"] == then
    assert "--dask.on-lifetime" not in translated("tcp://x:1", *more)[0][1]


def test_an_address_without_a_scheme_gets_dasks_default() -> None:
    ((_, settings),) = translated("10.0.0.1:8786")
    assert settings["--dask.scheduler"] == "tcp://10.0.0.1:8786"


def test_several_workers_have_numbers_and_shares() -> None:
    found = translated(
        "tcp://x:1", "--nworkers", "2", "--nthreads=3", "--name", "a", "--nanny-port", "4000:4003"
    )
    assert [name for name, _ in found] == ["a-0", "a-1"]
    assert [settings["--dask.name"] for _, settings in found] == ["a-0", "a-1"]
    assert [settings["--dask.port"] for _, settings in found] == ["[4000,4002]", "[4001,4003]"]
    assert {settings["--dask.nthreads"] for _, settings in found} == {"3"}


def test_workers_without_a_name_have_one_of_their_own() -> None:
    (first,), (second,) = translated("tcp://x:1"), translated("tcp://x:1")
    assert first[0] == second[0] == "dask-worker"
    assert first[1]["--dask.name"] != second[1]["--dask.name"]


@pytest.mark.parametrize("name", ["", ".", "-x", "a/b", "nannyd", "naïve name", "x" * 200, "🙂", "a\nb"])
def test_any_name_has_an_instances_name(name: str) -> None:
    assert name_problem(command.instance_name(name)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tcp://x:1 --no-nanny", "nannyd is the nanny; --no-nanny is for `dask worker` itself"),
        ("tcp://x:1 --frobnicate 3", "unrecognized arguments: --frobnicate 3"),
        ("tcp://x:1 --memory.limit", "expected one value; write --memory.limit=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        translated(*arguments.split())
    assert message in capsys.readouterr().err


def test_one_listen_address_is_not_for_several(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["tcp://x:1", "--nworkers=2", "--listen-address=tcp://:9000"])
    assert "write --worker-port and --host" in capsys.readouterr().err
