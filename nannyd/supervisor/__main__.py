"""`python -I -m nannyd.supervisor`: what the launcher turns into."""

import sys

# asyncio imports ssl if it can, 5 MiB that the supervisor never uses: its sockets are local.
sys.modules["ssl"] = None  # type: ignore[assignment]

from nannyd.supervisor.main import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
