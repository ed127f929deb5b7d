"""What llama.cpp streams, as it was recorded, and the events it becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from lbcore.errors import ContextLengthExceeded, EngineFailed
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, TokenLogprob, ToolCallDelta, TopLogprob
from worker.engines.llamacpp.answer import DONE, Answer
from worker.engines.llamacpp.body import Ask

CHAT = Ask("/v1/chat/completions", b"{}", "messages", ("",), 1, 20, True, None, ())
TEXT = replace(CHAT, path="/v1/completions", prompt_field="prompt")


def data(index: int | None, /, text: str | None = None, reason: str | None = None, **said: Any) -> dict[str, Any]:
    """One chunk; `index` None leaves it without choices. A chat's text is a delta's, a completion's its own."""
    choice: dict[str, Any] = {"index": index, "finish_reason": reason}
    if "delta" in said:
        choice["delta"] = said.pop("delta")
    else:
        choice["text"] = text or ""
    return {"choices": [] if index is None else [choice | said.pop("choice", {})], "object": "chunk", **said}


def progress(index: int, total: int, cached: int, processed: int) -> dict[str, Any]:
    counts = {"total": total, "cache": cached, "processed": processed, "time_ms": 0}
    return data(index, delta={"role": "assistant", "content": None}, prompt_progress=counts)


def usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}


def take(answer: Answer, *chunks: dict[str, Any] | bytes) -> list[Event]:
    raw = [chunk if isinstance(chunk, bytes) else orjson.dumps(chunk) for chunk in chunks]
    return [event for chunk in raw for event in answer.take(chunk)]


def test_a_chat_from_its_first_token_to_its_usage() -> None:
    answer = Answer(CHAT, 512)
    assert take(answer, progress(0, 9, 4, 4)) == [Started(9, 4)]
    assert (answer.prefilled, answer.computed_prompt_tokens, answer.kv_tokens) == (False, 0, 4)
    assert take(answer, progress(0, 9, 4, 9), data(0, delta={"role": "assistant", "content": None})) == []
    assert (answer.prefilled, answer.computed_prompt_tokens, answer.kv_tokens) == (True, 5, 9)
    assert take(answer, data(0, delta={"content": "日"}), data(0, delta={"content": "本"})) == [
        Delta(0, "日"),
        Delta(0, "本"),
    ]
    assert answer.kv_tokens == 11
    assert take(answer, data(0, reason="stop", delta={})) == [Delta(finish_reason=FinishReason.STOP)]
    assert take(answer, data(None, usage=usage(9, 4, 3))) == [Finished(9, 4, 3)]
    assert take(answer, DONE) == []


def test_a_completion_has_its_usage_with_its_last_chunk() -> None:
    answer = Answer(TEXT, 512)
    events = take(answer, progress(0, 2, 0, 0), data(0, "a"), data(0, reason="length", usage=usage(2, 0, 1)), DONE)
    assert events == [Started(2), Delta(0, "a"), Delta(finish_reason=FinishReason.LENGTH), Finished(2, 0, 1)]


def test_an_answer_without_progress_starts_with_its_first_delta() -> None:
    answer = Answer(TEXT, 512)
    assert take(answer, data(0, reason="length", usage=usage(0, 0, 0)), DONE)[0] == Started(0)


def test_reasoning_and_tool_calls_are_parts_of_a_delta() -> None:
    answer = Answer(CHAT, 512)
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": "{"}}
    events = take(
        answer,
        progress(0, 9, 0, 9),
        data(0, delta={"reasoning_content": "hm"}),
        data(0, delta={"content": "so", "reasoning_content": "!"}),
        data(0, delta={"tool_calls": [call]}),
        data(0, delta={"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        data(0, reason="tool_calls", delta={}),
    )
    assert events[1:] == [
        Delta(reasoning="hm"),
        Delta(text="so", reasoning="!"),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "look", "{"),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments="}"),)),
        Delta(finish_reason=FinishReason.TOOL_CALLS),
    ]


def logprobs(*tokens: tuple[str, float | None]) -> dict[str, Any]:
    top = [{"token": text, "bytes": list(text.encode()), "logprob": value} for text, value in tokens]
    return {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}


@pytest.mark.parametrize(("wanted", "named"), [(0, 0), (1, 1), (2, 2)])
def test_as_many_likely_tokens_are_named_as_were_asked_for(wanted: int, named: int) -> None:
    answer = Answer(replace(TEXT, top_logprobs=wanted), 512)
    (_, delta) = take(answer, progress(0, 2, 0, 0), data(0, "a", choice=logprobs(("a", -0.5), ("é", None))))
    top = (TopLogprob("a", -0.5, b"a"), TopLogprob("é", -9999.0, "é".encode()))
    assert delta == Delta(0, "a", logprobs=(TokenLogprob("a", -0.5, b"a", top[:named]),))


