"""`python -m nannyd.dask`: see `nannyd.dask.command`."""

import sys

from nannyd.dask.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
