"""The engine under test. `--engines a,b` chooses those that need packages of their own, instead of the others.

A module that is about one `FEATURE` is run with the engines that offer it, one with `is_about` with those of which that
is true.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.engines import ENGINES, EngineCase, Watch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("engines")
        about = getattr(metafunc.module, "FEATURE", None)
        cases = [case for case in ENGINES if (case.name in wanted if wanted else not (case.shared or case.extra))]
        cases = [case for case in cases if (case.generates if about is None else about in case.offers)]
        if hasattr(metafunc.module, "is_about"):
            cases = [case for case in cases if metafunc.module.is_about(case)]
        metafunc.parametrize("case", cases, ids=lambda case: case.name, scope="session")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_engines() -> AsyncIterator[dict[str, Watch]]:
    """Watches over engines that serve one test after the other, by name."""
    watches: dict[str, Watch] = {}
    yield watches
    for watch in watches.values():
        await watch.close()


@pytest.fixture
async def watch(case: EngineCase, shared_engines: dict[str, Watch]) -> AsyncIterator[Watch]:
    if not case.shared:
        watch = Watch(case)
        await watch.start()
        yield watch
        await watch.close()
        return
    # One at a time: each may take a few gigabytes, and pytest runs all tests of a case in a row.
    for name in {*shared_engines} - {case.name}:
        await shared_engines.pop(name).close()
    if case.name not in shared_engines:
        first = shared_engines[case.name] = Watch(case)
        await first.start()
    first = shared_engines[case.name]
    assert first.info.context_length, "the engine did not start"
    watch = Watch(case, first.engine, first.info)
    yield watch
    await watch.leave()
