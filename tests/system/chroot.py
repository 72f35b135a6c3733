"""A Debian 13 to build and to check the package in, whatever this machine is; built once and cached.

    python -m tests.system.chroot deb [DIRECTORY]     the package and its source, by default into dist/
    python -m tests.system.chroot run COMMAND…        something else, in a copy of this checkout

Every run works on a throw-away copy (an overlay in memory), without network, and needs root or a kernel
that lets users make namespaces.  Only building the chroot itself always needs root.  A Debian 13 that has the
build dependencies builds the package by itself, as anybody.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from . import debian

SUITE = "trixie"
CONTROL = Path("packaging/debian/control")
EXTRA_PACKAGES = (
    "autopkgtest",
    "autopkgtest",
    "lintian",
    "man-db",
    "fish",
    "zsh",
    "systemd",
)  # what the tests of the package take beside
RUN_TIMEOUT = 600.0
EX_SOFTWARE = 70

# What goes into a package built without its tests.
PACKAGED = ("nannyd/", "packaging/", "docs/", "pyproject.toml", "README.md", "LICENSE")

_ENTER = r"""
set -eu
root=$1 share=$2 place=$3
shift 3
mount -t tmpfs none "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" none "$place/root"
mount --rbind /dev "$place/root/dev"
mount -t proc proc "$place/root/proc"
mount --bind "$share" "$place/root/mnt"
mount -t tmpfs none "$place/root/tmp"
exec chroot "$place/root" "$@"
"""

# In /tmp: whoever is no root may write nowhere else.
_UNPACK = 'cd /tmp && mkdir src && tar -xf /mnt/tree.tar -C src && cd src && exec "$@"'


def chroot() -> Path:
    """Return the tree with all that building and checking takes."""
    packages = (*build_dependencies(CONTROL.read_text()), *EXTRA_PACKAGES)
    return debian.cached(f"chroot-{SUITE}", (SUITE, packages), lambda directory: _build(directory, packages))


def _build(directory: Path, packages: Sequence[str]) -> None:
    debian.say("building the chroot for the Debian package (once, about a minute)")
    debian.bootstrap(directory, SUITE, packages)
    directory.chmod(0o755)


def build_dependencies(control: str) -> list[str]:
    """Return the names of the packages in Build-Depends, without versions and profiles."""
    field = re.search(r"^Build-Depends:((?:[^\n]*\n)(?: [^\n]*\n)*)", control, re.MULTILINE)
    if field is None:
        raise debian.DebianError(f"{CONTROL} has no Build-Depends")
    return ["build-essential", *(name.split()[0] for name in field[1].split(",") if name.strip())]


def run(
    command: Sequence[str],
    *,
    share: Path,
    tree: Path | None = None,
    environ: Mapping[str, str] | None = None,
    output: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run *command* in a copy of the chroot, in a copy of the checkout; *share* is /mnt there.

    *tree* is another copy of a checkout, which `pack` made; *output* is for subprocess.
    """
    if tree is None:
        pack(share / "tree.tar", source_files())
    else:
        shutil.copy(tree, share / "tree.tar")
    inside = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        **(environ or {}),
    }
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    with tempfile.TemporaryDirectory(prefix="nannyd-chroot-") as place:
        return subprocess.run(
            [
                *(*unshare, "sh", "-c", _ENTER, "enter", str(chroot()), str(share), place),
                *("env", "-i", *(f"{name}={value}" for name, value in inside.items())),
                *("sh", "-c", _UNPACK, "unpack", *command),
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            text=True,
            timeout=RUN_TIMEOUT,
        )


# The files of the checkout


def source_files() -> list[str]:
    """Return the files that are or would be committed; one removed in the work tree is not there."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return sorted(path for path in map(os.fsdecode, listing.split(b"\0")) if path and os.path.lexists(path))


def pack(archive: Path, files: Iterable[str]) -> None:
    """Write *files* into a tar archive, as root's."""
    with tarfile.open(archive, "w") as tar:
        for path in files:
            tar.add(path, filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


# The package


def build_deb(directory: Path, *options: str, **environ: str) -> None:
    """Build the package into *directory*; *options* are those of dpkg-buildpackage."""
    with tempfile.TemporaryDirectory(prefix="nannyd-deb-") as share:
        (Path(share) / "out").mkdir()
        command = ["packaging/build-deb.sh", "/mnt/out", *options]
        result = run(command, share=Path(share), environ=environ, output=subprocess.PIPE)
        if result.returncode != 0:
            raise debian.DebianError(f"the package cannot be built:\n{result.stdout}")
        directory.mkdir(parents=True, exist_ok=True)
        for file in (Path(share) / "out").iterdir():
            shutil.copy(file, directory)


def cached_deb() -> Path:
    """Return the package of the present files, built without its tests; for the machine to boot."""
    files = [path for path in source_files() if path.startswith(PACKAGED)]
    digest = hashlib.sha256()
    for path in files:
        # git keeps the x bit, and the package what it makes of it
        digest.update(b"%s\0%d\0" % (os.fsencode(path), os.access(path, os.X_OK)))
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())

    def build(directory: Path) -> None:
        debian.say("building nannyd's Debian package")
        build_deb(directory, "-b", "-us", "-uc", DEB_BUILD_OPTIONS="nocheck", DEB_BUILD_PROFILES="nocheck")

    directory = debian.cached("deb", (chroot().name, digest.hexdigest()), build, keep=4)
    return next(directory.glob("nannyd_*.deb"))


def _can_build_here() -> bool:
    """Say whether this is a Debian 13 that has the build dependencies."""
    release = Path("/etc/os-release")
    if not release.exists() or f"VERSION_CODENAME={SUITE}\n" not in release.read_text():
        return False
    check = ["dpkg-checkbuilddeps", str(CONTROL)]
    try:
        return subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def _deb(directory: str = "dist") -> int:
    if _can_build_here():
        return subprocess.run(["packaging/build-deb.sh", directory, "-us", "-uc"], check=False).returncode
    build_deb(Path(directory), "-us", "-uc")
    for file in sorted(Path(directory).glob("nannyd_*")):
        print(file)
    return 0


def _run(*command: str) -> int:
    with tempfile.TemporaryDirectory(prefix="nannyd-share-") as share:
        return run(command, share=Path(share)).returncode


_COMMANDS: dict[str, Callable[..., int]] = {"deb": _deb, "run": _run}


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in _COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return _COMMANDS[arguments[0]](*arguments[1:])
    except debian.DebianError as error:
        print(f"tests.system: {error}", file=sys.stderr)
        return EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