def test_log_probabilities_that_nobody_asked_for_are_left_out() -> None:
    (_, delta) = take(Answer(TEXT, 512), progress(0, 2, 0, 0), data(0, "a", choice=logprobs(("a", -0.5))))
    assert delta == Delta(0, "a")


def test_choices_share_a_prompt_and_prompts_add_up() -> None:
    answer = Answer(replace(TEXT, prompts=("x", "y"), choices_per_prompt=2), 512)
    answer.expected_prompt_tokens = 7
    assert take(answer, progress(2, 4, 1, 1), progress(0, 3, 0, 0)) == [Started(7, 1)]
    finals = [
        data(index, reason="stop", usage=usage(3 if index < 2 else 4, 0 if index < 2 else 1, 5 + index))
        for index in (1, 3, 0, 2)
    ]
    assert take(answer, *finals, DONE)[-1] == Finished(7, 1, 5 + 6 + 7 + 8)


def timed(index: int, text: str, count: int) -> dict[str, Any]:
    return data(index, text, timings={"predicted_n": count})


def test_a_stop_string_ends_the_answer_before_llama_cpp_does() -> None:
    answer = Answer(replace(TEXT, stop=("end",)), 512)
    events = take(answer, progress(0, 2, 0, 2), timed(0, "it", 1), timed(0, " e", 2), timed(0, "nd", 4))
    assert events == [
        Started(2),
        Delta(0, "it"),
        Delta(0, " "),
        Delta(0, "", finish_reason=FinishReason.STOP),
        Finished(2, 0, 4),
    ]
    assert answer.finished
    assert take(answer, timed(0, "more", 5), data(0, reason="length", usage=usage(2, 0, 20)), DONE) == []


def test_what_was_held_back_comes_with_the_end() -> None:
    answer = Answer(replace(TEXT, stop=("end",)), 512)
    events = take(answer, progress(0, 2, 0, 2), timed(0, "the e", 1), data(0, reason="length", usage=usage(2, 0, 1)))
    assert events[1:3] == [Delta(0, "the "), Delta(0, "e", finish_reason=FinishReason.LENGTH)]


def test_each_choice_of_a_chat_stops_by_itself() -> None:
    answer = Answer(replace(CHAT, stop=("end",), choices_per_prompt=2), 512)
    said: dict[str, Any] = {"timings": {"predicted_n": 3}}
    events = take(
        answer,
        progress(0, 2, 0, 2),
        data(0, delta={"content": "end"}, **said),
        data(1, delta={"content": "on"}, **said),
        data(0, delta={"content": "unheard"}, **said),
        data(0, reason="length", delta={}),
        data(None, usage=usage(2, 0, 20)),
        data(1, reason="stop", delta={}),
        data(None, usage=usage(2, 0, 7)),
    )
    assert events[1:] == [
        Delta(0, finish_reason=FinishReason.STOP),
        Delta(1, "on"),
        Delta(1, finish_reason=FinishReason.STOP),
        Finished(2, 0, 3 + 7),
    ]


@pytest.mark.parametrize(("asked", "fits"), [(12, True), (13, False)])
def test_a_prompt_that_leaves_too_little_room_is_refused_before_it_starts(asked: int, fits: bool) -> None:
    answer = Answer(replace(CHAT, max_tokens=asked), 512)
    if fits:
        assert take(answer, progress(0, 500, 0, 0)) == [Started(500)]
        return
    with pytest.raises(ContextLengthExceeded) as caught:
        take(answer, progress(0, 500, 0, 0))
    assert caught.value.param == "messages"
    assert all(number in caught.value.message for number in ("512", "500", "13"))


def test_a_limit_that_nobody_set_is_cut_to_the_room_there_is() -> None:
    assert take(Answer(replace(CHAT, explicit_limit=False), 512), progress(0, 500, 0, 0)) == [Started(500)]


def test_an_answer_that_is_done_with_open_choices_was_broken_off() -> None:
    answer = Answer(CHAT, 512)
    with pytest.raises(EngineFailed):
        take(answer, progress(0, 9, 0, 9), data(0, delta={"content": "x"}), DONE)


def test_an_error_in_the_stream_is_the_end() -> None:
    answer = Answer(CHAT, 512)
    with pytest.raises(EngineFailed, match="Compute error"):
        take(
            answer, progress(0, 9, 0, 9), {"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}
        )
