"""Hosts of their own on one wire: network namespaces with a bridge between them.

Whoever uses this runs in a network namespace of its own: the network of the machine is not touched.
"""

import subprocess

from . import procs

WIRE = "wire"
HERE = "10.77.0.1"
"""Our own address on the wire."""


class Network:
    """The wire, and the hosts on it."""

    def __init__(self, hosts: int) -> None:
        """Lay it."""
        _ip("link", "set", "lo", "up")
        _ip("link", "add", WIRE, "type", "bridge")
        _ip("address", "add", f"{HERE}/24", "dev", WIRE)
        _ip("link", "set", WIRE, "up")
        self.hosts = [Host(number) for number in range(1, hosts + 1)]

    def close(self) -> None:
        """End the hosts; the wire ends with our own namespace."""
        for host in self.hosts:
            host.close()


class Host:
    """A network namespace with one address; a process holds it."""

    def __init__(self, number: int) -> None:
        """Connect it."""
        self._port = f"host{number}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        pid = self._holder.pid
        procs.until(lambda: procs.command_line(pid).startswith("sleep"), "a namespace")
        self.enter = ("nsenter", f"--net=/proc/{pid}/ns/net")
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        for command in (
            ("address", "add", f"10.77.0.{1 + number}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
        ):
            _ip(*command, within=self.enter)
        _ip("link", "set", self._port, "up")
        self.connect()

    def connect(self) -> None:
        """Plug it in."""
        _ip("link", "set", self._port, "master", WIRE)

    def cut_off(self) -> None:
        """Lose everything that is sent from and to it, and tell nobody: connections stay, and are silent."""
        _ip("link", "set", self._port, "nomaster")

    def close(self) -> None:
        """End it."""
        self._holder.kill()
        self._holder.wait()


def _ip(*words: str, within: tuple[str, ...] = ()) -> None:
    done = subprocess.run([*within, "ip", *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise procs.BenchmarkError(f"ip {' '.join(words)}: {done.stderr.strip()}")
