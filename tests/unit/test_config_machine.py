"""What binds a worker, read from directories with the kernel's texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nannyd.config.machine import Roots, parse_cpu_list, read_machine

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"

V2_MOUNT = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = """\
40 39 0:30 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
41 40 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
42 40 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
43 40 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
44 40 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max data size             unlimited            unlimited            bytes
Max address space         {address_space}           unlimited            bytes
"""


class Host:
    """A directory that looks like /proc and /sys/fs/cgroup."""

    def __init__(self, directory: Path, cgroup: str, mountinfo: str) -> None:
        self.roots = Roots(directory / "proc", directory / "cgroup")
        self.write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", mountinfo)
        self.write("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-7\n")
        self.write("proc/self/limits", LIMITS.format(address_space="unlimited"))

    def write(self, path: str, text: str) -> None:
        file = self.roots.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def bounds(self, **where: str) -> dict[str, int]:
        machine = read_machine(roots=self.roots, **where)  # type: ignore[arg-type]
        return {bound.where: bound.limit for bound in machine.bounds}

    @property
    def cpus(self) -> float:
        return read_machine(roots=self.roots).cpus


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A unified host, this process in a delegated unit's subgroup."""
    host = Host(tmp_path, "0::/a.slice/w.service/supervisor\n", V2_MOUNT)
    for path in ("", "a.slice/", "a.slice/w.service/", "a.slice/w.service/supervisor/"):
        host.write(f"cgroup/{path}memory.max", "max\n")
    return host


def test_without_limits_the_host_is_the_only_bound(host: Host) -> None:
    assert host.bounds() == {"the host's MemTotal": 16 * GIB}
    assert host.cpus == 8


def test_every_ancestor_of_a_nested_cgroup_binds(host: Host) -> None:
    host.write("cgroup/memory.max", f"{9 * GIB}\n")
    host.write("cgroup/a.slice/memory.max", f"{8 * GIB}\n")
    host.write("cgroup/a.slice/memory.high", f"{7 * GIB}\n")
    host.write("cgroup/a.slice/w.service/memory.high", f"{6 * GIB}\n")
    host.write("cgroup/a.slice/w.service/supervisor/memory.max", f"{5 * GIB}\n")
    host.write("cgroup/b.slice/memory.max", f"{GIB}\n")
    assert host.bounds() == {
        "the host's MemTotal": 16 * GIB,
        "memory.max of /": 9 * GIB,
        "memory.max of /a.slice": 8 * GIB,
        "memory.high of /a.slice": 7 * GIB,
        "memory.high of /a.slice/w.service": 6 * GIB,
        "memory.max of /a.slice/w.service/supervisor": 5 * GIB,
    }


def test_the_smallest_cpu_quota_and_the_affinity_bind(host: Host) -> None:
    host.write("cgroup/a.slice/cpu.max", "250000 100000\n")
    host.write("cgroup/a.slice/w.service/cpu.max", "max 100000\n")
    assert host.cpus == 2.5
    host.write("proc/self/status", "Cpus_allowed_list:\t3\n")
    assert host.cpus == 1


def test_a_limit_of_the_process_binds_the_worker_alone(host: Host) -> None:
    host.write("proc/self/limits", LIMITS.format(address_space=GIB))
    (bound,) = [b for b in read_machine(roots=host.roots).bounds if b.where == "RLIMIT_AS"]
    assert (bound.limit, bound.shared) == (GIB, False)


def test_a_cgroup_that_is_not_there_yet_is_bound_by_its_ancestors(host: Host) -> None:
    host.write("cgroup/a.slice/memory.max", f"{GIB}\n")
    assert host.bounds(cgroup="/a.slice/new.service") == {
        "the host's MemTotal": 16 * GIB,
        "memory.max of /a.slice": GIB,
    }


def test_version_1_beside_an_empty_unified_hierarchy_binds(tmp_path: Path) -> None:
    host = Host(tmp_path, "4:memory:/box/one\n1:cpu:/box\n9:name=systemd:/\n0::/\n", HYBRID_MOUNTS)
    host.write("cgroup/unified/cgroup.controllers", "\n")
    host.write("cgroup/memory/memory.limit_in_bytes", UNLIMITED_V1)
    host.write("cgroup/memory/box/memory.limit_in_bytes", f"{3 * GIB}\n")
    host.write("cgroup/memory/box/one/memory.limit_in_bytes", f"{4 * GIB}\n")
    host.write("cgroup/cpu/box/cpu.cfs_quota_us", "150000\n")
    host.write("cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    host.write("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    host.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert host.bounds() == {
        "the host's MemTotal": 16 * GIB,
        "memory.limit_in_bytes of /box": 3 * GIB,
        "memory.limit_in_bytes of /box/one": 4 * GIB,
    }
    assert host.cpus == 1.5


def test_a_path_that_is_not_visible_leaves_the_mounts_root(tmp_path: Path) -> None:
    mounts = "42 40 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    host = Host(tmp_path, "4:memory:/outside/box\n", mounts)
    host.write("cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    assert host.bounds()["memory.limit_in_bytes of /"] == 2 * GIB


def test_a_container_whose_mount_shows_only_its_own_part_is_read(tmp_path: Path) -> None:
    mounts = "42 40 0:32 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    host = Host(tmp_path, "0::/docker/abc/w\n", mounts)
    host.write("cgroup/memory.max", f"{2 * GIB}\n")
    host.write("cgroup/w/memory.max", f"{1 * GIB}\n")
    assert host.bounds() == {
        "the host's MemTotal": 16 * GIB,
        "memory.max of /docker/abc": 2 * GIB,
        "memory.max of /docker/abc/w": 1 * GIB,
    }


def test_a_cgroup_above_the_namespace_is_not_guessed(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/../other\n", V2_MOUNT)
    host.write("cgroup/memory.max", f"{2 * GIB}\n")
    host.write("cgroup/other/memory.max", f"{GIB}\n")
    assert host.bounds() == {"the host's MemTotal": 16 * GIB, "memory.max of /": 2 * GIB}


def test_without_any_cgroup_the_host_remains(tmp_path: Path) -> None:
    assert Host(tmp_path, "", "").bounds() == {"the host's MemTotal": 16 * GIB}


def test_lists_of_cpus_are_counted() -> None:
    assert parse_cpu_list("0-3,8\n") == 5


def test_this_very_machine_has_memory_and_cpus() -> None:
    machine = read_machine()
    assert min(bound.limit for bound in machine.bounds) > 0
    assert machine.cpus > 0
