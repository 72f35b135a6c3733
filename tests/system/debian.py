"""Debian as the tests need it: trees, packages and lists of any suite, built once and cached.

Everything comes from the mirrors that this machine's apt uses, and leaves no trace in that apt.  What is
cached is never written to again.  Its directory's name carries a hash of all it is made from (the recipe), so
that a change of the recipe makes a new one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST_PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
ADMIN_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
APT_OPTIONS = ('Acquire::Check-Valid-Until "false"', 'Acquire::Retries "3"')  # a mirror may be a snapshot
BUILD_TIMEOUT = 900.0


class DebianError(Exception):
    """A tree, or a program that it takes, cannot be had."""


# The cache


def cache_directory() -> Path:
    chosen = os.environ.get("NANNYD_TEST_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nannyd-tests"


def cached(name: str, recipe: object, build: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Return the cached directory *name* of the present recipe; have it filled first if it is not there.

    Of the recipes that there were, the *keep* newest stay: two branches do not take theirs from each other.
    Nobody else builds meanwhile.
    """
    cache = cache_directory()
    directory = cache / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{name}.lock"):
        if directory.exists():
            return directory
        for abandoned in cache.glob(f"build-{name}-*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=f"build-{name}-", dir=cache) as scratch:
            unfinished = Path(scratch, "unfinished")
            unfinished.mkdir()
            build(unfinished)
            unfinished.rename(directory)
        by_age = sorted(cache.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in by_age[keep:]:
            shutil.rmtree(old)
    return directory


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Trees and packages


def bootstrap(tree: Path, suite: str, packages: Sequence[str], *options: str) -> None:
    """Make *tree* a small Debian with *packages*; *options* are mmdebstrap's own.  Takes root."""
    if os.geteuid() != 0:
        raise DebianError(f"cannot build {tree.parent}: only root can; run this as root once")
    install_host_packages()
    run(
        program("mmdebstrap"),
        *("--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"),
        *("--dpkgopt=force-unsafe-io", *(f"--aptopt={option}" for option in APT_OPTIONS)),
        *options,
        *(suite, str(tree)),
        *sources(suite),
    )


def download(packages: tuple[str, ...], suite: str, directory: Path) -> None:
    """Download Debian packages of any suite into *directory*."""
    run(*apt_get(suite, directory / "apt"), "download", *(f"{p}/{suite}" for p in packages), cwd=directory)


def apt_get(suite: str, state: Path) -> tuple[str, ...]:
    """Return an apt-get that knows *suite* only, on a machine with nothing installed; *state* is its own."""
    (state / "lists/partial").mkdir(parents=True)
    (state / "sources.list").write_text("\n".join(sources(suite)) + "\n")
    (state / "status").touch()
    options = [
        *(f"Dir::State={state}", f"Dir::State::Lists={state / 'lists'}", f"Dir::Cache={state}"),
        *(f"Dir::State::Status={state / 'status'}", f"Dir::Etc::SourceList={state / 'sources.list'}"),
        *("Dir::Etc::SourceParts=/dev/null", "Dir::Etc::Preferences=/dev/null"),
        *("Dir::Etc::PreferencesParts=/dev/null", "APT::Sandbox::User=root", "Acquire::Languages=none"),
        *(option.replace(" ", "=").replace('"', "") for option in APT_OPTIONS),
    ]
    command = ("apt-get", "-qq", *(f"--option={option}" for option in options))
    run(*command, "update")
    return command


def sources(suite: str) -> list[str]:
    """Return the lines of sources.list(5) for the suite, from the mirrors that this machine uses."""
    query = ["--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    listing = _output("apt-get", "indextargets", *query)
    repositories = dict(line.split(" ", 1) for line in listing.splitlines())
    found = [
        f"deb {uri} {wanted} main"
        for codename, uri in repositories.items()
        for wanted in [f"{suite}-security" if codename.endswith("-security") else suite]
        if not codename.endswith("-updates") and _has_suite(uri, wanted)
    ]
    if not any(line.endswith(f" {suite} main") for line in found):
        raise DebianError(
            f"cannot find Debian {suite} on any mirror of this machine {sorted(repositories.values())}; "
            "try apt-get update"
        )
    return found


def _has_suite(uri: str, suite: str) -> bool:
    """Ask apt, which knows the proxies and certificates of this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch = [
            "/usr/lib/apt/apt-helper",
            "download-file",
            f"{uri}dists/{suite}/InRelease",
            f"{scratch}/InRelease",
        ]
        return subprocess.run(fetch, check=False, capture_output=True, timeout=120).returncode == 0


# Programs of this machine


def program(name: str) -> str:
    """Return the path of a program that `install_host_packages` has made sure of."""
    path = shutil.which(name, path=ADMIN_PATH)
    if path is None:
        raise DebianError(f"cannot find {name}: install the Debian package {HOST_PROGRAMS[name]}")
    return path


def install_host_packages() -> None:
    """Install the Debian packages that building takes, if any is missing.  Booting takes none."""
    with _lock(cache_directory() / "apt.lock"):
        _install(_missing_packages())


def _install(missing: list[str]) -> None:
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise DebianError(f"cannot build a Debian tree: install these Debian packages: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing]
    if _own_apt_get(install) != 0:  # the package lists may be missing or old
        _own_apt_get(["apt-get", "update", "-qq"])
        _own_apt_get(install)
    still_missing = _missing_packages()
    if still_missing:
        raise DebianError(f"cannot install {' '.join(still_missing)}: apt-get failed, see above")


def _missing_packages() -> list[str]:
    return [package for name, package in HOST_PROGRAMS.items() if shutil.which(name, path=ADMIN_PATH) is None]


def _own_apt_get(command: list[str]) -> int:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, env=environment, timeout=600
    ).returncode


def run(*command: str, cwd: Path | None = None) -> None:
    result = subprocess.run(
        command, check=False, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=BUILD_TIMEOUT
    )
    if result.returncode != 0:
        raise DebianError(f"cannot build a Debian tree: {command[0]} ended with {result.returncode}")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def say(message: str) -> None:
    print(f"tests.system: {message}", file=sys.stderr, flush=True)
