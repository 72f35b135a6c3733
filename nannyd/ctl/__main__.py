"""`python -m nannyd.ctl` is the command `nannyctl`."""

import sys

from nannyd.ctl.main import main

if __name__ == "__main__":
    sys.exit(main())
