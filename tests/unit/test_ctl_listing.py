"""`nannyctl list` and `nannyctl status`, as a person sees them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ctl_samples as samples
import pytest

from nannyd.core.paths import Scope
from nannyd.ctl import listing, replies, status
from nannyd.ctl.client import NotAnsweringError, RefusedError
from nannyd.ctl.command import Command
from nannyd.ctl.instances import Instance
from nannyd.ctl.processes import Process, tree
from nannyd.ctl.render import Style, width_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = Style(utf8=True)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def some() -> list[Instance]:
    """Return one of each kind."""
    hung = samples.running("hung")
    hung.status, hung.failure = None, NotAnsweringError("not answering")
    theirs = samples.running("theirs")
    theirs.status = None
    theirs.failure = RefusedError("io.nannyd.Nanny.NotPermitted", {"needs": "root or the user bob"})
    return [
        samples.running("big", memory=samples.memory(workingSet=195 * samples.MIB)),
        samples.down("done"),
        samples.down("failed", active_state="failed", result="exit-code", exec_status=78),
        hung,
        samples.running("restarting", state="auto-restart", activeState="activating", worker=None),
        theirs,
        samples.running("worker1", lastExit=None, restarts=0),
    ]


def test_a_line_each_with_header_and_footer() -> None:
    style = Style(utf8=True, width=104)
    text = listing.listing(some(), style, samples.NOW, full=False, bare=False)
    assert (
        f"\n{text}"
        == """
  NAME        STATE          WORKER  UPTIME  MEMORY           RESTARTS  LAST
  big         running           834     59s  195.0/200.0 MiB         1  memory, by nannyd, 1min ago
  done        inactive            -       -  -                       -  stopped, 5min ago
× failed      failed         the configuration is wrong, 5min ago
● hung        not answering       -       -  -                       -  not answering
  restarting  auto-restart        -       -  50.0/200.0 MiB          1  worker 834 running, 50.0 of 200…
  theirs      running        not permitted; needs root or the user bob
  worker1     running           834     59s  50.0/200.0 MiB          0  -

7 instances listed.
"""
    )


def test_bare_is_lines_alone_and_nothing_is_said_of_nothing() -> None:
    one = [samples.running(lastExit=None)]
    text = listing.listing(one, PLAIN, samples.NOW, full=False, bare=True)
    assert text == "  worker1  running  834  59s  50.0/200.0 MiB  1  -\n"
    assert listing.listing([], PLAIN, samples.NOW, full=False, bare=False) == "0 instances listed.\n"
    assert listing.listing(one, PLAIN, samples.NOW, full=False, bare=False).endswith(
        "\n\n1 instance listed.\n"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 72, 80, 100, 132, 200])
@pytest.mark.parametrize("utf8", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, utf8: bool) -> None:  # noqa: FBT001
    style = Style(terminal=True, utf8=utf8, width=width)
    text = listing.listing([*some(), samples.running("a" * 64)], style, samples.NOW, full=False, bare=False)
    assert max(map(width_of, text.splitlines())) <= width
    assert text.isascii() or utf8


def test_the_last_column_gives_way_while_it_says_enough_then_the_bars_then_the_name() -> None:
    def lines(width: int) -> list[str]:
        style = Style(terminal=True, utf8=True, width=width)
        named = [samples.running("a-rather-long-name")]
        return listing.listing(named, style, samples.NOW, full=False, bare=True).splitlines()

    assert lines(110) == [
        "  a-rather-long-name  running  834  59s  50.0/200.0 MiB  ██▌░░░░░░░  1  memory, by nannyd, 1min ago"
    ]
    assert lines(96) == [
        "  a-rather-long-name  running  834  59s  50.0/200.0 MiB  ██▌░░░░░░░  1  memory, by nannyd, 1min…"
    ]
    assert lines(92) == [
        "  a-rather-long-name  running  834  59s  50.0/200.0 MiB  1  memory, by nannyd, 1min ago"
    ]
    assert lines(80) == ["  a-rather-long-name  running  834  59s  50.0/200.0 MiB  1  memory, by nannyd, …"]
    assert lines(68) == ["  a-rather-long-n…  running  834  59s  50.0/200.0 MiB  1  memory, b…"]


def test_full_is_not_shortened() -> None:
    style = Style(terminal=True, utf8=True, width=60)
    text = listing.listing(some(), style, samples.NOW, full=True, bare=False)
    assert "worker 834 running, 50.0 of 200.0 MiB (25 %), 1 restart" in text


def test_colours_mark_states_and_memory() -> None:
    text = listing.listing(some(), Style(colour=True, utf8=True), samples.NOW, full=False, bare=True)
    assert "\x1b[31;1mnot answering\x1b[0m" in text
    assert "\x1b[31;1m195.0/200.0 MiB\x1b[0m" in text
    assert "\x1b[32;1mrunning\x1b[0m" in text


def test_what_an_instance_says_cannot_leave_its_cell() -> None:
    evil = samples.running(
        state="\x1b[2J", lastExit=samples.last_exit(result="a\nb\x9b", who="\x07"), unit="\r"
    )
    text = listing.listing([evil], PLAIN, samples.NOW, full=False, bare=True)
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert status.text(status.Report(evil), command()).replace("\n", "").isprintable()


def test_json_has_the_same_keys_for_all() -> None:
    keys = {tuple(listing.describe(one)) for one in [*some(), Instance("x", Scope.USER)]}
    assert len(keys) == 1
    assert listing.describe(some()[0]) == {
        "name": "big",
        "scope": "system",
        "user": None,
        "unit": "nannyd@big.service",
        "state": "running",
        "activeState": "active",
        "reason": None,
        "ending": None,
        "processId": 826,
        "workerProcessId": 834,
        "workerStartedAt": samples.micro(59),
        "memoryWorkingSet": 195 * samples.MIB,
        "memoryLimit": 200 * samples.MIB,
        "restarts": 1,
        "lastResult": "memory",
        "lastWho": "nannyd",
        "lastExitAt": samples.micro(60),
    }


# status


def command(style: Style = PLAIN, **changes: Any) -> Command:
    return Command("status", [], {}, style, samples.NOW, **changes)


def report() -> status.Report:
    """Return a running instance with all that is to be said of one."""
    return status.Report(
        samples.running(
            worker=samples.worker(status="busy", address="tcp://[::1]:1"),
            lastExit=samples.last_exit(detail="memory.terminate"),
        ),
        samples=[
            replies.Sample(samples.NOW - ago, size * samples.MIB) for ago, size in ((3500, 10), (30, 100))
        ],
        events=[replies.Event(samples.NOW - 58, "worker-ready", 6, "worker 834 is ready", {})],
        processes=[
            Process(834, 826, "python3 /srv/leaky.py", 12 * samples.MIB),
            Process(835, 834, "cat", None),
        ],
    )


def test_status_tells_everything_in_the_manner_of_systemctl() -> None:
    spark = " ▁" + " " * 57 + "▅"
    assert (
        status.text(report(), command())
        == f"""\
