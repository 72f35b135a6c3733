"""The test machine to boot: a disk with a small Debian 13, and a kernel; built once and cached.

Nothing here is written after it was built: a guest writes to an overlay of its own.  The name of
the directory carries a hash of everything it is made from, so a change of the recipe makes a new one.

The kernel is user-mode Linux.  Debian 12's (6.1) and Debian 13's (6.12) know too small a floating
point state, and panic before the first process on a processor with AMX ("ptrace set fp regs failed").
A newer Debian's works everywhere and is several times faster, but is linked against a C library
newer than many a host's; so it is cached together with one.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
KERNEL_SUITE = "forky"
KERNEL_PACKAGES = ("user-mode-linux", "libc6")
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
LOADER = b"/lib64/ld-linux-x86-64.so.2\0"
SIZE = "3G"  # sparse
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "dbus-user-session"),
    *("python3", "python3-systemd", "python3-psutil", "python3-sdnotify"),
    *("python3-pydantic-settings", "python3-pythonjsonlogger"),
    *("python3-pytest", "python3-pytest-timeout", "python3-hypothesis"),
    *("redis-server", "stress-ng", "gunicorn"),
    *("procps", "util-linux", "iproute2", "sudo"),
)
# stress-ng can exercise a graphics card, and pulls in all of Mesa for it.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/lib/x86_64-linux-gnu/libLLVM*",
    "/usr/lib/x86_64-linux-gnu/libgallium*",
    "/usr/lib/x86_64-linux-gnu/dri/*",
)
CUSTOMIZE = Path(__file__).with_name("customize.sh")
APT_OPTIONS = ('Acquire::Check-Valid-Until "false"',)  # a mirror may be a snapshot
BUILD_TIMEOUT = 900.0

HOST_PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
ADMIN_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class ImageError(Exception):
    """The image, or a program that it takes, cannot be had."""


@dataclass(frozen=True, slots=True)
class Image:
    """The cached parts of a machine."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def kernel(self) -> Path:
        """User-mode Linux, changed to be loaded by ./ld.so; start it where that is `loader`."""
        return self.directory / "linux"

    @property
    def loader(self) -> Path:
        return self.libraries / "ld-linux-x86-64.so.2"

    @property
    def libraries(self) -> Path:
        """What LD_LIBRARY_PATH must be for `kernel`, and for nothing else."""
        return self.directory / "lib"


def program(name: str) -> str:
    """Return the path of a program that `install_host_packages` has made sure of."""
    path = shutil.which(name, path=ADMIN_PATH)
    if path is None:
        raise ImageError(f"cannot find {name}: install the Debian package {HOST_PROGRAMS[name]}")
    return path


def install_host_packages() -> None:
    """Install the Debian packages that building takes, if any is missing.  Booting takes none."""
    missing = _missing_packages()
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ImageError(f"cannot build the image: install these Debian packages: {' '.join(missing)}")
    _say(f"installing {' '.join(missing)}")
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing]
    if _apt_get(install) != 0:  # the package lists may be missing or old
        _apt_get(["apt-get", "update", "-qq"])
        _apt_get(install)
    still_missing = _missing_packages()
    if still_missing:
        raise ImageError(f"cannot install {' '.join(still_missing)}: apt-get failed, see above")


def base_image() -> Image:
    """Return the image of the present recipe.  Build it first if it is not in the cache."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / f"{SUITE}-{_recipe_hash()}"
    with _lock(cache / "lock"):
        if not directory.exists():
            for abandoned in cache.glob("build-*"):
                shutil.rmtree(abandoned)
            _build(directory)
            for old in cache.glob(f"{SUITE}-*"):
                if old != directory:
                    shutil.rmtree(old)
    return Image(directory)


def cache_directory() -> Path:
    chosen = os.environ.get("NANNYD_TEST_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nannyd-tests"


def _build(directory: Path) -> None:
    if os.geteuid() != 0:
        raise ImageError(f"cannot build {directory}: only root can; run the system tests as root once")
    install_host_packages()
    _say(f"building {directory} (once, about a minute)")
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory.parent) as scratch:
        unfinished = Image(Path(scratch, "image"))
        unfinished.directory.mkdir()
        _build_kernel(unfinished, Path(scratch, "kernel"))
        _build_disk(unfinished, Path(scratch, "tree"))
        unfinished.directory.rename(directory)


def _build_kernel(image: Image, scratch: Path) -> None:
    _download(KERNEL_PACKAGES, KERNEL_SUITE, scratch)
    for package in scratch.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), str(scratch))
    image.libraries.mkdir()
    for library in (image.loader.name, "libc.so.6"):
        shutil.copy(scratch / LIBRARIES / library, image.libraries)
    program_text = (scratch / "usr/bin/linux.uml").read_bytes()
    image.kernel.write_bytes(program_text.replace(LOADER, b"./ld.so".ljust(len(LOADER), b"\0")))
    image.kernel.chmod(0o755)


def _build_disk(image: Image, tree: Path) -> None:
    _run(
        program("mmdebstrap"),
        *("--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        "--dpkgopt=force-unsafe-io",
        *(f"--aptopt={option}" for option in APT_OPTIONS),
        f'--customize-hook=sh {shlex.quote(str(CUSTOMIZE))} "$1"',
        "--skip=cleanup/reproducible",  # which would empty the machine-id: a first boot, every time
        *(SUITE, str(tree)),
        *_sources(SUITE),
    )
    # The disk is thrown away, never repaired: no journal.
    options = ("-q", "-t", "ext4", "-O", "^has_journal", "-m", "0")
    _run(program("mke2fs"), *options, "-d", str(tree), str(image.disk), SIZE)


def _download(packages: tuple[str, ...], suite: str, directory: Path) -> None:
    """Download Debian packages of any suite, without a trace in this machine's apt."""
    state = directory / "apt"
    (state / "lists/partial").mkdir(parents=True)
    sources = state / "sources.list"
    sources.write_text("\n".join(_sources(suite)) + "\n")
    options = [
        *(f"Dir::State::Lists={state / 'lists'}", f"Dir::Cache={state}"),
        *(f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null"),
        *("APT::Sandbox::User=root", "Acquire::Languages=none"),
        *(option.replace(" ", "=") for option in APT_OPTIONS),
    ]
    apt_get = ["apt-get", "-qq", *(f"--option={option}" for option in options)]
    _run(*apt_get, "update")
    _run(*apt_get, "download", *(f"{package}/{suite}" for package in packages), directory=directory)


def _sources(suite: str) -> list[str]:
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
        raise ImageError(
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


def _recipe_hash() -> str:
    kernel = (KERNEL_SUITE, KERNEL_PACKAGES)
    recipe = repr((kernel, SUITE, SIZE, PACKAGES, EXCLUDED, CUSTOMIZE.read_text()))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _missing_packages() -> list[str]:
    return [package for name, package in HOST_PROGRAMS.items() if shutil.which(name, path=ADMIN_PATH) is None]


def _apt_get(command: list[str]) -> int:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, env=environment, timeout=600
    ).returncode


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*command: str, directory: Path | None = None) -> None:
    result = subprocess.run(
        command,
        check=False,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        timeout=BUILD_TIMEOUT,
    )
    if result.returncode != 0:
        raise ImageError(f"cannot build the image: {command[0]} ended with {result.returncode}")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _say(message: str) -> None:
    print(f"tests.system: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(base_image().directory)
