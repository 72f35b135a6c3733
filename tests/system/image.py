"""The disk image of the test machine: a small Debian 13, built once and cached.

The image is never written after it was built: a guest writes to an overlay of its own.  Its name
carries a hash of everything it is made from, so a change of the recipe makes a new image.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "trixie"
SIZE = "3G"  # sparse
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd"),
    *("python3", "python3-systemd", "python3-psutil", "python3-sdnotify"),
    *("python3-pydantic-settings", "python3-pythonjsonlogger"),
    *("python3-pytest", "python3-hypothesis"),
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
BUILD_TIMEOUT = 900.0

HOST_PROGRAMS = {"linux.uml": "user-mode-linux", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
ADMIN_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class ImageError(Exception):
    """The image, or a program that it takes, cannot be had."""


def program(name: str) -> str:
    """Return the path of a program that `install_host_packages` has made sure of."""
    path = shutil.which(name, path=ADMIN_PATH)
    if path is None:
        raise ImageError(f"cannot find {name}: install the Debian package {HOST_PROGRAMS[name]}")
    return path


def install_host_packages() -> None:
    """Install the Debian packages that building and booting takes, if any is missing."""
    missing = _missing_packages()
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ImageError(f"cannot run the system tests: install these Debian packages: {' '.join(missing)}")
    _say(f"installing {' '.join(missing)}")
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing]
    if _apt_get(install) != 0:  # the package lists may be missing or old
        _apt_get(["apt-get", "update", "-qq"])
        _apt_get(install)
    still_missing = _missing_packages()
    if still_missing:
        raise ImageError(f"cannot install {' '.join(still_missing)}: apt-get failed, see above")


def base_image() -> Path:
    """Return the image of the present recipe.  Build it first if it is not in the cache."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / f"{SUITE}-{_recipe_hash()}.img"
    with _lock(directory / "lock"):
        if not image.exists():
            _build(image)
            for old in directory.glob("*.img"):
                if old != image:
                    old.unlink()
    return image


def cache_directory() -> Path:
    chosen = os.environ.get("NANNYD_TEST_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nannyd-tests"


def _build(image: Path) -> None:
    if os.geteuid() != 0:
        raise ImageError(f"cannot build {image}: only root can; run the system tests as root once")
    _say(f"building {image} (once, about two minutes)")
    with tempfile.TemporaryDirectory(prefix="build-", dir=image.parent) as scratch:
        tree, unfinished = Path(scratch, "tree"), Path(scratch, "image")
        _run(
            program("mmdebstrap"),
            *("--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            "--dpkgopt=force-unsafe-io",
            '--aptopt=Acquire::Check-Valid-Until "false"',
            f'--customize-hook=sh {CUSTOMIZE} "$1"',
            *(SUITE, str(tree)),
            *_apt_sources(),
        )
        # The image is thrown away, not repaired: no journal.
        _run(program("mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(tree), str(unfinished), SIZE)
        unfinished.chmod(0o444)
        unfinished.rename(image)


def _apt_sources() -> Iterator[str]:
    """Yield the lines of sources.list(5) for the suite, from the mirrors that this machine uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    repositories = dict(line.split(" ", 1) for line in listing.splitlines())
    main = [uri for codename, uri in repositories.items() if "-" not in codename and _has_suite(uri, SUITE)]
    if not main:
        raise ImageError(f"cannot find Debian {SUITE} on any mirror of this machine: {listing!r}; try apt-get update")
    yield f"deb {main[0]} {SUITE} main"
    security = f"{SUITE}-security"
    for codename, uri in repositories.items():
        if codename.endswith("-security") and _has_suite(uri, security):
            yield f"deb {uri} {security} main"
            return


def _has_suite(uri: str, suite: str) -> bool:
    """Ask apt, which knows the proxies and certificates of this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch = ["/usr/lib/apt/apt-helper", "download-file", f"{uri}dists/{suite}/InRelease", f"{scratch}/InRelease"]
        return subprocess.run(fetch, check=False, capture_output=True, timeout=120).returncode == 0


def _recipe_hash() -> str:
    recipe = repr((SUITE, SIZE, PACKAGES, EXCLUDED, CUSTOMIZE.read_text()))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _missing_packages() -> list[str]:
    return [package for name, package in HOST_PROGRAMS.items() if shutil.which(name, path=ADMIN_PATH) is None]


def _apt_get(command: list[str]) -> int:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, env=environment, timeout=600).returncode


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    result = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=BUILD_TIMEOUT)
    if result.returncode != 0:
        raise ImageError(f"cannot build the image: {command[0]} ended with {result.returncode}")


def _say(message: str) -> None:
    print(f"tests.system: {message}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    install_host_packages()
    print(base_image())  # noqa: T201
