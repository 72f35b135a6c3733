"""A worker's processes as one thing: what the supervisor asks of a leaf cgroup, or of a process tree.

`cgroup.Leaf` is the strong form, held by a kernel object; `tree.Tree` the weak one, for places without a
delegated cgroup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from nannyd.core.exits import Evidence, WaitStatus


class Group(Protocol):
    """All processes of one generation: the worker and whatever it forked."""

    @property
    def path(self) -> str | None:
        """The leaf's directory below the cgroup file system, or None without a leaf."""

    def begin(self, pid: int) -> None:
        """Learn that *pid* is the worker, which leads a session of its own."""

    def pids(self) -> list[int]:
        """Return the processes that live in the group now."""

    def contains(self, pid: int) -> bool | None:
        """Say whether process *pid* belongs to the group; None: it is gone, nobody can say."""

    def contained(self, cgroup: int | None) -> bool | None:
        """Say whether the cgroup of a process that is gone belongs to the group; None: nobody can say."""

    def is_empty(self) -> bool:
        """Say whether no process is left (zombies do not count)."""

    def watch_empty(self, callback: Callable[[], None]) -> None:
        """Call *callback* (from the event loop) when the group may have become empty; at once if it is."""

    def child_reaped(self) -> None:
        """Learn that an orphan was reaped: without a leaf that is how the end of the last is noticed."""

    def signal(self, number: int) -> None:
        """Send signal *number* to every process of the group."""

    def kill(self) -> None:
        """Kill every process of the group.  May have to be repeated; `is_empty` tells."""

    def evidence(self, status: WaitStatus) -> Evidence:
        """Return what the group knows about the end of its worker."""

    def memory_peak(self) -> int | None:
        """Return the most that the group ever used, in bytes; None: unknown."""

    def close(self) -> None:
        """Give back descriptors and, for a leaf, the directory.  The group is empty."""
