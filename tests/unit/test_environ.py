"""Which variable wins, and what is never shown."""

from __future__ import annotations

import pytest

from nannyd.core.environ import (
    INHERITED,
    OURS,
    Entry,
    Variable,
    compose,
    is_private,
    looks_secret,
    mask_arguments,
    mask_url,
)

ENVIRON, PRE_SPAWN, ARGUMENT = Entry("environ", "e"), Entry("pre", "p"), Entry("argument", "a")


def composed(layers: str, *, bootstrap: bool) -> tuple[str | None, str | None]:
    """Return V at `execve` and as the bootstrap sets it, from the layers whose letters are in *layers*."""
    variables = compose(
        inherited={"V": "inherited"} if "i" in layers else {},
        environ={"V": ENVIRON} if "e" in layers else {},
        pre_spawn={"V": PRE_SPAWN} if "p" in layers else {},
        arguments={"V": ARGUMENT} if "a" in layers else {},
        bootstrap=bootstrap,
    )
    values = {variable.late: variable.value for variable in variables if variable.name == "V"}
    return values.get(False), values.get(True)


@pytest.mark.parametrize(
    ("layers", "command", "at_exec", "late"),
    [
        ("", None, None, None),
        ("e", "environ", None, "environ"),
        ("p", "pre", "pre", None),
        ("i", "inherited", "inherited", None),
        ("a", "argument", "argument", None),
        ("ep", "environ", "pre", "environ"),
        ("ei", "inherited", "inherited", None),
        ("pi", "inherited", "inherited", None),
        ("epi", "inherited", "inherited", None),
        ("ea", "argument", "argument", None),
        ("pa", "argument", "argument", None),
        ("ia", "argument", "argument", None),
        ("epa", "argument", "argument", None),
        ("epia", "argument", "argument", None),
    ],
)
def test_arguments_win_over_existing_environment_over_configuration(
    layers: str, command: str | None, at_exec: str | None, late: str | None
) -> None:
    assert composed(layers, bootstrap=False) == (command, None)
    assert composed(layers, bootstrap=True) == (at_exec, late)


def seed(inherited: str | None, pre_spawn: str | None, argument: str | None) -> str:
    variables = compose(
        inherited={} if inherited is None else {"PYTHONHASHSEED": inherited},
        environ={},
        pre_spawn={} if pre_spawn is None else {"PYTHONHASHSEED": Entry(pre_spawn, "p")},
        arguments={} if argument is None else {"PYTHONHASHSEED": Entry(argument, "a")},
    )
    return next(v.value for v in variables if v.name == "PYTHONHASHSEED")


@pytest.mark.parametrize(
    ("inherited", "pre_spawn", "argument", "expected"),
    [
        (None, None, None, "6640"),
        (None, "0", None, "6640"),
        (None, "7", None, "7"),
        ("0", None, None, "0"),
        ("0", "7", None, "0"),
        ("random", "0", None, "random"),
        (None, None, "0", "0"),
        ("3", "7", "0", "0"),
    ],
)
def test_the_hash_seed_is_the_nannys_unless_somebody_says_so(
    inherited: str | None, pre_spawn: str | None, argument: str | None, expected: str
) -> None:
    assert seed(inherited, pre_spawn, argument) == expected


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_hash_seed_of_0_is_none_in_environ_too(*, bootstrap: bool) -> None:
    variables = compose(
        inherited={},
        environ={"PYTHONHASHSEED": Entry("0", "e")},
        pre_spawn={},
        arguments={},
        bootstrap=bootstrap,
    )
    assert [(v.value, v.late) for v in variables if v.name == "PYTHONHASHSEED"] == [("6640", False)]


@pytest.mark.parametrize(
    "name",
    [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "FDSTORE",
        "MAINPID",
        "SYSTEMD_EXEC_PID",
        "MONITOR_UNIT",
        "NANNYD_MEMORY__LIMIT",
    ],
)
def test_what_systemd_said_to_nannyd_alone_does_not_leak(name: str) -> None:
    variables = compose(inherited={name: "x"}, environ={}, pre_spawn={}, arguments={})
    assert is_private(name)
    assert name not in {variable.name for variable in variables}


