"""The test machines to boot: a disk with a small Debian, and a kernel; built once and cached.

Nothing here is written after it was built: a guest writes to an overlay of its own.

The kernel is user-mode Linux.  Debian 12's (6.1) and Debian 13's (6.12) know too small a floating
point state, and panic before the first process on a processor with AMX ("ptrace set fp regs failed").
A newer Debian's works everywhere and is several times faster, but is linked against a C library
newer than many a host's; so it is cached together with one.
"""

import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import debian

KERNEL_SUITE = "forky"
KERNEL_PACKAGES = ("user-mode-linux", "libc6")
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
LOADER = b"/lib64/ld-linux-x86-64.so.2\0"
SIZE = "3G"  # sparse
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "dbus-user-session", "polkitd"),
    *("python3", "python3-systemd", "python3-psutil", "python3-sdnotify"),
    *("python3-pytest", "python3-pytest-timeout", "redis-server"),
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


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one machine has that the others do not."""

    packages: tuple[str, ...]
    wheels: tuple[str, ...] = ()
    """What pip is to install there, for Python 3.11: the machine has no network, but finds this in WHEELS."""
    venv: tuple[str, ...] = ()
    """What VENV, an environment apart from Debian's Python 3.13, has of pip."""


DEFAULT = "trixie"
WHEELS = Path("opt/wheels")
VENV = Path("opt/dask")
SUITES = {
    DEFAULT: Recipe(
        (
            *("python3-pydantic-settings", "python3-pythonjsonlogger", "python3-hypothesis"),
            *("python3-distributed", "stress-ng", "gunicorn", "autopkgtest"),
        ),
        # Debian has that of 2024; this is the newest, or what the host's own tests take.
        venv=(f"distributed=={metadata.version('distributed')}",),
    ),
    "bookworm": Recipe(
        ("python3-venv", "python3-hatchling"), ("pydantic-settings>=2.8", "python-json-logger>=3.0")
    ),
}


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


def base_image(suite: str = DEFAULT) -> Image:
    """Return the image of the present recipe.  Build it first if it is not in the cache."""
    kernel = (KERNEL_SUITE, KERNEL_PACKAGES)
    recipe = (kernel, suite, SIZE, PACKAGES, SUITES[suite], EXCLUDED, CUSTOMIZE.read_text())
    return Image(debian.cached(suite, recipe, lambda directory: _build(directory, suite)))


def _build(directory: Path, suite: str) -> None:
    debian.say(f"building the machine to boot, Debian {suite} (once, about a minute)")
    scratch = directory / "scratch"
    _build_disk(Image(directory), suite, scratch / "tree")
    _build_kernel(Image(directory), scratch / "kernel")
    shutil.rmtree(scratch)


def _build_kernel(image: Image, scratch: Path) -> None:
    scratch.mkdir(parents=True)
    debian.download(KERNEL_PACKAGES, KERNEL_SUITE, scratch)
    for package in scratch.glob("*.deb"):
        debian.run("dpkg-deb", "--extract", str(package), str(scratch))
    image.libraries.mkdir()
    for library in (image.loader.name, "libc.so.6"):
        shutil.copy(scratch / LIBRARIES / library, image.libraries)
    program_text = (scratch / "usr/bin/linux.uml").read_bytes()
    image.kernel.write_bytes(program_text.replace(LOADER, b"./ld.so".ljust(len(LOADER), b"\0")))
    image.kernel.chmod(0o755)


def _build_disk(image: Image, suite: str, tree: Path) -> None:
    tree.parent.mkdir(parents=True)
    debian.bootstrap(
        tree,
        suite,
        (*PACKAGES, *SUITES[suite].packages),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        f'--customize-hook=sh {shlex.quote(str(CUSTOMIZE))} "$1"',
        "--skip=cleanup/reproducible",  # which would empty the machine-id: a first boot, every time
    )
    recipe = SUITES[suite]
    if recipe.wheels:
        _pip("download", "3.11", f"--dest={tree / WHEELS}", *recipe.wheels)
    if recipe.venv:
        there = ("chroot", str(tree))
        debian.run(*there, "python3", "-m", "venv", "--without-pip", f"/{VENV}")
        (packages,) = (tree / VENV).glob("lib/python3.*/site-packages")
        version = packages.parent.name.removeprefix("python")
        _pip("install", version, "--no-compile", f"--target={packages}", *recipe.venv)
        # Compiled now: who runs it there may not write it.
        debian.run(*there, f"/{VENV}/bin/python", "-m", "compileall", "-q", f"/{VENV}")
    # The disk is thrown away, never repaired: no journal.
    options = ("-q", "-t", "ext4", "-O", "^has_journal", "-m", "0")
    debian.run(debian.program("mke2fs"), *options, "-d", str(tree), str(image.disk), SIZE)


def _pip(command: str, python: str, *arguments: str) -> None:
    """Let this machine's pip get something for a Python of the other."""
    only = ("--only-binary=:all:", f"--python-version={python}", "--platform=manylinux2014_x86_64")
    quietly = ("--quiet", "--disable-pip-version-check")
    debian.run(sys.executable, "-m", "pip", command, *quietly, *only, *arguments)


if __name__ == "__main__":
    for suite in SUITES:
        print(base_image(suite).directory)
