"""One metrics page of all processes of a gateway, whichever is asked, that never goes back.

Each process tells its own page on a socket in their folder, and keeps there what it told last: a sibling that is silent
counts with that, and one that has died with what it had counted.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from gateway.merge import merge
from gateway.processes import Place, read

_TIMEOUT_S = 2.0


class OwnPage:
    """Tells the metrics of this process to its siblings."""

    def __init__(self, registry: CollectorRegistry, place: Place) -> None:
        self._registry = registry
        self._place = place
        self._runner = web.ServerRunner(web.Server(self._answer))

    async def start(self) -> None:
        """Listens, in place of a process that was here before."""
        await self._runner.setup()
        await web.UnixSite(self._runner, self._place.own_socket).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=_own_page(self._registry, self._place))


async def page_of_all(registry: CollectorRegistry, place: Place) -> web.Response:
    """The metrics of this process, of its siblings and of those that have died, as one page."""
    siblings = [index for index in range(place.count) if index != place.index]
    told = await asyncio.gather(*(_told(place.socket_of(index)) for index in siblings))
    with place.locked():
        # In one go, or one that is being buried would count twice, or not at all.
        pages = [
            read(place.page_of(index)) if page is None else page for index, page in zip(siblings, told, strict=True)
        ]
        past = read(place.past_page)
    merged = merge([_own_page(registry, place), *pages], past)
    return web.Response(body=merged, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _own_page(registry: CollectorRegistry, place: Place) -> str:
    page = generate_latest(registry).decode()
    # Before it is told: nobody has heard of more than is kept.
    place.keep(place.page_of(place.index), page)
    return page


async def _told(path: Path) -> str | None:
    timeout = ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            ClientSession(connector=UnixConnector(str(path)), timeout=timeout) as http,
            http.get("http://sibling/metrics") as response,
        ):
            return await response.text()
    except (ClientError, TimeoutError):
        return None