● worker1 - nannyd@worker1.service
    Active: active (running) since Sun 2025-11-23 05:14:19 UTC; 58s ago
    Status: "worker 834 running, 50.0 of 200.0 MiB (25 %), 1 restart"
    nannyd: 0.1.0, process 826, since Sun 2025-11-23 04:15:17 UTC; 1h ago
    Worker: process 834 (life 2), for 59s, ready after 1s
            says "busy"
            address tcp://[::1]:1
            scratch /var/lib/nannyd/worker1/scratch/worker-a
            cgroup /system.slice/nannyd@worker1.service/worker-2
  Restarts: 1 (1 × memory)
    Memory: 50.0 of 200.0 MiB (25 %)
            anon 49.0 MiB, shmem 0 B, kernel 1.0 MiB, swap 0 B, peak 80.0 MiB
            warning at 160.0 MiB, termination at 190.0 MiB, wall at 200.0 MiB
            limit 200.0 MiB: memory.limit of /etc/nannyd/worker1.toml; watched by cgroup
 Last hour: {spark} highest 100.0 MiB
 Processes: └─834 12.0 MiB python3 /srv/leaky.py
              └─835        - cat
 Last exit: was killed by SIGTERM: result memory, by nannyd (memory.terminate)
            Sun 2025-11-23 05:14:17 UTC; 1min ago, life 1 after 6s, memory peak 199.0 MiB

Nov 23 05:14:19 worker 834 is ready
"""
    )


@pytest.mark.parametrize(
    ("dask", "lines"),
    [
        (None, []),
        ({"scheduler": None, "nanny": None, "plugins": []}, ["      Dask: scheduler not found yet"]),
        (
            {"scheduler": "tcp://s:1", "nanny": "tcp://n:2", "plugins": ["a", "b\n"]},
            [
                "      Dask: scheduler tcp://s:1",
                "            nanny tcp://n:2",
                "            plugins a, b\\n",
            ],
        ),
    ],
)
def test_status_tells_of_the_cluster(dask: dict[str, object] | None, lines: list[str]) -> None:
    text = status.text(status.Report(samples.running(dask=dask)), command()).splitlines()
    first = next((index for index, line in enumerate(text) if "Dask:" in line), 0)
    assert text[first : first + len(lines)] == lines
    assert bool(first) == (dask is not None)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_status_keeps_within_the_terminal(width: int) -> None:
    style = Style(terminal=True, utf8=True, width=width)
    lines = status.text(report(), command(style)).splitlines()
    assert max(map(width_of, lines)) <= width


def test_status_of_one_that_is_down_says_why() -> None:
    text = status.text(
        status.Report(
            samples.down(active_state="failed", result="exit-code", exec_status=1, status_text="failed: oh")
        ),
        command(),
    )
    assert (
        text
        == """\
× worker1 - nannyd@worker1.service
    Active: failed (failed) since Sun 2025-11-23 05:10:17 UTC; 5min ago
    Reason: the worker failed, and the restart policy says no: oh
    Status: "failed: oh"
"""
    )


def test_the_tree_of_processes_is_drawn() -> None:
    family = [Process(1, 0, "a", 1), Process(2, 1, "b", 1), Process(3, 2, "c", 1), Process(4, 1, "d\n", 1)]
    assert tree(family, PLAIN, 0) == ["└─1 1 B a", "  ├─2 1 B b", "  │ └─3 1 B c", "  └─4 1 B d\\n"]
    assert tree(family, Style(), 12) == ["`-1 1 B a", "  |-2 1 B b", "  | `-3 1 B c", "  `-4 1 B d\\n"]
