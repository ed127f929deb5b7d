"""A body that is sent piece by piece, so that a large one neither stands in memory twice nor holds others up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from aiohttp import hdrs, web


def in_pieces(body: Sequence[bytes], headers: Mapping[str, str]) -> web.Response:
    """A response of known length; other requests get a turn after every piece."""
    length = str(sum(map(len, body)))
    return web.Response(body=_in_turn(body), headers={**headers, hdrs.CONTENT_LENGTH: length})


async def _in_turn(body: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece
        await asyncio.sleep(0)
