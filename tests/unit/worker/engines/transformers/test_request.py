"""What a request may have, and what is told of it when."""

from __future__ import annotations

import pytest

from lbcore.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Dialect, Event, GenerationRequest, Started
from worker.engines.transformers.body import Ask, SamplingDefaults, read_body
from worker.engines.transformers.request import Request, check_tokens, room_for_answer, told


def ask(fields: bytes = b"", dialect: Dialect = Dialect.COMPLETION) -> Ask:
    prompt = b'"prompt": "x"' if dialect is Dialect.COMPLETION else b'"messages": [{"role": "user"}]'
    return read_body(GenerationRequest("r", dialect, b"{%s%s}" % (prompt, fields)), SamplingDefaults())


def request(events: list[Event]) -> Request:
    return Request("r", events.append, ask(), (0, 1), prompt_tokens=10)


def test_an_answer_has_what_was_asked_for_or_what_is_left() -> None:
    assert room_for_answer(10, ask(b', "max_tokens": 90'), 100) == 90
    assert room_for_answer(99, ask(dialect=Dialect.CHAT), 100) == 1


@pytest.mark.parametrize(
    ("prompt_tokens", "dialect", "numbers"),
    [(85, Dialect.COMPLETION, ("100", "85", "16")), (100, Dialect.CHAT, ("100", "no room"))],
)
def test_more_than_the_context_is_refused_with_the_numbers(
    prompt_tokens: int, dialect: Dialect, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        room_for_answer(prompt_tokens, ask(dialect=dialect), 100)
    assert all(number in caught.value.message for number in numbers)
    assert caught.value.param == ("prompt" if dialect is Dialect.COMPLETION else "messages")


def test_it_starts_once_and_counts_the_cache_once_for_each_prompt() -> None:
    events: list[Event] = []
    one = request(events)
    for prompt_index, cached_tokens in ((0, 3), (0, 8), (1, 2), (1, 2)):
        one.begin(prompt_index, cached_tokens)
    assert events == [Started(10, 3)]
    assert one.cached_tokens == 5


def test_nothing_is_told_after_the_end() -> None:
    events: list[Event] = []
    one = request(events)
    one.over = True
    one.begin(0, 0)
    one.gain(Delta())
    assert not events


def test_how_it_ends_with_the_engine_depends_on_whether_anything_was_told() -> None:
    one = request([])
    one.begin(0, 0)
    assert isinstance(one.closing(), WorkerUnreachable)
    one.gain(Delta())
    assert isinstance(one.closing(), StreamInterrupted)


@pytest.mark.parametrize(
    "fields", [b', "stop_token_ids": [100]', b', "allowed_token_ids": [1, 100]', b', "logit_bias": {"100": 1}']
)
def test_tokens_that_the_vocabulary_has_not_are_refused(fields: bytes) -> None:
    check_tokens(ask(fields), 101)
    with pytest.raises(InvalidRequest) as caught:
        check_tokens(ask(fields), 100)
    assert caught.value.param is not None
    assert caught.value.param in fields.decode()


def test_the_text_of_an_unknown_error_is_not_told() -> None:
    known: LoadBalancerError = InvalidRequest("so")
    assert told(known) is known
    surprise = told(ValueError("secret"))
    assert isinstance(surprise, EngineFailed)
    assert "secret" not in surprise.message
