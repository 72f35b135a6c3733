"""`nannyctl top` beside real instances, on a terminal that shows what a person sees."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest
from harness import RUDE, eventually, lives
from operator_terminal import Screen, Terminal, nannyctl, run_instance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Host, Nannyd

LIMITED = ("--memory.limit=200M", "--restart.delay=0", "--")


@pytest.fixture
def three(nannyd: Host) -> list[Nannyd]:
    """Return instances whose workers use 10, 60 and 30 MiB."""
    sizes = {"a1": "10M", "b2": "60M", "c3": "30M"}
    runs = [run_instance(nannyd, *LIMITED, *RUDE, "--eat", size, name=name) for name, size in sizes.items()]
    for run in runs:
        run.ready()
    return runs


@pytest.fixture
def top(nannyd: Host, three: list[Nannyd]) -> Iterator[Screen]:
    """Return the command on a screen, which shows the three."""
    with Screen(nannyd, "top") as screen:
        screen.wait_for(r"^  c3 +running")
        yield screen


def pid(run: Nannyd) -> int:
    return int(run.all("worker-started")[-1]["worker_pid"])


def test_top_has_a_line_for_each_and_follows_what_happens(
    nannyd: Host, top: Screen, three: list[Nannyd]
) -> None:
    eventually(lambda: top.names() == ["b2", "c3", "a1"], "sorted by memory")
    lines = top.text().splitlines()
    assert ", 3 instances, 3 running, by memory" in lines[0]
    assert lines[2].split() == ["NAME", "STATE", "WORKER", "CPU", "UPTIME", "MEMORY", "RESTARTS", "LAST"]
    top.wait_for(rf"^  b2 +running +{pid(three[1])} +\d+% +[\w ]+ +6\d\.\d/200\.0 MiB +█+[▏▎▍▌▋▊▉]?░+ +0  -$")
    assert "\x1b[32mrunning" in top.coloured()
    three[1].crash()
    top.wait_for(r"^× b2 +failed .* nannyd is gone")
    top.wait_for(r"3 instances, 2 running, 1 needs a look")
    run_instance(nannyd, *LIMITED, "sleep", "1000", name="b2").ready()
    top.wait_for(r"^  b2 +running")


def test_keys_sort_and_invert(nannyd: Host, top: Screen) -> None:
    for key, names in (("n", "a1 b2 c3"), ("i", "c3 b2 a1"), ("s", "a1 c3 b2"), ("i", "b2 c3 a1")):
        top.press(key)
        eventually(lambda names=names: top.names() == names.split(), f"{key} sorts {names}")  # type: ignore[misc]
    top.press("u")
    top.wait_for("by uptime")
    listed = json.loads(nannyctl(nannyd, "list", "--json", "--timeout=20s").stdout)
    oldest_first = [one["name"] for one in sorted(listed, key=lambda one: one["workerStartedAt"])]
    eventually(lambda: top.names() == oldest_first, "the oldest first")


def test_restart_and_kill_ask_first_and_name_the_selected_one(top: Screen, three: list[Nannyd]) -> None:
    top.press("n", "Down", "r")
    top.wait_for(r"^Restart the worker of b2\? \(y/n\)")
    worker = pid(three[1])
    top.press("n")
    top.wait_for("^m s c u t n sort")
    assert lives(worker)
    top.press("r")
    top.wait_for(r"^Restart the worker of b2\?")
    top.press("y")
    top.wait_for("^b2: restarted")
    assert not lives(worker)
    assert three[1].wait_for("stopping-worker")["reason"] == "Restart: nannyctl top"
    top.wait_for(rf"^  b2 +running +{three[1].ready()} ")
    top.press("End", "k")
    top.wait_for(r"^Kill the worker of c3\?")
    top.press("y")
    top.wait_for("^c3: killed")
    top.wait_for(r"^  c3 .* 1  success, by nannyd, ")


def test_what_hangs_or_takes_long_does_not_hold_up_the_screen(nannyd: Host, three: list[Nannyd]) -> None:
    run_instance(nannyd, "--worker.ready=notify", "--", *RUDE, "--never-ready", name="d4").started()
    with Screen(nannyd, "top") as top:
        top.wait_for(r"^  d4 +start ")
        top.press("n", "End", "r")
        top.wait_for("^Restart the worker of d4")
        top.press("y")
        top.wait_for(r"^restarting d4 \.\.\.")
        three[0].signal(signal.SIGSTOP)
        try:
            top.wait_for("^● a1 +not answering")
            top.press("i")
            eventually(lambda: top.names() == ["d4", "c3", "b2", "a1"], "it is still sorted")
            top.press("End", "r")
            top.wait_for("^Restart the worker of a1")
            top.press("y")
            top.wait_for("^a1: not answering")
        finally:
            three[0].signal(signal.SIGCONT)
        top.wait_for("^  a1 +running")
        top.press("q")
        top.wait_for("^status 0")


def test_quit_leaves_the_terminal_as_it_was(top: Screen) -> None:
    assert "before" not in top.text()
    top.press("q")
    assert top.wait_for("^status 0").split() == ["before", "status", "0"]
    assert top.left_as_it_was()


def test_interrupt_leaves_the_terminal_as_it_was(top: Screen) -> None:
    top.press("C-c")
    assert top.wait_for("^status 130").split() == ["before", "status", "130"]
    assert top.left_as_it_was()


def test_its_end_by_a_signal_leaves_the_terminal_as_it_was(nannyd: Host) -> None:
    terminal = Terminal(nannyd, "top")
    terminal.expect("There are no instances")
    terminal.child.kill(signal.SIGTERM)
    assert "\x1b[?1049l" in terminal.coloured()  # the screen from before
    assert terminal.child.exitstatus == 128 + signal.SIGTERM


def test_screen_of_another_size_is_filled_and_one_too_small_survived(top: Screen) -> None:
    top.press("n")
    top.resize(60, 6)
    seen = top.wait_for(r"^m s c u t n sort .*…$").splitlines()
    assert len(seen) == 6
    assert [line[2:4] for line in seen[3:5]] == ["a1", "b2"]
    top.press("End")
    eventually(lambda: top.names() == [] and "  c3" in top.text(), "the selected one is to be seen")
    for width, height in ((1, 1), (5, 2), (20, 3)):
        top.resize(width, height)
        top.press("Down", "i", "?", "q")
    top.resize(150, 30)
    eventually(lambda: len(top.names()) == 3, "all is there again")
    assert len(top.text().splitlines()) == 30


def test_last_lines_and_help_are_shown_and_left(top: Screen, three: list[Nannyd]) -> None:
    with three[0].connect() as caller:
        caller.get("LogEvent", topic="evil", message="\x1b]0;taken over\x07\x9b2Jend")
    top.press("n", "l")
    seen = top.wait_for(r"evil: .*\]0;taken over.*end")
    assert "nannyctl top - nannyd's own last records of a1: " in seen
    assert f"worker {pid(three[0])} is ready after" in seen
    assert top.title() != "taken over"
    top.press("q", "?")
    top.wait_for("by the share of its limit")
    top.press("Escape")
    eventually(lambda: top.names() == ["a1", "b2", "c3"], "the list is there again")


def test_only_those_named_and_without_colours(nannyd: Host, three: list[Nannyd]) -> None:
    with Screen(nannyd, "top", "[bc]*", NO_COLOR="1") as top:
        top.wait_for(r"^  c3 +running")
        eventually(lambda: top.names() == ["b2", "c3"], "those two, sorted by memory")
        assert not re.search(r"\x1b\[[34][0-7]", top.coloured())


def test_where_it_cannot_run_it_says_so(nannyd: Host) -> None:
    piped = nannyctl(nannyd, "top")
    assert (piped.returncode, piped.stdout) == (1, "")
    assert piped.stderr == "nannyctl top needs a terminal; nannyctl list shows the same once\n"
    for arguments, status, said in (
        (["top", "nonesuch"], 1, "there is no instance nonesuch\n"),
        (["top", "--json"], 2, "nannyctl top is for people; programs read nannyctl list --json.\n"),
    ):
        terminal = Terminal(nannyd, *arguments)
        assert terminal.read() == said
        assert terminal.child.exitstatus == status
    with Screen(nannyd, "top") as top:
        top.wait_for("There are no instances.")
