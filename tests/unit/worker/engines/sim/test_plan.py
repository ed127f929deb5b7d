"""What a request makes the simulated engine compute."""

from __future__ import annotations

import orjson
import pytest

from lbcore.errors import ContextLengthExceeded
from lbcore.generation import Delta, Dialect, Embedding, GenerationRequest
from worker.engines.sim.plan import PlannedPrompt, Planner

PLANNER = Planner(context_length=100, seed=0, stamp=False, embedding_size=8)


def plan(dialect: Dialect, **body: object) -> list[PlannedPrompt]:
    return PLANNER.plan(GenerationRequest("r", dialect, orjson.dumps(body)))


def test_choices_are_sequences_with_a_delta_for_each_token() -> None:
    planned = plan(Dialect.COMPLETION, prompt=["one", "two"], n=2, max_tokens=3)
    assert [[tokens for tokens, _ in one.answers] for one in planned] == [[3, 3], [3, 3]]
    events = [event for one in planned for _, output in one.answers for event in output]
    assert [event.choice for event in events if isinstance(event, Delta)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert all(one.is_cached for one in planned)


def test_inputs_are_sequences_without_output_and_with_one_vector_each() -> None:
    planned = plan(Dialect.EMBEDDING, input=["one", "two"], dimensions=4)
    assert [[tokens for tokens, _ in one.answers] for one in planned] == [[0], [0]]
    events = [event for one in planned for _, output in one.answers for event in output]
    assert [(event.index, len(event.vector)) for event in events if isinstance(event, Embedding)] == [(0, 4), (1, 4)]
    assert not any(one.is_cached for one in planned)


def test_an_input_may_fill_the_context() -> None:
    assert plan(Dialect.EMBEDDING, input="x" * 400)
    with pytest.raises(ContextLengthExceeded):
        plan(Dialect.EMBEDDING, input="x" * 404)


def test_a_prompt_leaves_room_for_an_answer() -> None:
    assert plan(Dialect.COMPLETION, prompt="x" * 396)
    with pytest.raises(ContextLengthExceeded):
        plan(Dialect.COMPLETION, prompt="x" * 400)
