"""How gRPC's core reads sockets, which can be chosen only before it is imported.

Newer versions hand every socket event from a poller to a pool of threads. In processes whose Python runs in one thread
that buys nothing: a message sent and one received cost 30 % less CPU time where the thread that waits for gRPC's events
also reads its sockets (docs/adr/0012).
"""

from __future__ import annotations

import os


def poll_in_one_thread() -> None:
    """Asks for it, unless the environment says otherwise. For processes of ours, not for who imports a client."""
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
