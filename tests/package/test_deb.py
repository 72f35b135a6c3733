"""The Debian package, built in a Debian 13 and looked at from outside; its life is for the guest."""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from system import chroot, debian

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can build the chroot"),
    pytest.mark.timeout(600),  # the first test builds, on a new machine the chroot as well
]

# Everything in which two builders may differ.  The first one runs the unit tests too.
HERE = {"TMPDIR": "/tmp", "TZ": "UTC"}
THERE = {
    "TMPDIR": "/var/tmp/elsewhere",
    "TZ": "Asia/Kathmandu",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
    "PYTHONHASHSEED": "7",
    "DEB_BUILD_OPTIONS": "nocheck parallel=1",
}
BUILD = """
set -eu
umask {umask}
chmod -R {mode} .
mkdir -p "$TMPDIR"
find . -type f -exec sha256sum {{}} + | sort > /mnt/before
packaging/build-deb.sh /mnt/out -us -uc
find . -type f -exec sha256sum {{}} + | sort > /mnt/after
"""
INSTALL = "dpkg -i /mnt/out/nannyd_*.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }"


@dataclass(frozen=True, slots=True)
class Build:
    """What came of one build, and what it said."""

    directory: Path
    log: str

    @property
    def deb(self) -> Path:
        return next(self.directory.glob("out/nannyd_*_all.deb"))

    def in_chroot(self, script: str) -> str:
        """Run a shell script in a fresh chroot, in which this is /mnt; return what it writes."""
        result = chroot.run(["sh", "-eu", "-c", script], share=self.directory, output=subprocess.PIPE)
        assert result.returncode == 0, result.stdout
        return result.stdout


