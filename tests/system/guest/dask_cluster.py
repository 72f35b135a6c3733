"""A scheduler, and what a client asks it: a program of the interpreter it is run by.  Dask of either version.

Each line on its standard input is evaluated, with `client` and `distributed`; the value goes out as JSON.
"""

from __future__ import annotations

import json
import sys

import distributed


def main() -> None:
    """Serve until the end of the input; then the scheduler closes, which it tells its workers."""
    with (
        distributed.LocalCluster(
            n_workers=0, processes=True, dashboard_address=":0", host="127.0.0.1", silence_logs=False
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        print(json.dumps(cluster.scheduler_address), flush=True)
        for line in sys.stdin:
            value = eval(line, {"client": client, "distributed": distributed})
            print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
