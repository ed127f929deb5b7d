"""What the processes of one gateway count together: it never goes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from gateway.processes import Place
from gateway.siblings import OwnPage, page_of_all


class Process:
    """One of two processes of a gateway."""

    def __init__(self, folder: Path, index: int) -> None:
        self.place = Place(index, 2, folder)
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", registry=self.registry)
        self.in_flight = Gauge("in_flight", "Under way.", registry=self.registry)
        self._page = OwnPage(self.registry, self.place)

    async def start(self) -> None:
        await self._page.start()

    async def stop(self) -> None:
        await self._page.stop()

    async def page(self) -> dict[str, float]:
        response = await page_of_all(self.registry, self.place)
        assert isinstance(response.body, bytes)
        families = text_string_to_metric_families(response.body.decode())
        return {sample.name: sample.value for family in families for sample in family.samples}


async def test_the_page_is_that_of_all_processes(tmp_path: Path) -> None:
    first, second = Process(tmp_path, 0), Process(tmp_path, 1)
    await second.start()
    first.requests.inc(3)
    second.requests.inc(4)
    assert (await first.page())["requests_total"] == 7
    await second.stop()


async def test_a_silent_process_counts_with_what_it_told_last(tmp_path: Path) -> None:
    first, second = Process(tmp_path, 0), Process(tmp_path, 1)
    await second.start()
    first.requests.inc(3)
    second.requests.inc(4)
    await first.page()
    await second.stop()
    first.requests.inc()
    assert (await first.page())["requests_total"] == 8


async def test_who_is_asked_next_knows_what_the_silent_one_said(tmp_path: Path) -> None:
    first, second = Process(tmp_path, 0), Process(tmp_path, 1)
    first.requests.inc(3)
    await first.page()
    assert (await second.page())["requests_total"] == 3


async def test_what_a_dead_process_counted_stays_counted_and_what_it_had_under_way_does_not(tmp_path: Path) -> None:
    first, second = Process(tmp_path, 0), Process(tmp_path, 1)
    for life in range(3):
        second = Process(tmp_path, 1)
        await second.start()
        second.requests.inc(4)
        second.in_flight.set(5)
        page = await first.page()
        assert (page["requests_total"], page["in_flight"]) == (4 * (life + 1), 5)
        await second.stop()
        second.place.bury()
        page = await first.page()
        assert (page["requests_total"], page["in_flight"]) == (4 * (life + 1), 0)


async def test_a_process_that_died_before_it_was_asked_has_counted_nothing(tmp_path: Path) -> None:
    first, second = Process(tmp_path, 0), Process(tmp_path, 1)
    second.place.bury()
    first.requests.inc()
    assert (await first.page())["requests_total"] == 1


async def test_both_may_be_asked_at_once(tmp_path: Path) -> None:
    processes = [Process(tmp_path, 0), Process(tmp_path, 1)]
    for process in processes:
        await process.start()
        process.requests.inc(2)
    pages = await asyncio.gather(*(process.page() for process in processes))
    assert [page["requests_total"] for page in pages] == [4, 4]
    for process in processes:
        await process.stop()
