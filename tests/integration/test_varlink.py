"""The protocol of the control socket, between processes, by clients polite and pedantic."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest
import varlink
from harness import eventually
from varlink_peer import INTERFACE, STANDARD, Line, written
from varlink_service import DESCRIPTION

from nannyd.supervisor import varlink as served
from nannyd.supervisor.rights import Right

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from varlink_peer import Service


@pytest.fixture
def line(service: Service) -> Iterator[Line]:
    with service.line() as line:
        yield line


# --- A client nobody here wrote ---


@pytest.fixture
def client(service: Service) -> Iterator[varlink.Client]:
    with varlink.Client(f"unix:{service.path}") as client:
        yield client


def test_the_client_of_varlink_reads_info_and_descriptions(client: varlink.Client) -> None:
    names = client.get_interfaces()
    assert names == [STANDARD, INTERFACE]
    assert client.info == {
        "vendor": "Example",
        "product": "tests",
        "version": "1",
        "url": "https://example.org",
        "interfaces": [STANDARD, INTERFACE],
    }
    assert client.get_interface(INTERFACE).get_description() == DESCRIPTION
    with client.open(STANDARD) as connection:
        text = connection.GetInterfaceDescription(STANDARD)["description"]
    assert set(varlink.Interface(text).members) >= {"GetInfo", "GetInterfaceDescription", "ExpectedMore"}


def test_the_client_of_varlink_calls(client: varlink.Client) -> None:
    with client.open(INTERFACE) as connection:
        assert connection.Ping("é\U0001f600") == {"text": "é\U0001f600"}
        assert connection.Later(0.01) == {"waited": 0.01}
        with pytest.raises(varlink.VarlinkError) as caught:
            connection.Count(1)
        assert caught.value.error() == f"{STANDARD}.ExpectedMore"
        assert connection.Note("one way", _oneway=True) is None
        assert connection.Ping("after it") == {"text": "after it"}


def test_the_client_of_varlink_reads_streams(client: varlink.Client) -> None:
    with client.open(INTERFACE) as connection:
        assert [reply["i"] for reply in connection.Count(1000, _more=True)] == list(range(1000))
        with pytest.raises(varlink.VarlinkError) as caught:
            list(connection.Count(-1, _more=True))
        assert caught.value.error() == f"{INTERFACE}.Wrong"
        assert caught.value.parameters() == {"why": "less than nothing, or too many"}


# --- Answers ---


def standard(name: str, **parameters: Any) -> dict[str, Any]:
    """Return an error of org.varlink.service."""
    return {"error": f"{STANDARD}.{name}", "parameters": parameters}


ERRORS = {
    "org.example.other.Ping": standard("InterfaceNotFound", interface="org.example.other"),
    "org.example.test.Nothing": standard("MethodNotFound", method="org.example.test.Nothing"),
    "org.example.test.ping": standard("MethodNotFound", method="org.example.test.ping"),
    "org.example.test.": standard("MethodNotFound", method="org.example.test."),
    f"{STANDARD}.Nothing": standard("MethodNotFound", method=f"{STANDARD}.Nothing"),
    "Ping.": standard("InterfaceNotFound", interface="Ping"),
    ".": standard("InterfaceNotFound", interface=""),
}


@pytest.mark.parametrize("method", ERRORS)
def test_what_is_not_there_is_named(line: Line, method: str) -> None:
    assert line.ask(method) == ERRORS[method]
    assert line.get("Ping", text="goes on") == {"text": "goes on"}


def test_long_names_come_back_short_and_strange_ones_as_text(line: Line) -> None:
    assert len(line.ask("x" * 500_000 + ".y")["parameters"]["interface"]) == 255
    line.send(b'{"method":"org.example.test.\\ud800\\u0000\\u001b[31m"}\0')
    assert line.receive() == standard("MethodNotFound", method="org.example.test.\ufffd\0\x1b[31m")


def test_a_method_without_an_interface_is_of_none(line: Line) -> None:
    line.send(b'{"method":"Ping"}\0')
    assert line.receive() == standard("InterfaceNotFound", interface="")


@pytest.mark.parametrize(
    "parameters",
    [{}, None, {"text": 1}, {"text": None}, {"text": ["x"]}, {"text": "\ud800"}],
    ids=repr,
)
def test_a_wrong_parameter_is_named(line: Line, parameters: Any) -> None:
    line.send(written("Ping", parameters))
    assert line.receive() == standard("InvalidParameter", parameter="text")


def test_an_unknown_parameter_is_named(line: Line) -> None:
    assert line.ask("Ping", text="x", more=1) == standard("InvalidParameter", parameter="more")
    assert line.ask("GetStatistics", what=None) == standard("InvalidParameter", parameter="what")


def test_parameters_arrive_as_they_were_declared(line: Line) -> None:
    got = line.get("Types", i=1, f=2, b=True, s="é", mf=3)["got"]
    assert got == repr({"i": 1, "f": 2.0, "b": True, "s": "é", "mi": None, "mf": 3.0, "mb": None, "ms": None})


def test_upgrade_is_refused(line: Line) -> None:
    line.send(written("Note", {"text": "upgraded"}, upgrade=True))
    assert line.receive() == standard("MethodNotImplemented", method=f"{INTERFACE}.Note")
    assert "upgraded" not in line.statistics()["noted"]


def test_the_description_of_an_unknown_interface_is_an_error(line: Line) -> None:
    found = line.ask(f"{STANDARD}.GetInterfaceDescription", interface="org.example.other")
    assert found == standard("InterfaceNotFound", interface="org.example.other")
    assert line.ask(f"{STANDARD}.GetInterfaceDescription") == standard(
        "InvalidParameter", parameter="interface"
    )


def test_what_json_does_not_have_is_null_or_text(line: Line) -> None:
    assert line.get("Odd") == {"values": [1.5, None, None, None], "path": "/tmp/\ufffdté"}


def test_a_bug_in_a_method_closes_one_connection(service: Service, line: Line) -> None:
    for method, error in {"Broken": "RuntimeError('broken')", "Unwritable": "TypeError"}.items():
        with service.line() as other:
            other.send(
                written("Ping", {"text": "before"}) + written(method) + written("Ping", {"text": "after"})
            )
            assert other.receive() == {"parameters": {"text": "before"}}
            assert other.is_closed()
        failed = line.statistics()["failed"]
        assert failed[-1].startswith(error)


# --- Order ---


def test_calls_are_answered_in_order_also_those_that_wait(line: Line) -> None:
    line.send(
        written("Later", {"delay": 0.05})
        + written("Ping", {"text": "1"})
        + written("Count", {"n": 2}, more=True)
        + written("Later", {"delay": 0})
        + written("Ping", {"text": "2"})
    )
    assert [line.receive() for _ in range(6)] == [
        {"parameters": {"waited": 0.05}},
        {"parameters": {"text": "1"}},
        {"parameters": {"i": 0}, "continues": True},
        {"parameters": {"i": 1}},
        {"parameters": {"waited": 0.0}},
        {"parameters": {"text": "2"}},
    ]


def test_a_call_may_come_in_pieces(line: Line) -> None:
    for byte in written("Ping", {"text": "é"}) + written("Ping", {"text": "whole"})[:-1]:
        line.send(bytes([byte]))
    assert line.receive() == {"parameters": {"text": "\u00e9"}}
    line.send(b"\0")
    assert line.receive() == {"parameters": {"text": "whole"}}


def test_one_way_calls_are_handled_and_never_answered(line: Line) -> None:
    for method, parameters in [
        ("Note", {"text": "first"}),
        ("Note", {}),
        ("Nothing", {}),
        ("Later", {"delay": 0.01}),
        ("Count", {"n": 3}),
        ("Big", {"size": 1 << 20}),
    ]:
        line.send(written(method, parameters, oneway=True))
    line.send(written("Count", {"n": 3}, oneway=True, more=True))
    assert line.get("Ping", text="only") == {"text": "only"}
    assert "first" in line.statistics()["noted"]


def test_who_calls_one_way_need_not_wait(service: Service, line: Line) -> None:
    with service.line() as other:
        other.send(written("Later", {"delay": 0.05}, oneway=True))
        other.send(written("Note", {"text": "left behind"}, oneway=True))
    eventually(lambda: "left behind" in line.statistics()["noted"], "a call of somebody who is gone")


def test_who_says_no_more_is_answered(service: Service) -> None:
    with service.line() as line:
        line.send(written("Later", {"delay": 0.05}) + written("Ping", {"text": "last"}))
        line.socket.shutdown(socket.SHUT_WR)
        assert line.receive() == {"parameters": {"waited": 0.05}}
        assert line.receive() == {"parameters": {"text": "last"}}
        assert line.is_closed()


# --- Streams, and who hangs up ---


def test_a_stream_ends_with_its_reader(service: Service, line: Line) -> None:
    before = line.statistics()
    with service.lines(3) as readers:
        for reader in readers:
            reader.send(written("Listen", more=True))
            assert reader.receive() == {"parameters": {"text": "listening"}, "continues": True}
        assert line.get("Tell", size=5) == {"heard": 3}
        assert [reader.receive()["parameters"] for reader in readers] == [{"text": "xxxxx"}] * 3
        readers[0].close()
        eventually(lambda: line.statistics()["closed"] == before["closed"] + 1, "one reader is gone")
        assert line.get("Tell", size=1) == {"heard": 2}
    eventually(lambda: line.statistics()["connections"] == before["connections"], "all are gone")


@pytest.mark.parametrize(
    "behind", [b"", written("Ping", {"text": "x"}) * 3, b"{"], ids=["nothing", "calls", "half"]
)
def test_a_hang_up_is_noticed_while_a_call_waits(service: Service, line: Line, behind: bytes) -> None:
    before = line.statistics()["closed"]
    with service.line() as other:
        other.send(written("Never"))
        other.send(behind)
    eventually(lambda: line.statistics()["closed"] == before + 1, "the caller is gone")


def test_a_hang_up_is_noticed_after_the_half_of_it(service: Service, line: Line) -> None:
    before = line.statistics()["closed"]
    with service.line() as other:
        other.send(written("Ping", {"text": "there"}) + written("Never"))
        other.socket.shutdown(socket.SHUT_WR)
        assert other.receive() == {"parameters": {"text": "there"}}
        assert line.statistics()["closed"] == before, "it may yet listen"
    eventually(lambda: line.statistics()["closed"] == before + 1, "the caller is gone")


# --- The socket ---


def test_everybody_may_connect(service: Service) -> None:
    mode = service.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o666


def in_process(loop: asyncio.AbstractEventLoop) -> served.Server:
    """Return a server whose methods stop the loop when the caller is gone."""

    def wait(call: served.Call) -> None:
        assert call.open
        call.when_closed(loop.stop)

    def tell(call: served.Call) -> None:
        assert not call.more_reply({"text": "x" * 1_000_000})
        assert not call.open
        assert not call.more_reply({})
        call.reply({})
        call.when_closed(loop.stop)

    def hint(call: served.Call) -> None:
        assert not call.more_reply({"text": "hint"})
        call.reply({"text": "answer"})

    def answer(call: served.Call) -> None:
        call.reply({})
        assert not call.open
        call.when_closed(lambda: pytest.fail("it was answered"))

    return served.Server(
        loop,
        [
            served.Interface(
                INTERFACE,
                "",
                {
                    handle.__name__.title(): served.Method(Right.LOOK, handle, {})
                    for handle in (wait, tell, hint, answer)
                },
                lambda _: served.CallError(f"{INTERFACE}.Refused"),
            )
        ],
        vendor="",
        product="",
        version="",
        url="",
        judge=lambda _: Right.ALL,
        failed=lambda error: pytest.fail(repr(error)),
    )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_a_stale_socket_is_replaced_and_the_own_one_removed(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "control"))
        server = in_process(loop)
        server.open(tmp_path / "control")
        server.close()
        server.close()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        in_process(loop).open(tmp_path / "missing" / "control")
    with pytest.raises(OSError, match="too long"):
        in_process(loop).open(tmp_path / ("x" * 107))
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_without_connections_nothing_is_left_that_would_wake_the_loop(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    server = in_process(loop)
    server.open(tmp_path / "control")
    with Line(tmp_path / "control") as line:
        line.send(written("Wait"))
        while not server.connections:
            loop.run_until_complete(asyncio.sleep(0))
    loop.run_forever()  # until the hang-up is told
    assert server.connections == 0
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
    server.close()


def test_nothing_at_all_is_answered_one_way(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    server = in_process(loop)
    server.open(tmp_path / "control")
    with Line(tmp_path / "control") as line:
        line.send(written("Hint", oneway=True) + written("Answer"))
        assert loop.run_until_complete(asyncio.to_thread(line.receive)) == {"parameters": {}}
    server.close()


def test_who_answers_learns_that_nobody_is_there(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    server = in_process(loop)
    server.open(tmp_path / "control")
    with Line(tmp_path / "control") as line:
        line.send(written("Tell"))
    loop.run_forever()  # ends, for it was told
    assert server.connections == 0
    server.close()


def test_nobody_is_told_of_an_end_after_the_answer(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    server = in_process(loop)
    server.open(tmp_path / "control")
    with Line(tmp_path / "control") as line:
        line.send(written("Answer") + written("Wait"))
        assert loop.run_until_complete(asyncio.to_thread(line.receive)) == {"parameters": {}}
    loop.run_forever()  # until the hang-up is told, to the second one
    server.close()


def test_closing_tells_those_who_answer(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    server = in_process(loop)
    server.open(tmp_path / "control")
    with Line(tmp_path / "control") as line:
        line.send(written("Wait"))
        while not server.connections:
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        server.close()
        loop.run_forever()  # ends, for it was told
        assert line.is_closed()
    assert server.connections == 0
