"""Which instances there are: what systemd says, what sockets say, and what comes of both."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import ctl_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nannyd.core.paths import Scope
from nannyd.ctl import client, instances, replies, units
from nannyd.ctl.client import (
    Address,
    FailureError,
    NotAnsweringError,
    NotListeningError,
    Question,
    RefusedError,
)
from nannyd.ctl.instances import Instance
from nannyd.ctl.units import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REFUSED = RefusedError("io.nannyd.Nanny.NotPermitted", {"needs": "root"})

# systemd

SHOWN = """\
MainPID=826
Result=success
ExecMainCode=0
ExecMainStatus=0
StatusText=worker 834 running, a=b
StateChangeTimestamp=@1763874917
Id=nannyd@worker1.service
LoadState=loaded
ActiveState=active
SubState=running

MainPID=0
Result=exit-code
ExecMainCode=1
ExecMainStatus=69
StatusText=failed: worker exited with status 3 (exit-code, by worker); start-limit-hit
StateChangeTimestamp=
Id=nannyd@a\\x2db.service
LoadState=loaded
ActiveState=failed
SubState=failed

Id=other@w.service
LoadState=loaded

Id=nannyd@.service
LoadState=loaded
"""


def test_units_are_read_and_their_names_are_never_unescaped() -> None:
    one, two = units.parse_units(SHOWN, Scope.SYSTEM)
    assert (one.name, one.main_pid, one.changed_at, one.runs) == ("worker1", 826, 1_763_874_917, True)
    assert one.status_text == "worker 834 running, a=b"
    assert (two.name, two.id, two.exec_status, two.changed_at) == (
        "a\\x2db",
        "nannyd@a\\x2db.service",
        69,
        None,
    )
    assert units.reason(one) == ""
    assert units.reason(two) == (
        "gave up: the worker was started too often:"
        " worker exited with status 3 (exit-code, by worker); start-limit-hit"
    )


LISTED = """[
{"unit":"nannyd@a\\\\x2db.service","load":"loaded","active":"failed","sub":"failed","description":"d"},
{"unit":"nannyd@.service","load":"loaded","active":"failed","sub":"failed","description":"d"},
{"unit":"other@w.service","load":"loaded","active":"failed","sub":"failed","description":"d"}]"""


def test_the_list_of_units_is_read() -> None:
    (one,) = units.parse_list(LISTED, Scope.USER)
    assert one == Unit("a\\x2db", Scope.USER, active_state="failed", sub_state="failed")
    assert units.parse_list("", Scope.USER) == units.parse_list("{}", Scope.USER) == []


@given(st.text(st.sampled_from("Id=nannyd@.service\nAMP1 ")))
def test_any_text_has_some_units(text: str) -> None:
    units.parse_units(text, Scope.USER)
    units.parse_list(text, Scope.USER)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"active_state": "failed", "result": "exit-code", "exec_status": 78}, "the configuration is wrong"),
        (
            {
                "active_state": "failed",
                "result": "exit-code",
                "exec_status": 71,
                "status_text": "failed: worker could not be started: cannot execute 'x'",
            },
            "the worker could not be started: cannot execute 'x'",
        ),
        ({"active_state": "failed", "result": "signal", "exec_status": 9}, "nannyd was killed by SIGKILL"),
        ({"active_state": "failed", "result": "watchdog"}, "nannyd hung, and systemd ended it"),
        ({"active_state": "failed", "result": "new-word"}, "new-word"),
        (
            {"active_state": "failed", "result": "exit-code", "exec_status": 219},
            "systemd could not execute nannyd (status 219)",
        ),
        (
            {"active_state": "activating", "sub_state": "auto-restart", "result": "signal", "exec_status": 6},
            "nannyd was killed by SIGABRT; systemd starts it again",
        ),
        ({"result": "success"}, "not started since boot"),
        ({"result": "success", "changed_at": 1, "exec_code": 1}, "stopped"),
        ({"active_state": "failed"}, ""),
        ({"load_state": "masked"}, "its unit is masked"),
    ],
)
def test_why_a_unit_is_down_is_told_in_words(values: dict[str, Any], words: str) -> None:
    assert units.reason(Unit("w", Scope.SYSTEM, **values)) == words


def test_every_exit_status_of_nannyd_has_words() -> None:
    from nannyd.core.errors import ExitCode

    assert [code for code in ExitCode if units.exit_words(code) == f"exit status {code.value}"] == []


# Names


def test_a_name_means_one_and_a_pattern_what_is_listed() -> None:
    known = [samples.running("worker1"), samples.down("worker2"), Instance("worker3", Scope.SYSTEM)]
    assert [one.name for one in instances.choose(known, "worker*")] == ["worker1", "worker2"]
    assert [one.name for one in instances.choose(known, "worker3")] == ["worker3"]
    assert [one.name for one in instances.choose(known, "worker[23]")] == ["worker2"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonesuch", "there is no instance nonesuch"),
        ("z*", "no instance matches 'z*'"),
        ("../x", "there is no instance ../x"),
        ("/x", "'/x' has no user before the slash"),
        (".x", "'.x' begins with '.'"),
        ("nannyd", "'nannyd' is reserved"),
    ],
)
def test_a_name_that_means_nothing_is_an_error(name: str, words: str) -> None:
    with pytest.raises(instances.NoInstanceError) as error:
        instances.choose([samples.running()], name)
    assert words in str(error.value)


def test_of_two_of_a_name_the_one_that_is_up_is_meant_then_ones_own() -> None:
    theirs, own = samples.running("w"), Instance("w", Scope.USER)
    assert instances.choose([theirs, own], "w") == [theirs]
    theirs = samples.down("w")
    assert instances.choose([theirs, own], "w") == [own]


def test_the_unit_of_an_instance_is_its_name_too() -> None:
    assert instances.plain("nannyd@worker1.service") == "worker1"
    assert instances.plain("nannyd@worker1") == "worker1"
    assert instances.plain("worker1.service") == "worker1.service"


@pytest.mark.parametrize(("name", "may"), [("a:b_.\\x2d-@1", True), ("é", False), ("a+b", False)])
def test_not_every_name_can_be_that_of_a_unit(name: str, may: bool) -> None:  # noqa: FBT001
    assert units.may_be_unit(name) is may


# What is known of one


@pytest.mark.parametrize(
    ("found", "state", "active", "is_up"),
    [
        ({}, "inactive", "inactive", False),
        ({"failure": NotAnsweringError("x")}, "not answering", "active", True),
        ({"failure": NotListeningError("x")}, "failed", "failed", False),
        ({"failure": REFUSED}, "active", "active", True),
        ({"failure": REFUSED, "unit": "active"}, "running", "active", True),
        ({"failure": NotAnsweringError("x"), "unit": "active"}, "not answering", "active", True),
        ({"failure": NotListeningError("x"), "unit": "activating"}, "dead", "activating", True),
        ({"unit": "failed"}, "failed", "failed", False),
    ],
)
def test_the_state_is_what_nannyd_says_or_else_what_is_seen(
    found: dict[str, Any],
    state: str,
    active: str,
    is_up: bool,  # noqa: FBT001
) -> None:
    unit = found.pop("unit", None)
    instance = Instance("w", Scope.SYSTEM, **found)
    instance.unit = Unit("w", Scope.SYSTEM, active_state=unit) if unit else None
    assert (instance.state, instance.active_state, instance.is_up) == (state, active, is_up)


# Replies of others


def test_a_reply_is_read_whole() -> None:
    status = replies.status(samples.status_reply())
    assert status.worker is not None
    assert status.worker.started_at == samples.NOW - 59
    assert status.memory.working_set == 50 * samples.MIB
    assert status.last_exit is not None
    assert replies.exit_words(status.last_exit) == (
        "was killed by SIGTERM: result memory, by nannyd (memory.terminate: 190.0 MiB of 200.0 MiB (95.0 %))"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_stands_in_a_reply_it_is_read_or_refused(data: st.DataObject) -> None:
    reply = samples.status_reply()
    where = data.draw(st.sampled_from([reply, reply["worker"], reply["memory"], reply["lastExit"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)
    with contextlib.suppress(client.NonsenseError):
        replies.status(reply)


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(client.NonsenseError, match=r"reply\.memory\.limit must be an integer"):
        replies.status(samples.status_reply(memory=samples.memory(limit="lots")))
    with pytest.raises(client.NonsenseError, match=r"reply\.worker\.processId must be an integer"):
        replies.status(samples.status_reply(worker=samples.worker(processId=True)))


@pytest.mark.parametrize(
    ("error", "parameters", "words"),
    [
        ("NotPermitted", {"needs": "root or alice"}, "not permitted; needs root or alice"),
        (
            "TimedOut",
            {"timeout": 5.0, "state": "start"},
            "not within 5s; it is start, and what was asked for",
        ),
        ("TimedOut", {"timeout": 5, "state": "start"}, "not within 5s; it is start, and what was asked for"),
        ("StartLimitHit", {"burst": 3, "interval": 60.0, "exit": None}, "given up: 3 starts within 1min"),
        ("WorkerFailed", {"exit": samples.last_exit()}, "the worker failed; was killed by SIGTERM: result"),
        ("Superseded", {"by": "Terminate"}, "somebody asked for something else meanwhile: Terminate"),
        ("InvalidConfiguration", {"problems": ["a: b"]}, "the old one stays in force\na: b"),
        ("InvalidArgument", {"parameter": "timeout", "reason": "is negative"}, "timeout: is negative"),
        ("NotPermitted", {"needs": 7}, "io.nannyd.Nanny.NotPermitted"),
        ("Unheard", {}, "io.nannyd.Nanny.Unheard"),
        ("org.varlink.service.PermissionDenied", {}, "not permitted; needs root or the user that nannyd"),
    ],
)
def test_errors_are_told_in_words(error: str, parameters: dict[str, Any], words: str) -> None:
    name = error if "." in error else f"io.nannyd.Nanny.{error}"
    assert words in replies.words(RefusedError(name, parameters))


# Sockets


class Server:
    """A control socket at which *converse* has the connection."""

    def __init__(self, directory: Path, converse: Callable[[socket.socket], None]) -> None:
        """Listen in *directory*."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "control"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.listen(8)
        self._converse = converse
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            self._converse(connection)

    def close(self) -> None:
        """Stop listening."""
        self._thread.join(60)
        self._socket.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Address]]:
    servers: list[Server] = []

    def make(converse: Callable[[socket.socket], None]) -> Address:
        servers.append(Server(tmp_path / str(len(servers)), converse))
        return Address(servers[-1].path)

    yield make
    for server in servers:
        server.close()


