"""What is measured in the booted machine, as root: nannyd as a unit with a delegated cgroup, and systemd.

Writes its rows as JSON into $NANNYD_TEST_ARTIFACTS/bench.json.
"""
