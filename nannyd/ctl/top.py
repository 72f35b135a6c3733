"""`nannyctl top`: all instances, live, on the whole screen.

The thread of the screen waits for keys and nothing else.  A second one looks at the instances every two
seconds, and whatever is asked of an instance has one of its own: a hung instance holds up nobody.
"""

from __future__ import annotations

import contextlib
import curses
import queue
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from nannyd.core.errors import ExitCode
from nannyd.ctl import instances, journal, processes, status, topview, verbs
from nannyd.ctl.client import NANNY
from nannyd.ctl.command import FAILED, complain
from nannyd.ctl.render import clean
from nannyd.ctl.topview import Log, Mode, Sight, View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from nannyd.ctl.command import Command
    from nannyd.ctl.instances import Instance
    from nannyd.ctl.topview import Key

_INTERVAL = 2.0
"""Seconds between two looks."""
_REST = 9
"""A look at many is rarer: this is the least ratio of rest to work."""
_PATIENCE = 0.5
"""Seconds after which an instance is shown as one that does not answer."""
_NEWS_MS = 200
"""Milliseconds after which the thread of the screen looks whether there is news."""
_ESCAPE = "\x1b"
_ESCAPE_DELAY_MS = 50
"""Milliseconds after which the Escape key is no beginning of another."""
_BASIC_COLOURS = 8
_LOG_LINES = 200

_VERBS = {"r": ("Restart", "restarting"), "k": ("Kill", "killing")}
"""The methods by key, and what is going on meanwhile."""
_MOVES = {
    curses.KEY_UP: -1,
    curses.KEY_DOWN: 1,
    curses.KEY_PPAGE: -10,
    curses.KEY_NPAGE: 10,
    curses.KEY_HOME: -sys.maxsize,
    curses.KEY_END: sys.maxsize,
}


def top(command: Command) -> int:
    """Show the instances until the user has seen enough."""
    if command.json:
        complain("nannyctl top is for people; programs read nannyctl list --json.")
        return ExitCode.USAGE
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        complain("nannyctl top needs a terminal; nannyctl list shows the same once")
        return FAILED
    if problem := _terminal_problem():
        complain(problem)
        return FAILED
    _, problems = command.filtered(command.find() if command.names else [])
    for problem in problems:
        complain(problem)
    if problems:
        return FAILED
    signal.signal(signal.SIGTERM, _end)
    with _whole_screen(colour=command.style.colour) as window:
        _Screen(window, command, _Watch(command)).run()
    return ExitCode.CLEAN


@contextlib.contextmanager
def _whole_screen(*, colour: bool) -> Iterator[curses.window]:
    """Set the terminal up, and leave it as it was.  curses.wrapper() would paint in colours anyway."""
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        curses.set_escdelay(_ESCAPE_DELAY_MS)
        window.keypad(True)
        window.timeout(_NEWS_MS)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        if colour and curses.has_colors():
            curses.start_color()
            curses.use_default_colors()
        yield window
    finally:
        curses.endwin()


def _end(number: int, _: FrameType | None) -> NoReturn:
    """Leave the terminal as it was."""
    raise SystemExit(128 + number)


def _terminal_problem() -> str | None:
    try:
        curses.setupterm()
    except curses.error as error:
        return f"nannyctl top needs to know the terminal ({error}); set TERM"
    return None if curses.tigetstr("cup") else "nannyctl top needs a terminal with a cursor that can be moved"


class _Watch(threading.Thread):
    """Looks at the instances."""

    def __init__(self, command: Command) -> None:
        super().__init__(daemon=True)
        self.sights: queue.SimpleQueue[Sight | Exception] = queue.SimpleQueue()
        """News for the screen; an exception is a bug of ours."""
        self._command = command
        self._log_of: Instance | None = None
        self._asked = threading.Event()
        self._before: dict[tuple[Key, int], tuple[float, float]] = {}
        """The CPU time of an instance's worker, and when it was read."""

    def look_now(self) -> None:
        """Do not wait until it is time again."""
        self._asked.set()

    def read_log(self, instance: Instance | None) -> None:
        """Look at once, and from now on at the log of *instance* too."""
        self._log_of = instance
        self._asked.set()

    def run(self) -> None:
        try:
            while True:
                self._asked.clear()
                began = time.thread_time()
                self.sights.put(self._look())
                self._asked.wait(max(_INTERVAL, _REST * (time.thread_time() - began)))
        except Exception as error:  # noqa: BLE001 - the thread of the screen raises it again
            self.sights.put(error)

    def _look(self) -> Sight:
        command, log_of = self._command, self._log_of
        found = instances.find(command.environ, scopes=command.scopes, patience=_PATIENCE)
        some, _ = command.filtered(found)
        log = None if log_of is None else self._log(log_of)
        return Sight(some, self._cpu(some), time.clock_gettime(time.CLOCK_REALTIME), log)

    def _log(self, instance: Instance) -> Log:
        lines = status.last_lines(
            status.collect([instance], _LOG_LINES)[0], replace(self._command.style, colour=False)
        )
        return Log(topview.key_of(instance), lines, journal.why_not(instance) or "")

    def _cpu(self, some: list[Instance]) -> dict[Key, float]:
        """Return the share of a processor that each worker has used since it was looked at last."""
        used: dict[tuple[Key, int], tuple[float, float]] = {}
        shares: dict[Key, float] = {}
        for one in some:
            worker = None if one.status is None else one.status.worker
            if one.status is None or worker is None or (seconds := processes.cpu_time(one.status)) is None:
                continue
            key, now = topview.key_of(one), time.monotonic()
            used[key, worker.pid] = seconds, now
            if before := self._before.get((key, worker.pid)):
                shares[key] = max(0.0, (seconds - before[0]) / (now - before[1]))
        self._before = used
        return shares


