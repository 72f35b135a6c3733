# Runs in the guest, from the root of the tree.
exec python3 -m benchmarks.guest
