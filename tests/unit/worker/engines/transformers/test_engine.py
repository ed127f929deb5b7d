"""An engine whose packages are not there, or that was never started."""

from __future__ import annotations

import sys

import pytest

from lbcore.clock import MonotonicClock
from lbcore.errors import ConfigError, WorkerUnreachable
from lbcore.generation import Dialect, Event, Failed, GenerationRequest
from tests.fakes import settle
from worker.engine import EngineLoad
from worker.engines.transformers.engine import PACKAGES, TransformersEngine, TransformersOptions


def engine(options: TransformersOptions | None = None) -> TransformersEngine:
    return TransformersEngine("nowhere", options or TransformersOptions(), MonotonicClock())


@pytest.mark.parametrize("missing", PACKAGES)
async def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in ("model", "runner", "sampling", "trial"):
        monkeypatch.delitem(sys.modules, f"worker.engines.transformers.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError) as caught:
        await engine().start()
    assert caught.value.message == (
        "--engine: transformers needs the packages torch and transformers: pip install 'lbcore[transformers]'"
    )


async def test_a_batch_has_a_token_for_each_sequence() -> None:
    with pytest.raises(ConfigError, match="--transformers-max-batch-tokens: 8 is less than"):
        await engine(TransformersOptions(max_batch_tokens=8, max_num_seqs=9)).start()


async def test_one_that_was_never_started_refuses_and_closes() -> None:
    idle = engine()
    events: list[Event] = []
    idle.submit(GenerationRequest("r", Dialect.COMPLETION, b'{"prompt": "x"}'), events.append)
    assert not events
    await settle(2)
    (event,) = events
    assert isinstance(event, Failed)
    assert isinstance(event.error, WorkerUnreachable)
    idle.abort("r")
    assert idle.load() == EngineLoad()
    await idle.close()
    await idle.close()