class _Screen:
    """The terminal: paints the view, and hears the keys."""

    def __init__(self, window: curses.window, command: Command, watch: _Watch) -> None:
        self._window = window
        self._command = command
        self._watch = watch
        self._view = View()
        self._asked: tuple[str, Instance] | None = None
        """The key of a question and whom it is about."""
        self._done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._pairs: dict[int, int] = {}

    def run(self) -> None:
        """Paint and hear until `q`."""
        if self._command.style.colour and curses.has_colors():
            for colour in range(_BASIC_COLOURS):
                curses.init_pair(colour + 1, colour, -1)
                self._pairs[30 + colour] = curses.color_pair(colour + 1)
        self._watch.start()
        self._paint()
        while self._hear():
            pass

    # Keys

    def _hear(self) -> bool:
        """Wait for a key or news, and say whether to go on."""
        news = self._news()
        try:
            key: int | str = self._window.get_wch()
        except curses.error:
            if news:
                self._paint()
            return sys.stdin.isatty()  # a terminal that has hung up is none
        going = self._obey(key)
        self._paint()
        return going

    def _obey(self, key: int | str) -> bool:
        view = self._view
        if view.question:
            self._answer(key)
        elif view.mode is not Mode.LIST:
            if key in ("q", _ESCAPE, "\n"):
                view.mode = Mode.LIST
                self._watch.read_log(None)
        elif key == "q":
            return False
        else:
            self._choose(key)
        return True

    def _choose(self, key: int | str) -> None:
        view = self._view
        if isinstance(key, int):
            if key in _MOVES:
                topview.move(view, _MOVES[key])
            return
        view.message = ""
        chosen = topview.selection(view)
        if key in topview.ORDERS:
            view.order = key
        elif key == "i":
            view.inverted = not view.inverted
        elif key == "?":
            view.mode = Mode.HELP
        elif chosen is not None and key == "l":
            view.selected = topview.key_of(chosen)
            view.mode = Mode.LOG
            self._watch.read_log(chosen)
        elif chosen is not None and key in _VERBS:
            self._asked = key, chosen
            view.question = f"{_VERBS[key][0]} the worker of {clean(chosen.name)}?"

    def _answer(self, key: int | str) -> None:
        if isinstance(key, int):
            return  # a resized terminal is no answer
        self._view.question = ""
        if key != "y" or self._asked is None:
            return
        verb, instance = self._asked
        self._view.message = f"{_VERBS[verb][1]} {clean(instance.name)} ..."
        threading.Thread(target=self._do, args=(verb, instance), daemon=True).start()

    def _do(self, verb: str, instance: Instance) -> None:
        """Ask an instance and wait for its answer, in a thread of its own."""
        try:
            deed = verbs.Deed(instance)
            parameters = {"reason": self._command.reason or "nannyctl top"}
            verbs.tell([deed], f"{NANNY}.{_VERBS[verb][0]}", parameters, None)
            done = f"{_VERBS[verb][1].removesuffix('ing')}ed"
            self._done.put(clean(f"{instance.name}: {deed.error or done}"))
            self._watch.look_now()
        except Exception as error:  # noqa: BLE001 - the thread of the screen raises it again
            self._done.put(error)

    def _news(self) -> bool:
        """Take what the other threads have to say, and say whether there was any."""
        news = False
        while not self._done.empty():
            done = self._done.get()
            if isinstance(done, Exception):
                raise done
            self._view.message, news = done, True
        while not self._watch.sights.empty():
            sight = self._watch.sights.get()
            if isinstance(sight, Exception):
                raise sight
            self._view.sight, news = sight, True
        return news

    # Painting

    def _paint(self) -> None:
        height, width = self._window.getmaxyx()
        style = replace(self._command.style, width=width)
        self._window.erase()
        for y, line in enumerate(topview.lines(self._view, style, height)):
            self._window.move(y, 0)
            # The last column of the last line cannot be written without a complaint.
            with contextlib.suppress(curses.error):
                for cell in line:
                    self._window.addstr(cell.text, self._attribute(cell.colour))
        self._window.refresh()

    def _attribute(self, colour: str) -> int:
        """Return what curses calls a colour of `render` (an SGR sequence's numbers)."""
        known = {1: curses.A_BOLD, 4: curses.A_UNDERLINE, 7: curses.A_REVERSE, 90: curses.A_DIM}
        attribute = 0
        for number in map(int, colour.split(";") if colour else ()):
            attribute |= known.get(number, self._pairs.get(number, 0))
        return attribute
