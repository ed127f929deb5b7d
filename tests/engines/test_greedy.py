"""One model behind every engine: at temperature 0 they say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.clock import MonotonicClock
from tests.contract.engines import VLLM_ON_CPU, EngineCase, Feature, Watch
from tests.contract.upstreams import VllmHttpServer, WithUpstream
from worker import demo
from worker.engine import Engine
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.transformers.engine import TransformersEngine, TransformersOptions
from worker.engines.vllm.engine import VllmEngine, VllmOptions

ENGINES: dict[str, Callable[[], Engine]] = {
    "llamacpp": lambda: LlamaCppEngine(demo.GGUF_PATH, LlamaCppOptions(), MonotonicClock()),
    "vllm": lambda: VllmEngine(str(demo.HF_PATH), ("m",), VllmOptions(args=VLLM_ON_CPU), MonotonicClock()),
    # The same vLLM through its own HTTP server.
    "openai": lambda: WithUpstream(VllmHttpServer(VLLM_ON_CPU)),
    "transformers": lambda: TransformersEngine(str(demo.HF_PATH), TransformersOptions(), MonotonicClock()),
}


async def answers_of(name: str, questions: list[str]) -> list[str]:
    watch = Watch(EngineCase(name, ENGINES[name], frozenset(Feature), tells_token_ids=name != "llamacpp"))
    await watch.start()
    try:
        asked = [watch.chat(question) for question in questions]
        return [(await answer.end()).text() for answer in asked]
    finally:
        await watch.engine.close()


@pytest.mark.parametrize("name", ENGINES)
async def test_every_question_has_its_one_answer(name: str) -> None:
    faq = demo.load_faq()
    told = await answers_of(name, [entry.question for entry in faq])
    assert told == [entry.answer for entry in faq]
