"""`python -m nannyd` is the command `nannyd`."""

import sys

from nannyd.config.main import main

if __name__ == "__main__":
    sys.exit(main())
