"""`python -I -m nannyd.supervisor`: what the launcher turns into."""

import sys
import types

# asyncio imports ssl if it can, and what speaks it: 5 MiB that the supervisor never uses, for its sockets
# are local.
sys.modules["ssl"] = None  # type: ignore[assignment]
sys.modules["asyncio.sslproto"] = types.ModuleType("asyncio.sslproto")
# pathlib imports urllib.parse, and that ipaddress, to judge the hosts of URLs: there are none here.
sys.modules["ipaddress"] = types.ModuleType("ipaddress")

from nannyd.supervisor.main import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