@pytest.mark.parametrize(
    "name", ["INVOCATION_ID", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "PATH"]
)
def test_what_is_of_use_to_the_worker_stays(name: str) -> None:
    variables = compose(inherited={name: "x"}, environ={}, pre_spawn={}, arguments={})
    assert Variable(name, "x", INHERITED) in variables


def test_unset_removes_an_inherited_variable_and_lets_a_configured_one_through() -> None:
    variables = compose(
        inherited={"A": "1", "B": "2"},
        environ={"B": Entry("configured", "file")},
        pre_spawn={},
        arguments={},
        unset=["A", "B"],
    )
    assert [(v.name, v.value) for v in variables if v.name in "AB"] == [("B", "configured")]


def test_each_variable_carries_its_origin() -> None:
    variables = compose(
        inherited={"I": "1"}, environ={"E": ENVIRON}, pre_spawn={"P": PRE_SPAWN}, arguments={"A": ARGUMENT}
    )
    assert {v.name: v.origin for v in variables} == {
        "A": "a", "E": "e", "I": INHERITED, "P": "p", "PYTHONHASHSEED": "default",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "PASSWORD", "DB_PASSWORD", "db-password", "PASSWORDS", "MYSQL_PWD", "PG_PASS", "SECRET",
        "API_KEY", "apikey", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "SSH_PRIVATE_KEY", "DASK_AUTH",
        "KEY", "GH_PAT", "PAT", "GPG_PASSPHRASE", "PRIVATE_KEY", "privateKey", "AWS_ACCESS_KEY_ID",
        "passphrase", "CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_CREDS", "DB_CRED", "TLS_KEY",
        "CONNECTION_STRING", "AZURE_STORAGE_CONNECTION_STRING", "connectionString", "DB_CONNSTR", "DSN",
        "FERNET_KEY", "SENTRY_DSN", "POSTGRES_DSN", "JWT", "API_BEARER", "HTTP_AUTHORIZATION",
        "SESSION_COOKIE", "DOCKER_AUTH_CONFIG", "SLACK_WEBHOOK_URL", "HF_TOKEN", "storage-account-key",
        "dbPassword",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "PWD", "OLDPWD", "KEYBOARD", "SSH_AUTH_SOCK", "PASSENGER", "CREDENTIALS_DIRECTORY",
        "HOME", "PATTERN", "COMPAT", "XAUTHORITY", "MONKEY", "TOKENIZERS_PARALLELISM", "SSH_ASKPASS",
        "POSTGRES_PASSWORD_FILE", "SSL_KEY_FILE", "SECRETS_DIR", "PASSTHROUGH", "CONNECTIONS", "AUTHOR",
        "CONNECTION_STRATEGY", "COOKIECUTTER_CONFIG", "PYTHONHASHSEED", "MALLOC_TRIM_THRESHOLD_",
        "DATABASE_URL",  # shown but for the password in it
    ],
)  # fmt: skip
def test_an_innocent_name_is_no_secret(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        (["w", "--password=x"], ["w", "--password=********"]),
        (["w", "--password", "x", "y"], ["w", "--password", "********", "y"]),
        (["w", "--token", "--verbose"], ["w", "--token", "--verbose"]),
        (["env", "DB_PASSWORD=a b\nc"], ["env", "DB_PASSWORD=********"]),
        (["w", "--port=1"], ["w", "--port=1"]),
        (["w", "redis://me:hush@host/0"], ["w", "redis://me:********@host/0"]),
        (["w", 3, {"a": 1}], ["w", 3, {"a": 1}]),
        (["w", "--password="], ["w", "--password="]),
    ],
)
def test_secrets_in_a_command_line_are_masked(arguments: list[object], masked: list[object]) -> None:
    assert mask_arguments(arguments) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("amqp://user:hush@host:5672//", "amqp://user:********@host:5672//"),
        ("redis://:hush@host", "redis://:********@host"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("me@host", "me@host"),
        (
            "postgresql+psycopg://app:p%40ss@db:5432/app?sslmode=on",
            "postgresql+psycopg://app:********@db:5432/app?sslmode=on",
        ),
        ("one http://a:b@c two http://d:e@f", "one http://a:********@c two http://d:********@f"),
    ],
)
def test_the_password_of_a_url_is_masked(text: str, masked: str) -> None:
    assert mask_url(text) == masked


def test_what_nannyd_sets_is_never_a_setting_that_it_reads() -> None:
    assert not {name for name in OURS if "__" in name}