def saying(*chunks: bytes) -> Callable[[socket.socket], None]:
    """Return a conversation: hear the call, say *chunks*."""

    def converse(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        for chunk in chunks:
            try:
                connection.sendall(chunk)
            except OSError:
                return

    return converse


def test_a_reply_comes_in_pieces(serve: Callable[..., Address]) -> None:
    message = json.dumps({"parameters": {"text": "x" * 300_000}}).encode() + b"\0"
    pieces = [message[start : start + 70_000] for start in range(0, len(message), 70_000)]
    path = serve(saying(*pieces))
    assert client.call(path, "a.B", patience=60) == {"text": "x" * 300_000}


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (b"no json\0", client.NonsenseError, "not JSON"),
        (b"[1]\0", client.NonsenseError, "not one of Varlink"),
        (b'{"parameters": 3}\0', client.NonsenseError, "not one of Varlink"),
        (b"[" * 100_000 + b"\0", client.NonsenseError, "not JSON"),
        (b'{"error": "a.B", "parameters": {"x": 1}}\0', RefusedError, "a.B"),
        (b'{"parameters": {}}', client.ClosedError, "it closed the connection"),
        (b"", client.ClosedError, "it closed the connection"),
    ],
)
def test_what_is_no_reply_is_a_failure(
    serve: Callable[..., Address], said: bytes, kind: type[FailureError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        client.call(serve(saying(said)), "a.B", patience=60)


def test_a_reply_without_an_end_is_given_up(serve: Callable[..., Address]) -> None:
    question = Question(serve(saying(*[b" " * 65536] * 64)), "a.B")
    (answer,) = client.ask([question], patience=60, longest=1 << 20)
    assert (type(answer), str(answer)) == (client.NonsenseError, "its reply is longer than 1 MiB")


def test_a_reply_that_drips_is_given_up_in_time(serve: Callable[..., Address]) -> None:
    end = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone
            while not end.wait(0.02):
                connection.sendall(b" ")

    (answer,) = client.ask([Question(serve(drip), "a.B")], patience=0.3, quiet=0.2)
    end.set()
    assert isinstance(answer, NotAnsweringError)


def test_a_socket_of_another_user_is_not_trusted(
    serve: Callable[..., Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(lambda connection: None)
    monkeypatch.setattr(client, "_CREDENTIALS", Credentials())
    with pytest.raises(client.NotTrustedError, match="user 65534 listens at the socket of user"):
        client.call(path, "a.B", patience=60)


class Credentials:
    """SO_PEERCRED as of a peer that is nobody."""

    size = 12

    def unpack(self, data: bytes) -> tuple[int, int, int]:
        """Return pid, uid, gid."""
        assert len(data) == self.size
        return 1, 65534, 65534


def test_all_are_asked_at_once_and_the_silent_one_is_not_waited_for_alone(
    serve: Callable[..., Address], tmp_path: Path
) -> None:
    end = threading.Event()
    answers = client.ask(
        [
            Question(serve(lambda connection: void(end.wait(60))), "a.B"),
            Question(serve(saying(b'{"parameters": {"n": 1}}\0')), "a.B"),
            Question(Address(tmp_path / "nonesuch" / "control"), "a.B"),
        ],
        patience=60,
        quiet=2,
    )
    end.set()
    assert [type(answer) for answer in answers] == [NotAnsweringError, dict, NotListeningError]


def test_what_was_said_while_others_were_asked_counts(serve: Callable[..., Address]) -> None:
    """To ask many on one processor takes longer than anybody is silent."""
    said = threading.Event()

    def converse(connection: socket.socket) -> None:
        saying(b'{"parameters": {"n": 1}}\0')(connection)
        said.set()

    class Slow(Address):
        def open(self) -> tuple[int, int]:
            assert said.wait(60)
            return super().open()

    slow = Slow(serve(saying(b'{"parameters": {"n": 2}}\0')).path)
    answers = client.ask([Question(serve(converse), "a.B"), Question(slow, "a.B")], patience=60, quiet=0)
    assert answers[0] == {"n": 1}


def void(_: object) -> None:
    """Return nothing."""


def test_nobody_waits_for_another_user_who_drips(serve: Callable[..., Address]) -> None:
    end = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone
            while not end.wait(0.02):
                connection.sendall(b" ")

    uid = os.geteuid()
    theirs = Address(serve(drip).path, owner=uid)
    before = time.monotonic()
    (answer,) = client.ask([Question(theirs, "a.B")], patience=60, quiet=0.2)
    end.set()
    assert isinstance(answer, NotAnsweringError)
    assert time.monotonic() - before < 30


def test_another_users_socket_is_reached_by_no_link(serve: Callable[..., Address], tmp_path: Path) -> None:
    path = serve(saying(b'{"parameters": {}}\0')).path
    uid = os.geteuid()
    (tmp_path / "directory").symlink_to(path.parent)
    (tmp_path / "socket").mkdir()
    (tmp_path / "socket/control").symlink_to(path)
    for name in ("directory", "socket"):
        with pytest.raises(NotListeningError):
            client.call(Address(tmp_path / name / "control", owner=uid), "a.B", patience=60)
    with pytest.raises(client.NotTrustedError):
        client.call(Address(path, owner=uid + 1), "a.B", patience=60)


def test_another_users_replies_may_be_shorter(serve: Callable[..., Address]) -> None:
    theirs = Address(serve(saying(*[b" " * 65536] * 8)).path, owner=os.geteuid())
    (answer,) = client.ask([Question(theirs, "a.B")], patience=60, longest=1 << 20)
    assert str(answer) == "its reply is longer than 64 KiB"
