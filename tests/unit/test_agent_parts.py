"""Parts of the agent without its process."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from nannyd.agent import MemoryReading, NannyError, NannyPlugin, WorkerExited, WorkerStarted
from nannyd.agent.channel import parse_specification
from nannyd.agent.link import Link
from nannyd.agent.nanny import Nanny
from nannyd.agent.plugin import HOOKS, hook_argument, hook_of, is_nanny_plugin
from nannyd.agent.turns import Turns
from nannyd.agent.work import Failed, Work
from nannyd.core import wire

# --- plugin -----------------------------------------------------------------------------------------------


class OneHook(NannyPlugin):
    """Has one hook of its own."""

    def worker_exited(self, info: WorkerExited) -> None:
        """Do nothing."""


class Duck:
    """Inherits nothing."""

    def worker_started(self, info: object) -> None:
        """Do nothing."""


def test_only_hooks_of_its_own_are_called() -> None:
    assert [hook for hook in HOOKS if hook_of(OneHook(), hook)] == ["worker_exited"]
    assert [hook for hook in HOOKS if hook_of(Duck(), hook)] == ["worker_started"]
    assert [hook for hook in HOOKS if hook_of(NannyPlugin(), hook)] == []


def test_every_hook_has_its_argument_and_unknown_fields_are_left_out() -> None:
    info = {"pid": 1, "reason": "r", "working_set": 2, "of_a_later_nannyd": 3}
    assert [hook_argument(hook, info) for hook in HOOKS] == [
        WorkerStarted(pid=1),
        "r",
        WorkerExited(pid=1),
        MemoryReading(working_set=2),
    ]


def test_who_inherits_from_dasks_is_no_duck() -> None:
    dasks = type("NannyPlugin", (), {})
    assert is_nanny_plugin(OneHook())
    assert is_nanny_plugin(type("Mine", (dasks,), {})())
    assert not is_nanny_plugin(Duck())


# --- link and nanny ---------------------------------------------------------------------------------------


def test_error_of_the_nanny_is_one_line() -> None:
    assert str(NannyError("TimedOut", {"after": 5, "phase": "stop"})) == "TimedOut (after: 5, phase: stop)"
    assert str(NannyError("Stopping", {})) == "Stopping"


def test_environment_shows_no_values() -> None:
    link = Link("w1", {"env": {"PASSWORD": "secret"}}, lambda _: None)
    assert repr(Nanny(link, "p").env) == "<environment of the next worker: PASSWORD>"


def test_answers_that_nobody_waits_for_are_forgotten() -> None:
    sent: list[Any] = []
    link = Link("w1", {}, sent.append)
    for number in range(1, 1001):
        link.ask("log_event", topic="t", message="m")
        link.set_env("p", "A", str(number))
        for asked in sent[-2:]:
            link.take_answer(asked["ask"], {"ok": {}})
    assert (link._asked, link._changes, link.env) == ({}, {}, {"A": "1000"})
    link.take_answer(7, {"ok": {}})


# --- channel ----------------------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "protocol": wire.PROTOCOL,
    "name": "w1",
    "preload": [],
    "preload_argv": [],
    "plugins": [],
    "entry_points": True,
    "facts": {},
}


def test_specification_needs_no_environ() -> None:
    assert parse_specification(SPEC).environ == {}
    assert parse_specification({**SPEC, "environ": {"A": "1"}}).environ == {"A": "1"}


@pytest.mark.parametrize("protocol", [0, 2, "1", None])
def test_another_protocol_is_refused(protocol: object) -> None:
    with pytest.raises(RuntimeError, match=f"speaks protocol {protocol}, but .* speaks {wire.PROTOCOL};"):
        parse_specification({**SPEC, "protocol": protocol})


# --- turns ------------------------------------------------------------------------------------------------


def test_turns_come_in_order_and_who_gives_up_is_skipped() -> None:
    story: list[str] = []

    async def take(turns: Turns, name: str, patience: float | None, go: asyncio.Event) -> None:
        try:
            async with turns.take(patience):
                story.append(f"{name} begins")
                await go.wait()
                story.append(f"{name} ends")
        except TimeoutError:
            story.append(f"{name} gives up")
            go.set()

    async def main() -> None:
        turns, go = Turns(), asyncio.Event()
        assert turns.is_free()
        takers = [take(turns, "a", None, go), take(turns, "b", 0.01, go), take(turns, "c", None, go)]
        await asyncio.gather(*takers)
        assert turns.is_free()

    asyncio.run(main())
    assert story == ["a begins", "b gives up", "a ends", "c begins", "c ends"]


# --- work -------------------------------------------------------------------------------------------------


def test_error_keeps_no_frame_alive() -> None:
    def fail() -> None:
        raise ValueError("x" * 100_000 + "\ud800")

    async def main() -> dict[str, str]:
        with pytest.raises(Failed) as caught:
            await Work("call f", fail).run(None)
        assert caught.value.__cause__ is caught.value.__context__ is None
        return caught.value.error

    error = asyncio.run(main())
    assert {key: type(value) for key, value in error.items()} == dict.fromkeys(error, str)
    assert len(error["traceback"]) <= wire.ERROR_MAX + 10
    json.dumps(error, ensure_ascii=False).encode()


def test_work_without_a_thread_is_a_failure() -> None:
    before = threading.stack_size(1 << 46)  # bytes, which no address space has
    try:
        with pytest.raises(Failed, match="can't start new thread"):
            asyncio.run(Work("call f", print).run(None))
    finally:
        threading.stack_size(before)
