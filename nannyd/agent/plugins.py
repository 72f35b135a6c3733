"""Ready-made plugins: `target = "nannyd.agent.plugins:PipInstall"`."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nannyd.agent.plugin import NannyPlugin, WorkerExited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nannyd.agent.nanny import Nanny

_TAIL = 4000
"""Characters of a failed program's output that are of interest, the last ones."""


class Environ(NannyPlugin):
    """Variables for the worker's environment: `Environ(environ={"OMP_NUM_THREADS": 4})`."""

    restart = True

    def __init__(self, environ: Mapping[str, object]) -> None:
        """Values that are no text are written as Python writes them."""
        self._environ = {name: str(value) for name, value in environ.items()}

    def setup(self, nanny: Nanny) -> None:
        """Set them for the next worker; they are taken back with the plugin."""
        nanny.env.update(self._environ)


class PipInstall(NannyPlugin):
    """Packages for the worker's interpreter: `PipInstall(packages=["scikit-learn>=1.5"])`.

    What is installed already costs a second.  One installation at a time is done into one interpreter,
    however many instances want it.
    """

    _PROGRAM = (
        "import fcntl, os, runpy, sys; lock = os.open(sys.argv.pop(1), os.O_RDONLY); "
        "fcntl.flock(lock, fcntl.LOCK_EX); runpy.run_module('pip', run_name='__main__', alter_sys=True)"
    )
    """Holds the lock while pip runs, without leaving it to the programs that pip runs."""

    def __init__(
        self, packages: Sequence[str], pip_options: Sequence[str] = (), *, restart: bool = True
    ) -> None:
        """*pip_options* are those of `pip install`."""
        if isinstance(packages, str) or isinstance(pip_options, str):
            raise TypeError("packages and pip_options are lists")
        self._packages = list(packages)
        self._options = list(pip_options)
        self.restart = restart

    async def setup(self, nanny: Nanny) -> None:
        """Install; raises RuntimeError with what pip has to say."""
        site = sysconfig.get_path("purelib")
        pip = ["--no-input", "--disable-pip-version-check", "install", *self._options, *self._packages]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", self._PROGRAM, site, *pip),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:  # past the deadline; with what pip runs
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            text = output.decode(errors="replace").strip()
            raise RuntimeError(f"pip ended with status {process.returncode}: {text[-_TAIL:]}")
        await nanny.log_event("pip-install", {"packages": self._packages})


class UploadDirectory(NannyPlugin):
    """A directory of modules for the worker: `UploadDirectory(path="/srv/shop/src")`.

    It is copied into the instance's local directory, as it is now, and the copy put first on the worker's
    PYTHONPATH.  The same contents have the same place.  Copies that the running worker does not have on its
    PYTHONPATH go with the next setup; none goes with the plugin, for a worker may still import from it.
    """

    def __init__(self, path: str, *, restart: bool = True) -> None:
        """*path* is a directory; links in it are copied as links."""
        self._path = Path(path).resolve(strict=True)
        self.restart = restart

    def setup(self, nanny: Nanny) -> None:
        """Copy, and set PYTHONPATH."""
        if nanny.local_directory is None:
            raise RuntimeError("there is no local directory to copy to")
        base = Path(nanny.local_directory)
        prefix = f"upload-{hashlib.sha256(os.fsencode(self._path)).hexdigest()[:8]}-"
        temporary = Path(tempfile.mkdtemp(prefix="new-", dir=base))
        try:
            place = base / f"{prefix}{self._copy(temporary / 'copy')}"
            if not place.exists():
                (temporary / "copy").rename(place)
        finally:
            shutil.rmtree(temporary)
        for copy in base.glob(f"{prefix}*"):
            if copy != place and not _is_used(copy, nanny.pid):
                shutil.rmtree(copy)
        others = nanny.env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep)
        others = [entry for entry in others if entry and not entry.startswith(str(base / prefix))]
        nanny.env["PYTHONPATH"] = os.pathsep.join([str(place), *others])

    def _copy(self, to: Path) -> str:
        """Copy the directory and return a name for its contents."""
        shutil.copytree(self._path, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git"))
        digest = hashlib.sha256()
        for path in sorted(to.rglob("*")):
            contents = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            link = os.fsencode(path.readlink()) if path.is_symlink() else b""
            for part in (os.fsencode(path.relative_to(to)), link, contents):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()[:16]


def _is_used(directory: Path, pid: int | None) -> bool:
    """Say whether *pid* was started with *directory* on its PYTHONPATH, or does not let us see."""
    if pid is None:
        return False
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return any(
        os.fsencode(directory) in entry.removeprefix(b"PYTHONPATH=").split(b":")
        for entry in entries
        if entry.startswith(b"PYTHONPATH=")
    )


class OnExit(NannyPlugin):
    """Tells somebody of each end of a worker: `OnExit(command=["mail-me"])` or `OnExit(url="https://…")`.

    A command finds NANNYD_INSTANCE, WORKER_PID, RESULT, WHO, EXIT_STATUS and EXIT_SIGNAL (empty where there
    is none) in its environment; on its standard input, as a URL in a POST, comes a JSON object with
    `instance` and all fields of `WorkerExited`.
    """

    def __init__(
        self, command: Sequence[str] | None = None, url: str | None = None, timeout: float = 10.0
    ) -> None:
        """After *timeout* seconds the command is killed, the request given up."""
        if (command is None) == (url is None):
            raise ValueError("OnExit takes a command or a url")
        if isinstance(command, str):
            raise TypeError("command is a list: the program and its arguments")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no URL of http or https")
        self._command = command
        self._url = url
        self._timeout = timeout
        self._instance = ""

    def setup(self, nanny: Nanny) -> None:
        """Remember the instance's name."""
        self._instance = nanny.name

    def worker_exited(self, info: WorkerExited) -> None:
        """Tell it."""
        document = {"instance": self._instance, **dataclasses.asdict(info)}
        body = json.dumps(document).encode()
        if self._command is not None:
            self._run(self._command, info, body)
        elif self._url is not None:
            self._post(self._url, body)

    def _run(self, command: Sequence[str], info: WorkerExited, body: bytes) -> None:
        said = {
            "NANNYD_INSTANCE": self._instance,
            "WORKER_PID": info.pid,
            "RESULT": info.result,
            "WHO": info.who,
            "EXIT_STATUS": info.status,
            "EXIT_SIGNAL": info.signal,
        }
        environ = {name: "" if value is None else str(value) for name, value in said.items()}
        subprocess.run(command, env={**os.environ, **environ}, input=body, timeout=self._timeout, check=True)

    def _post(self, url: str, body: bytes) -> None:
        from urllib.request import Request, urlopen

        request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (seen to in __init__)
        with urlopen(request, timeout=self._timeout) as response:  # noqa: S310
            response.read()
