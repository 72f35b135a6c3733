"""The kernel's texts about where a process is."""

from __future__ import annotations

from nannyd.core.procfs import Mount, parse_cgroup, parse_mountinfo

HYBRID = """\
9:name=systemd:/user.slice
4:memory:/user.slice
1:cpu,cpuacct:/a:b
0::/user.slice/session-1.scope
"""

MOUNTS = """\
22 28 0:20 / /proc rw,nosuid - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
99 23 0:28 /a\\040b /mnt/with\\040space rw - cgroup2 cgroup2 rw
35 31 0:32 / /old rw,relatime - cgroup cgroup rw,memory
torn line
"""


def test_the_path_of_each_hierarchy_is_found_by_controller() -> None:
    assert parse_cgroup(HYBRID) == {
        "name=systemd": "/user.slice",
        "memory": "/user.slice",
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "": "/user.slice/session-1.scope",
    }


def test_mounts_are_parsed_with_their_escapes() -> None:
    mounts = parse_mountinfo(MOUNTS)
    assert [mount.kind for mount in mounts] == ["proc", "cgroup2", "cgroup2", "cgroup"]
    assert mounts[2] == Mount("/a b", "/mnt/with space", "cgroup2", frozenset({"rw"}))
    assert "memory" in mounts[3].options
