"""The daemon from its first line to its last: what is found, opened and cleared before supervising.

Everything is imported before READY=1: a package that is upgraded under a running supervisor must not mix
versions in it.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.core.errors import ExitCode
from nannyd.core.paths import SUPERVISED, control_socket
from nannyd.core.plan import LogFormat, MemoryMode, Plan
from nannyd.core.units import format_size
from nannyd.supervisor import ending, leftover, library, logs, notices, scratch, signals
from nannyd.supervisor.agent import Agent
from nannyd.supervisor.agentlife import Room
from nannyd.supervisor.attend import attend
from nannyd.supervisor.control import Control
from nannyd.supervisor.delegation import Delegation
from nannyd.supervisor.handover import Handover
from nannyd.supervisor.helpers import Helpers
from nannyd.supervisor.life import Place
from nannyd.supervisor.notices import say
from nannyd.supervisor.poll import Sampler
from nannyd.supervisor.reload import Reloader
from nannyd.supervisor.ring import Ring
from nannyd.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from nannyd.supervisor.dask import Dask


_LEFTOVER_TIMEOUT = 10.0
_REMOVAL_TIMEOUT = 20.0
_LOG_INFO = 6
_LEVEL_PREFIX = True
"""The worker's `<3>` at the start of a line is its priority (sd-daemon(3))."""


def main(argv: list[str]) -> int:
    """Supervise the instance whose plan lies in the memfd that the launcher left open.

    *argv* is the launcher's word to us, `--plan-fd= --lock-fd= --runtime-directory=`, and after `--` its
    own arguments, for ps(1) and for who wants to know later.  (argparse would cost 0.4 MiB.)
    """
    options = dict(argument.removeprefix("--").split("=", 1) for argument in argv[: argv.index("--")])
    os.set_inheritable(int(options["lock-fd"]), False)
    handover = Handover(int(options["plan-fd"]))
    Path("/proc/self/comm").write_text("nannyd")
    ring = Ring()
    plan = handover.plan
    log_format = logs.set_up(plan.log_format, plan.log_level, plan.name, ring)
    try:
        return asyncio.run(_serve(handover, Path(options["runtime-directory"]), log_format, ring))
    except Exception as error:  # noqa: BLE001 - the last line of defence, which must say what happened
        say(notices.INTERNAL_ERROR, detail="".join(traceback.format_exception(error)).strip())
        return ExitCode.INTERNAL_ERROR


async def _serve(handover: Handover, runtime: Path, log_format: LogFormat, ring: Ring) -> int:
    loop = asyncio.get_running_loop()
    ending.forget(os.environ)
    plan = handover.plan
    helpers = Helpers(loop)
    delegation, weaker = _delegation(plan)
    if plan.memory.mode is MemoryMode.CGROUP and weaker:
        say(notices.START_FAILED, detail=f"memory.mode is cgroup, but {weaker}")
        return ExitCode.COULD_NOT_START
    # PID 1 of a container gets every orphan, with a leaf too.
    trees = _trees() if delegation is None or os.getpid() == 1 else None
    watched = plan.memory.thresholds.limit is not None
    place = Place(
        loop=loop,
        runtime=runtime,
        library=library.install(runtime, dask=plan.dask is not None),
        delegation=delegation,
        tree=None if trees is None or delegation is not None else lambda _: trees.Tree(helpers.pids),
        sampler=Sampler() if weaker else None,
        output=_output(plan.name, log_format),
        post=lambda event: None,
        noted=lambda: None,
    )
    supervisor = Supervisor(plan, place, helpers, weaker if watched else "")
    if trees is not None:
        signals.reap_on_sigchld(supervisor, loop, helpers, trees.reap_orphans)
    say(
        notices.STARTING,
        nannyd_instance=plan.name,
        memory=_memory_in_words(plan, weaker),
        memory_mode="poll" if weaker else "cgroup",
        memory_limit=plan.memory.thresholds.limit,
    )
    await _end_leftovers(delegation, runtime)
    supervisor.local_directory = await _sweep(plan, helpers)
    _remove_stale_sockets(runtime)
    reloader = Reloader(supervisor, helpers, handover)
    agent_output = _output(f"{plan.name}-agent", log_format)
    session = None if trees is None or delegation is not None else functools.partial(trees.Session, loop)
    room = Room(loop, runtime, place.library, delegation, helpers, agent_output, session)
    return await _run(supervisor, reloader, room, runtime, ring)


async def _run(supervisor: Supervisor, reloader: Reloader, room: Room, runtime: Path, ring: Ring) -> int:
    asyncio.get_running_loop().set_exception_handler(supervisor.fail)
    try:
        async with asyncio.TaskGroup() as tasks:
            agent = Agent(room, lambda: supervisor.plan, tasks, lambda *asked: control.answer_agent(*asked))
            dask = _dask(supervisor, agent, tasks)
            control = Control(supervisor, reloader, ring, room, tasks, agent, dask)
            control.open(control_socket(runtime))
            _settle()
            try:
                attend(agent, supervisor, tasks, dask)
                signals.reload_on_sighup(room.loop, tasks, reloader.reload)
                signals.stop_on_sigterm(supervisor, room.loop)
                code = await supervisor.run()
                await agent.teardown()
                if dask is not None:
                    await dask.finish()
            finally:
                if dask is not None:
                    dask.close()
                await control.close()
                await agent.close()
    except BaseException:
        supervisor.abandon()
        raise
    ending.leave(supervisor, os.environ)
    _remove_uploads(supervisor.local_directory, room.helpers)
    await room.helpers.wait(_REMOVAL_TIMEOUT)
    # The loop lets go of the signals when it closes: one that comes then must not be our end.
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED)
    signal.set_wakeup_fd(-1)  # the loop closes what it hears of signals by before it lets go of them
    return code


