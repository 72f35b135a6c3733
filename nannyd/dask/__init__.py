"""nannyd for Dask clusters: the worker and the nanny of a real scheduler.

Everything here but `nanny` runs in the user's interpreter, beside the `distributed` that is installed there.
"""