def build(tree: Path, directory: Path, environ: dict[str, str], umask: str, mode: str) -> Build:
    command = ["sh", "-c", BUILD.format(umask=umask, mode=mode)]
    result = chroot.run(command, share=directory, tree=tree, environ=environ, output=subprocess.PIPE)
    assert result.returncode == 0, result.stdout
    return Build(directory, result.stdout)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files of the checkout, all of one moment."""
    archive = tmp_path_factory.mktemp("tree") / "tree.tar"
    chroot.pack(archive, chroot.source_files())
    return archive


@pytest.fixture(scope="module")
def here(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tree, tmp_path_factory.mktemp("here"), HERE, "022", "go=rX")


def deb_field(deb: Path, field: str) -> str:
    command = ["dpkg-deb", "--field", str(deb), field]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def listing(deb: Path) -> dict[str, tuple[str, str]]:
    """Return mode and owner of everything in the package."""
    command = ["dpkg-deb", "--contents", str(deb)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=5) for line in lines]
    return {row[5].removeprefix("."): (row[0], row[1]) for row in rows}


# Building


def test_two_builders_make_the_same_package_and_source(here: Build, tree: Path, tmp_path: Path) -> None:
    there = build(tree, tmp_path, THERE, "077", "go=")
    for pattern in ("nannyd_*_all.deb", "nannyd_*.tar.xz", "nannyd_*.dsc"):
        first, second = (next(one.directory.glob(f"out/{pattern}")) for one in (here, there))
        assert first.name == second.name
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
        assert digests[0] == digests[1], pattern
    assert " passed" not in there.log


def test_unit_tests_run_during_the_build(here: Build) -> None:
    assert " passed" in here.log
    assert " failed" not in here.log


def test_autopkgtest_runs_the_unit_tests_with_the_installed_package(here: Build) -> None:
    """The other test of the package wants a booted system: it is run in the guest."""
    script = """
        rm /etc/apt/sources.list
        autopkgtest --test-name=unit --summary-file=/mnt/summary /mnt/out/nannyd_*.deb /mnt/out/nannyd_*.dsc \
            -- null > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
        grep "^unit " /mnt/summary
    """
    assert here.in_chroot(script).split() == ["unit", "PASS"]


def test_checkout_stays_as_it_is(here: Build) -> None:
    assert (here.directory / "before").read_text() == (here.directory / "after").read_text()


def test_versions_that_differ_are_refused(tmp_path: Path) -> None:
    script = 'sed -i "s/^version = .*/version = \\"77\\"/" pyproject.toml; packaging/build-deb.sh /mnt/out'
    result = chroot.run(["sh", "-c", script], share=tmp_path, output=subprocess.PIPE)
    assert result.returncode == 1
    assert "pyproject.toml says 77, packaging/debian/changelog 0.1.0" in result.stdout


# What is in it


def test_lintian_has_nothing_to_say(here: Build) -> None:
    assert here.in_chroot("lintian --allow-root -i -I -E --pedantic /mnt/out/nannyd_*.changes") == ""


def test_files_are_where_and_whose_they_should_be(here: Build) -> None:
    files = listing(here.deb)
    assert {owner for _, owner in files.values()} == {"root/root"}
    assert {mode for path, (mode, _) in files.items() if path.endswith("/")} == {"drwxr-xr-x"}
    executable = {path for path, (mode, _) in files.items() if mode == "-rwxr-xr-x"}
    assert executable == {"/usr/bin/nannyd", "/usr/bin/nannyctl"}
    for path in (
        *("/etc/nannyd/nannyd.toml", "/etc/default/nannyd", "/usr/lib/nannyd/nannyd.toml"),
        *("/usr/lib/systemd/system/nannyd@.service", "/usr/lib/systemd/system/system-nannyd.slice"),
        *("/usr/lib/systemd/user/nannyd@.service", "/usr/lib/systemd/catalog/nannyd.catalog"),
        *("/usr/lib/sysusers.d/nannyd.conf", "/usr/share/polkit-1/rules.d/nannyd.rules"),
        *("/usr/share/man/man8/nannyd.8.gz", "/usr/share/man/man5/nannyd.toml.5.gz"),
        *("/usr/share/man/man7/nannyd-plugins.7.gz", "/usr/share/doc/nannyd/plugins.md"),
        "/usr/share/man/man1/nannyctl.1.gz",
        *(f"/usr/share/bash-completion/completions/{name}" for name in ("nannyd", "nannyctl")),
        *(f"/usr/share/zsh/vendor-completions/_{name}" for name in ("nannyd", "nannyctl")),
        *(f"/usr/share/fish/vendor_completions.d/{name}.fish" for name in ("nannyd", "nannyctl")),
        *(f"/usr/share/doc/nannyd/examples/{name}" for name in ("dask.toml", "drop-ins/hardened.conf")),
        "/usr/lib/python3/dist-packages/nannyd/dask/__init__.py",
    ):
        assert files[path] == ("-rw-r--r--", "root/root")
    assert not [path for path in files if "/tests/" in path or "__pycache__" in path]


def test_manual_pages_are_shown_without_a_warning(here: Build) -> None:
    script = """
        dpkg-deb -x /mnt/out/nannyd_*.deb /tmp/x
        for page in /tmp/x/usr/share/man/man*/*; do man --warnings -E UTF-8 -l "$page" > /tmp/page; done
    """
    assert here.in_chroot(script) == ""


def test_fish_completes(here: Build) -> None:
    lines = ["nannyd ru", "nannyd run ", "nannyd run worker1 --memory.mode=", "nannyd run worker1 --nanny.un"]
    lines += ["nannyctl stat", "nannyctl why wor", "nannyctl logs -p warn", "nannyctl log-level worker1 not"]
    lines += ["nannyctl exec worker1 -- mkfif"]
    completions = "; ".join(f'complete -C "{line}"' for line in lines)
    said = here.in_chroot(f"{INSTALL}\ntouch /etc/nannyd/worker1.toml\nfish -c '{completions}'")
    assert "run\tsupervise one instance" in said
    assert "worker1\n" in said
    assert "--memory.mode=cgroup" in said
    assert "--nanny.unset\t" in said
    assert "status\thow an instance is, in full" in said
    assert said.count("worker1\n") == 2
    assert "warning" in said
    assert "notice" in said
    assert "mkfifo" in said


# A terminal in which somebody types TAB.
TERMINAL = r"""
zmodload zsh/zpty
zpty -be shell $1
expect() {
    text=
    repeat 100 { zpty -r -t shell more && text+=$more; [[ ${text//$'\a'} == *$1* ]] && return; sleep 0.05 }
    print -r -- "no $1 in $text"
}
zpty -w shell $2
expect beginning
for typed wanted in 'nannyd exp' explain 'nannyd run wor' worker \
    'nannyd run worker1 --memory.mo' --memory.mode= 'nannyd run worker1 --memory.mode=p' '=poll' \
    'nannyd plan worker:' worker:2 'nannyd plan worker@' worker@3 \
    'nannyctl stat' status 'nannyctl status wor' worker 'nannyctl logs --prio' --priority \
    'nannyctl logs worker1 -p warn' warning 'nannyctl log-level worker1 noti' notice \
    'nannyctl logs --priority=warn' warning 'nannyctl log-level worker@3 noti' notice \
    'nannyctl status worker:' worker:2 'nannyctl status worker@' worker@3 \
    'nannyctl exec worker1 -- mkfif' mkfifo $@[3,-1]; do
    zpty -w -n shell $'\x15'"$typed"$'\t'
    expect $wanted
done
"""
INSTANCES = "touch /etc/nannyd/worker1.toml /etc/nannyd/worker:2.toml /etc/nannyd/worker@3.toml"


@pytest.mark.parametrize(
    ("shell", "prepare", "more"),
    [
        (
            "zsh -f -i",
            'autoload -U compinit; compinit -u; print begin""ning',
            "'nannyd run worker1 -- mkfif' mkfifo",
        ),
        ("bash --norc -i", '. /tmp/nannyd; . /tmp/nannyctl; echo begin""ning', ""),
    ],
    ids=["zsh", "bash"],
)
def test_shell_completes(here: Build, shell: str, prepare: str, more: str) -> None:
    script = f"""
{INSTALL}
{INSTANCES}
cp /usr/share/bash-completion/completions/nanny* /tmp
cat > /tmp/zsh << 'END'{TERMINAL}END
timeout 60 zsh -f /tmp/zsh '{shell}' 'PS1=; stty cols 200; {prepare}' {more}
"""
    assert here.in_chroot(script) == ""


# Installing


def test_nothing_is_left_after_purging_where_no_systemd_runs(here: Build) -> None:
    script = """
        files() {
            find / -xdev -not -name __pycache__ | sort |
                grep -Ev '^/(mnt|tmp|proc|dev|var/lib/dpkg|var/log|var/cache)(/|$)'
        }
        files > /tmp/before
        INSTALL
        getent passwd _nannyd > /dev/null
        getent group nannyd > /dev/null
        nannyd check x --config-dir=/etc/nannyd -- true
        dpkg --purge nannyd > /tmp/log 2>&1
        files > /tmp/after
        diff /tmp/before /tmp/after || true
    """
    assert here.in_chroot(script.replace("INSTALL", INSTALL)) == ""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory, here: Build) -> dict[str, tuple[int, str]]:
    """Return status and output of the apt of each suite, asked to install the package on an empty machine."""
    suites = ("bookworm", "trixie", "forky")

    def ask(directory: Path) -> tuple[int, str]:
        apt_get = debian.apt_get(directory.parent.name, directory)
        command = [*apt_get, "--quiet=0", "--simulate", "--no-install-recommends", "install", str(here.deb)]
        result = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return result.returncode, result.stdout

    directories = [tmp_path_factory.mktemp(suite, numbered=False) / "apt" for suite in suites]
    with ThreadPoolExecutor() as pool:  # they wait for the mirror most of the time
        return dict(zip(suites, pool.map(ask, directories), strict=True))


@pytest.mark.parametrize("suite", ["trixie", "forky"])
def test_debian_13_and_testing_install_it(verdicts: dict[str, tuple[int, str]], suite: str) -> None:
    status, text = verdicts[suite]
    assert "Inst nannyd (" in text
    assert status == 0, text


def test_debian_12_says_what_it_lacks(verdicts: dict[str, tuple[int, str]]) -> None:
    status, text = verdicts["bookworm"]
    assert "nannyd : Depends: python3-pydantic-settings (>= 2.8) but it is not installable" in text
    assert status != 0


def test_dask_is_recommended_and_not_needed(here: Build) -> None:
    assert "python3-distributed (>= 2024.8)" in deb_field(here.deb, "Recommends").split(", ")


def test_only_packages_of_debian_are_needed(here: Build) -> None:
    depends = {entry.split()[0].partition(":")[0] for entry in deb_field(here.deb, "Depends").split(", ")}
    assert depends == {
        *("python3", "systemd", "python3-psutil", "python3-pydantic-settings"),
        *("python3-pythonjsonlogger", "python3-sdnotify", "python3-systemd"),
    }