def _dask(supervisor: Supervisor, agent: Agent, tasks: asyncio.TaskGroup) -> Dask | None:
    """Return the supervisor's part in a Dask cluster, which only a member of one needs in its memory."""
    if supervisor.plan.dask is None:
        return None
    from nannyd.supervisor import dask

    return dask.Dask(supervisor, agent, tasks)


def _settle() -> None:
    """Give back what only starting needed."""
    sys.path_importer_cache.clear()  # the names of all files beside those that were imported
    gc.collect()
    gc.freeze()  # what is here now stays: later collections need not look at it
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # the GNU C library's
        libc.malloc_trim(0)


def _delegation(plan: Plan) -> tuple[Delegation | None, str]:
    """Return the delegated cgroup, if there is one, and why memory must be polled, if it must."""
    delegation, reason = Delegation.find()
    if plan.memory.mode is MemoryMode.POLL:
        if delegation is not None:
            delegation.has_memory = False
        return delegation, "memory.mode is poll"
    if delegation is None:
        return None, reason
    return delegation, "" if delegation.has_memory else "the delegated cgroup has no memory controller"


def _memory_in_words(plan: Plan, weaker: str) -> str:
    limit = plan.memory.thresholds.limit
    if limit is None:
        return "memory is not limited"
    how = f"polled, because {weaker}" if weaker else "watched by the kernel (cgroup)"
    return f"memory limit {format_size(limit)} ({plan.memory.where}), {how}"


def _trees() -> ModuleType:
    """Return what holds processes together without a cgroup; with psutil, so only where it is needed."""
    from nannyd.supervisor import tree

    return tree


def _remove_stale_sockets(runtime: Path) -> None:
    """Remove what the workers of a nannyd that crashed spoke to."""
    for socket in runtime.glob("notify-*"):
        socket.unlink(missing_ok=True)


def _output(name: str, log_format: LogFormat) -> Callable[[], int]:
    """Return what opens the worker's output: a journal stream of its own, or nannyd's, unchanged."""
    if log_format is not LogFormat.JOURNAL:
        return lambda: 1
    from systemd._journal import stream_fd  # see logs.JournalHandler

    def stream() -> int:
        try:
            descriptor: int = stream_fd(name, _LOG_INFO, _LEVEL_PREFIX)
        except OSError as error:  # it names nothing
            raise OSError(
                error.errno, error.strerror, "the journal's stream for the worker's output"
            ) from None
        return descriptor

    return stream


async def _end_leftovers(delegation: Delegation | None, runtime: Path) -> None:
    """Kill what an earlier nannyd left in its leaves: nothing may start beside it."""
    if delegation is None:
        await _end_commands(runtime)
        return
    for leaf in delegation.leftovers():
        pids = leaf.pids()
        empty = asyncio.Event()
        leaf.kill()
        leaf.watch_empty(empty.set)
        async with asyncio.timeout(_LEFTOVER_TIMEOUT):
            await empty.wait()
        leaf.close()
        if pids:
            say(notices.LEFTOVER_ENDED, what=f"processes {', '.join(map(str, pids))} in {leaf.path}")


async def _end_commands(runtime: Path) -> None:
    """Kill what operators ran when an earlier nannyd crashed; what does not die is nobody's harm."""
    with suppress(TimeoutError):
        if pids := await leftover.end(leftover.of_commands(runtime)):
            say(notices.LEFTOVER_ENDED, what=f"processes {', '.join(map(str, pids))} of commands")


async def _sweep(plan: Plan, helpers: Helpers) -> Path | None:
    """End what lives of workers whose nannyd crashed, and remove their scratch directories; return where."""
    try:
        parent = scratch.place(plan.worker.local_directory, os.environ, plan.name)
    except OSError:
        return None  # the first start fails by it, and names it
    try:
        for path in scratch.abandoned(parent):
            if pids := await leftover.end(leftover.of_life(path)):
                say(notices.LEFTOVER_ENDED, what=f"processes {', '.join(map(str, pids))}")
            helpers.remove(path, functools.partial(scratch.disown, path))
    except OSError as error:
        say(notices.SCRATCH_FAILED, path=error.filename, detail=error)
    return parent


def _remove_uploads(parent: Path | None, helpers: Helpers) -> None:
    """Remove what plugins have kept beside the scratch directories."""
    for path in parent.glob("upload-*") if parent is not None else ():
        helpers.remove(path, lambda removed: None)  # rm says itself what it could not do
