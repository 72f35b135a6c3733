"""The `nanny` object, used by real code in the agent's process; the test is the supervisor."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from agent_peer import FACTS, Agent, AgentError
from harness import interpreters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_facts_are_those_that_were_told_last(agent: Agent) -> None:
    assert agent.call("plugins:facts") == {
        "name": "w1",
        "status": "running",
        **{key: value for key, value in FACTS.items() if key != "state"},
    }
    agent.tell_facts(state="auto-restart", pid=None, env={"X": "1"}, of_a_later_nannyd=1)
    found = agent.call("plugins:facts")
    assert (found["status"], found["pid"], found["env"]) == ("auto-restart", None, {"X": "1"})


@pytest.mark.parametrize("how", ["ask", "ask_async"])
@pytest.mark.parametrize(
    ("method", "kwargs", "parameters"),
    [
        ("restart", {}, {"timeout": None, "reason": "call plugins:{}"}),
        ("restart", {"timeout": 5, "reason": "r"}, {"timeout": 5, "reason": "r"}),
        ("kill", {}, {"timeout": None, "reason": "call plugins:{}"}),
        ("kill", {"timeout": 0.5, "reason": "r"}, {"timeout": 0.5, "reason": "r"}),
        ("instantiate", {}, {"timeout": None}),
        ("close", {"reason": "r"}, {"reason": "r"}),
        ("log_event", {"topic": "t", "msg": {"a": [1]}}, {"topic": "t", "message": {"a": [1]}}),
    ],
)
def test_what_is_asked_reaches_the_supervisor_and_its_answer_comes_back(
    agent: Agent, how: str, method: str, kwargs: dict[str, Any], parameters: dict[str, Any]
) -> None:
    assert agent.call(f"plugins:{how}", method, kwargs) is None
    expected = {k: v.format(how) if isinstance(v, str) else v for k, v in parameters.items()}
    assert agent.asked == [(method, expected)]
    agent.responses[method] = {"error": {"name": "TimedOut", "parameters": {"after": 5}}}
    assert agent.call(f"plugins:{how}", method, kwargs) == "TimedOut {'after': 5}: TimedOut (after: 5)"


def test_answer_may_come_late(agent: Agent) -> None:
    agent.responses["restart"] = None
    numbers = [
        agent.request("call", target=f"plugins:{how}", args=["restart", {}], kwargs={}, timeout=None)
        for how in ("ask", "ask_async")
    ]
    agent.until(lambda: len(agent.asked) == 2)
    assert agent.call("plugins:add", 1) == 1
    agent.respond_all("restart")
    assert [agent.answer(number) for number in numbers] == [{"value": None}, {"value": None}]


def test_blocking_in_async_code_is_refused(agent: Agent) -> None:
    with pytest.raises(
        AgentError, match="would block the event loop of all plugins; await the answer instead"
    ):
        agent.call("plugins:block_in_the_loop")


def test_patience_for_an_answer_has_an_end_and_a_late_answer_harms_nobody(agent: Agent) -> None:
    agent.responses["restart"] = None
    with pytest.raises(AgentError) as caught:
        agent.call("plugins:wait_too_short")
    assert (caught.value["type"], caught.value["message"]) == ("TimeoutError", "no answer within 0.01 s")
    request = {"target": "plugins:ask_async", "args": ["restart", {}], "kwargs": {}, "timeout": 1.0}
    with pytest.raises(AgentError, match="in ask_async"):
        agent.do("call", **request)
    agent.respond_all("restart")
    assert agent.do("ping") == {}


def test_what_json_cannot_say_is_not_asked(agent: Agent) -> None:
    with pytest.raises(AgentError) as caught:
        agent.call("plugins:log_an_object")
    assert caught.value["type"] == "TypeError"
    assert agent.asked == []


def test_called_function_gets_the_nanny_wherever_its_parameter_is(agent: Agent) -> None:
    assert agent.call("plugins:who_am_i") == "<Nanny of w1 for call plugins:who_am_i>"
    assert agent.call("plugins:nanny_in_the_middle", 1, 2) == [1, "w1", 2, 3]
    assert agent.call("plugins:nanny_in_the_middle", 1, 2, c=4) == [1, "w1", 2, 4]
    with pytest.raises(AgentError, match="missing a required argument: 'b'"):
        agent.call("plugins:nanny_in_the_middle", 1)


# --- env --------------------------------------------------------------------------------------------------


def sets(agent: Agent) -> list[tuple[str, str, str | None]]:
    """Return who has set what, in order, and forget it."""
    found = [(p["plugin"], p["name"], p["value"]) for what, p in agent.asked if what == "set_env"]
    agent.asked.clear()
    return found


def test_changes_are_told_in_the_plugins_name_and_seen_at_once(agent: Agent) -> None:
    agent.tell_facts(env={"OLD": "0"})
    agent.responses["set_env"] = None  # the supervisor takes its time
    agent.add("plugins:Environment", "e")
    assert agent.story() == [
        "saw {'OLD': '0'}",
        "set {'OLD': '0', 'A': '1', 'B': '2'}",
        *("ValueError", "ValueError", "ValueError", "TypeError", "TypeError"),
        "KeyError",
    ]
    assert sets(agent) == [("e", "A", "1"), ("e", "B", "2"), ("e", "C", "3"), ("e", "C", None)]
    agent.tell_facts(env={"OLD": "0"})  # sent before the changes arrived
    assert agent.call("plugins:facts")["env"] == {"OLD": "0", "A": "1", "B": "2"}
    agent.respond_all("set_env")
    assert agent.call("plugins:facts")["env"] == {"OLD": "0", "A": "1", "B": "2"}
    agent.tell_facts(env={"OLD": "1", "A": "1", "B": "2"})
    assert agent.call("plugins:facts")["env"] == {"OLD": "1", "A": "1", "B": "2"}


def test_refused_change_is_not_seen_any_more(agent: Agent) -> None:
    agent.responses["set_env"] = None
    agent.add("plugins:Environment", "e")
    # Now, and not before: the plugin itself takes back one, which is there until it is refused.
    agent.respond_all("set_env", {"error": {"name": "InvalidParameter", "parameters": {}}})
    assert agent.call("plugins:facts")["env"] == {}


def test_what_a_plugin_has_set_is_known_before_its_answer_and_taken_back_with_it(agent: Agent) -> None:
    agent.add("plugins:Environment", "e")
    sets(agent)
    agent.do("plugin_remove", name="e")
    assert sorted(sets(agent)) == [("e", "A", None), ("e", "B", None)]
    assert agent.call("plugins:facts")["env"] == {}


def test_what_a_failed_plugin_has_set_is_taken_back(agent: Agent) -> None:
    with pytest.raises(AgentError):
        agent.add("plugins:Raising", "r", method="setup")
    assert sets(agent) == [("r", "RAISING", "1"), ("r", "RAISING", None)]


# --- preloads ---------------------------------------------------------------------------------------------


def set_up(agent: Agent, preload: str, *argv: str) -> list[dict[str, str]]:
    """Set up one preload, and return the failures."""
    agent.specify(preload=[preload], preload_argv=[list(argv)])
    failed: list[dict[str, str]] = agent.do("setup", again=False)["failed"]
    return failed


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("functions", "told"),
    [
        (["nannyd_setup(nanny)", "nannyd_teardown(nanny)"], ["nannyd_setup w1", "nannyd_teardown w1"]),
        (["dask_setup(nanny)", "dask_teardown(nanny)"], ["dask_setup w1", "dask_teardown w1"]),
        (["nannyd_setup(nanny)", "dask_setup(nanny)"], ["nannyd_setup w1"]),
        (["nannyd_setup(nanny, argv)"], ["nannyd_setup w1 []"]),
        ([], []),
    ],
)
def test_preload_is_set_up_and_torn_down(
    launch_agent: Callable[..., Agent], tmp_path: Path, kind: str, functions: list[str], told: list[str]
) -> None:
    source = ["from plugins import STORY"]
    for function in functions:
        extra = " {argv}" if "argv" in function else ""
        text = f"{function.partition('(')[0]} {{nanny.name}}{extra}"
        source.append(f"{kind} {function}: STORY.append(f'{text}')")
    (tmp_path / "my_preload.py").write_text("\n".join(source))
    agent = launch_agent()
    assert set_up(agent, str(tmp_path / "my_preload.py")) == []
    assert agent.do("teardown") == {"failed": []}
    assert agent.story() == told


def test_preload_gets_its_arguments(launch_agent: Callable[..., Agent], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_preload.py").write_text(
        "import plugins\nasync def nannyd_setup(nanny, argv):\n"
        "    nanny.env['ARGV'] = ' '.join(argv)\n    await nanny.log_event('t', argv)\n"
    )
    agent = launch_agent(environ={"PYTHONPATH": str(tmp_path / "site")})
    assert set_up(agent, "my_preload", "--x", "1") == []
    assert agent.asked == [
        ("set_env", {"plugin": "preload my_preload", "name": "ARGV", "value": "--x 1"}),
        ("log_event", {"topic": "t", "message": ["--x", "1"]}),
    ]


def test_click_commands_of_dask_preloads_parse_their_arguments(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    # What click's Command has and Dask uses of it; click itself is not among nannyd's requirements.
    (tmp_path / "my_preload.py").write_text(
        "import plugins, types\n"
        "class Command:\n"
        "    name = 'dask_setup'\n"
        "    def make_context(self, name, args):\n"
        "        return types.SimpleNamespace(args=[], params={'print_count': int(args[1])})\n"
        "    def callback(self, nanny, print_count):\n"
        "        plugins.STORY.append(f'{nanny.name} {print_count}')\n"
        "dask_setup = Command()\n"
    )
    agent = launch_agent()
    assert set_up(agent, str(tmp_path / "my_preload.py"), "--print-count", "7") == []
    assert agent.story() == ["w1 7"]


def test_arguments_that_nobody_takes_are_an_error(launch_agent: Callable[..., Agent]) -> None:
    (error,) = set_up(launch_agent(), "graphlib", "--x")
    message = "preload graphlib: has arguments ['--x'], but no nannyd_setup(nanny, argv)"
    assert (error["where"], error["message"]) == ("preload graphlib", message)


def test_preload_that_blocks_does_not_keep_plugins_from_their_setup(
    launch_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text("import threading\nthreading.Event().wait()\n")
    agent = launch_agent()
    plugins = [{"name": "p", "target": "plugins:Plain", "kwargs": {}}]
    agent.specify(preload=[str(tmp_path / "endless.py")], plugins=plugins)
    answer = agent.do("setup", again=False, timeout=4.0)
    assert [error["type"] for error in answer["failed"]] == ["TimeoutError"]
    assert answer["plugins"] == ["p"]


# --- ssl --------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """Return the port of a TLS server that says hello, with the certificate `tmp_path/cert`."""
    key, certificate = str(tmp_path / "key"), str(tmp_path / "cert")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    listening = socket.create_server(("127.0.0.1", 0))
    server = context.wrap_socket(listening, server_side=True)

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                connection.sendall(b"hello over TLS")
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with server:
        port: int = server.getsockname()[1]
        yield port
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("python", interpreters())
def test_asyncio_speaks_tls_although_ssl_is_imported_only_when_somebody_wants_it(
    launch_agent: Callable[..., Agent], python: str, tls_port: int, tmp_path: Path
) -> None:
    agent = launch_agent(python=python)
    agent.specify()
    agent.add("plugins:Async")
    assert not {"ssl", "_ssl", "asyncio.sslproto"} & set(agent.call("plugins:modules"))
    assert agent.call("plugins:https", tls_port, str(tmp_path / "cert")) == "hello over TLS"
    assert {"ssl", "_ssl", "asyncio.sslproto"} <= set(agent.call("plugins:modules"))
    assert agent.do("ping") == {}
