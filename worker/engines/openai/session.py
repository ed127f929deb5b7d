"""The pool of connections to all servers."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp

KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept. uvicorn, inside most Python servers, closes them after 5 s."""
CONNECT_TIMEOUT_S = 5.0


def open_session(api_key: str) -> aiohttp.ClientSession:
    """A session that sends the key with everything.

    A request made with `trace_request_ctx` finds its attribute `reused` set to true if its connection was used before.
    """

    async def reused(
        _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
    ) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    headers = {"Accept-Encoding": "identity", "User-Agent": "lb-worker"}
    if api_key:
        # Secrets that are mounted as files end in a line feed more often than not.
        headers["Authorization"] = f"Bearer {api_key.strip()}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        # Requests of many clients pass through here; what one is given must not follow the next.
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        trace_configs=[trace],
    )
