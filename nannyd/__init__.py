"""nannyd keeps one memory-hungry worker healthy under systemd.

A folder is a process: `config` is the launcher, `supervisor` the daemon, `worker` what runs inside
a Python worker.  They share `core` and never import one another.
"""

__version__ = "0.1.0"
