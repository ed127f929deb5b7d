"""A server's chunks become events, in the order the contract wants, whatever kind of server it is."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from lbcore.errors import ContextLengthExceeded
from lbcore.generation import Delta, Dialect, Event, Finished, FinishReason, GenerationRequest, Started
from worker.engines.openai.answer import DONE, Answer
from worker.engines.openai.body import read_body
from worker.engines.openai.errors import BadAnswer, BadEnd
from worker.engines.openai.kinds import KINDS, UNKNOWN, Facts, Kind

LLAMACPP = next(kind for kind in KINDS if kind.name == "llamacpp")
STOP = FinishReason.STOP


def answer(kind: Kind = UNKNOWN, ours: tuple[str, ...] = (), context_length: int = 0, **fields: object) -> Answer:
    dialect = Dialect.COMPLETION if "prompt" in fields else Dialect.CHAT
    body = fields if "prompt" in fields else {"messages": [{"role": "user"}], **fields}
    ask = read_body(GenerationRequest("r", dialect, orjson.dumps(body)))
    return Answer(ask, ours, Facts(kind), context_length)


def take(asked: Answer, chunks: Sequence[object]) -> list[Event]:
    datas = [chunk if isinstance(chunk, bytes) else orjson.dumps(chunk) for chunk in chunks]
    return [event for data in datas for event in asked.take(data)]


def said(text: str = "", index: int = 0, reason: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": index, "text": text, "finish_reason": reason}], **more}


def usage(prompt: int, output: int, cached: int | None = None) -> dict[str, object]:
    details = None if cached is None else {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}


def test_a_plain_stream() -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    text = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    events = take(answer(), [role, text, last, {"choices": [], "usage": usage(9, 3, 4)}, DONE])
    assert events == [Started(0), Delta(0, "Hi"), Delta(finish_reason=STOP), Finished(9, 4, 3)]


def test_reasoning_by_either_name_and_tool_calls() -> None:
    deltas = [{"reasoning_content": "Hm"}, {"reasoning": "m"}, {"tool_calls": [{"index": 0, "id": "c"}]}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    found = [event for event in take(answer(), chunks) if isinstance(event, Delta)]
    assert [delta.reasoning for delta in found] == ["Hm", "m", ""]
    assert found[2].tool_calls[0].id == "c"


def test_without_usage_deltas_are_counted() -> None:
    events = take(answer(prompt="x"), [said("a"), said("b"), said(reason="stop"), DONE])
    assert events[-1] == Finished(0, 0, 2)


def test_usage_that_runs_along_is_taken_last() -> None:
    chunks = [said("a", usage=usage(9, 1)), said("b", reason="stop", usage=usage(9, 2)), DONE]
    assert take(answer(prompt="x"), chunks)[-1] == Finished(9, 0, 2)


def test_a_whole_prompt_is_never_cached() -> None:
    chunks = [said("b", reason="stop", usage=usage(9, 2, 9)), DONE]
    assert take(answer(prompt="x"), chunks)[-1] == Finished(9, 8, 2)


def test_a_stream_may_end_without_a_word_when_every_choice_has_ended() -> None:
    asked = answer(prompt="x", n=2)
    take(asked, [said("a", reason="stop")])
    with pytest.raises(BadAnswer) as caught:
        [*asked.end(b"")]
    assert caught.value.how is BadEnd.INTERRUPTED
    asked = answer(prompt="x", n=2)
    take(asked, [said("a", reason="stop"), said("b", 1, "length")])
    assert [*asked.end(b"")] == [Finished(0, 0, 2)]
    asked = answer(prompt="x")
    take(asked, [said("a", reason="stop")])
    assert [*asked.end(DONE)] == [Finished(0, 0, 1)]


def test_fewer_choices_than_asked_for_are_an_answer_when_the_server_says_that_it_is_done() -> None:
    assert take(answer(prompt="x", n=2), [said("a", reason="stop"), DONE])[-1] == Finished(0, 0, 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [DONE],
        [said("a"), DONE],
        [b"{"],
        [{"choices": [5]}],
        [{"choices": [{"index": 1, "text": "a"}]}],
        [{"choices": [{"index": "x", "text": "a"}]}],
        [said("a", reason="abort")],
        [{"error": {"message": "x"}}],
        [{"choices": [{"index": 0, "text": "a", "logprobs": {"content": [{}]}}]}],
    ],
)
def test_what_is_no_answer(chunks: list[object]) -> None:
    with pytest.raises(BadAnswer):
        take(answer(prompt="x", logprobs=2), chunks)


def test_what_says_nothing_is_passed_over() -> None:
    noise: list[object] = [b"null", b"5", b"[]", {}, {"object": "ping"}, {"choices": None}, {"choices": []}]
    assert take(answer(prompt="x"), noise) == []
    first, *_ = take(answer(prompt="x"), [*noise, said("a")])
    assert first == Started(0)


def test_nothing_comes_after_the_end_of_a_choice() -> None:
    events = take(answer(prompt="x"), [said("a", reason="stop"), said("b"), said("c", reason="length"), DONE, DONE])
    assert events == [Started(0), Delta(0, "a", finish_reason=STOP), Finished(0, 0, 1)]


def test_token_ids_where_they_are_told() -> None:
    choice = {"index": 0, "text": "ab", "token_ids": [5, 6]}
    silent = {"index": 0, "text": "", "token_ids": [7], "finish_reason": "length"}
    asked = answer(prompt="x")
    events = take(asked, [{"choices": [choice], "prompt_token_ids": [1, 2]}, {"choices": [silent]}, DONE])
    assert events == [
        Started(2),
        Delta(0, "ab", (5, 6)),
        Delta(0, "", (7,), finish_reason=FinishReason.LENGTH),
        Finished(2, 0, 3),
    ]
    assert asked.tokens == 3


def test_prompts_are_counted_by_their_token_ids() -> None:
    def first(index: int, *ids: int) -> dict[str, object]:
        return {"choices": [{"index": index, "text": "a", "prompt_token_ids": ids, "finish_reason": "stop"}]}

    asked = answer(prompt=["x", "y"], n=2)
    assert take(asked, [first(2, 1, 2, 3), first(0, 1), first(1, 1), first(3, 1, 2, 3), DONE])[-1] == Finished(4, 0, 4)


def progress(total: int, cache: int, index: int = 0) -> dict[str, object]:
    told = {"total": total, "cache": cache, "processed": cache, "time_ms": 1}
    return {"choices": [{"index": index, "delta": {}}], "prompt_progress": told}


def test_llama_cpp_tells_the_prompt_before_it_is_computed() -> None:
    assert take(answer(LLAMACPP), [progress(20, 5), progress(20, 5)]) == [Started(20, 5)]


def test_llama_cpp_would_not_say_that_too_much_was_asked_for() -> None:
    for limit, fits in ((30, True), (29, False)):
        asked = answer(LLAMACPP, context_length=limit, max_tokens=10)
        if fits:
            assert take(asked, [progress(20, 5)])
            continue
        with pytest.raises(BadAnswer) as caught:
            take(asked, [progress(20, 5)])
        assert isinstance(caught.value.error, ContextLengthExceeded)
        assert not asked.started
        assert {"29", "20", "10"} <= {*caught.value.error.message.replace(";", "").split()}


def test_vllm_would_answer_as_far_as_the_context_goes() -> None:
    first = {"choices": [{"index": 0, "delta": {}}], "prompt_token_ids": [1, 2, 3]}
    with pytest.raises(BadAnswer) as caught:
        take(answer(context_length=10, max_tokens=8), [first])
    assert isinstance(caught.value.error, ContextLengthExceeded)
    assert take(answer(context_length=10, max_tokens=7), [first]) == [Started(3)]


def test_llama_cpp_tells_usage_for_each_choice_and_a_prompt_counts_once() -> None:
    chunks = [
        said("a", 1),
        said("b", 0),
        said("", 1, "stop"),
        {"choices": [], "usage": usage(10, 4, 3)},
        said("c", 3, "length", usage=usage(20, 6, 5)),
        said("d", 0, "stop", usage=usage(10, 5, 9)),
        said("e", 2, "stop", usage=usage(20, 7, 5)),
        DONE,
    ]
    assert take(answer(LLAMACPP, prompt=["x", "y"], n=2), chunks)[-1] == Finished(30, 14, 22)


def timed(text: str, predicted: int, reason: str | None = None, **more: object) -> dict[str, object]:
    return said(text, 0, reason, timings={"predicted_n": predicted}, **more)


def test_a_stop_string_is_cut_by_us_and_the_rest_is_not_waited_for() -> None:
    asked = answer(LLAMACPP, ("END",), prompt="x", stop="END")
    events = take(asked, [timed("abE", 2), timed("N", 3), timed("Dxy", 4)])
    assert events == [Started(0), Delta(0, "ab"), Delta(0, "", finish_reason=STOP), Finished(0, 0, 4)]
    assert not asked.is_done


def test_a_stop_string_that_does_not_come_costs_no_text() -> None:
    asked = answer(LLAMACPP, ("END",), prompt="x", stop="END")
    events = take(asked, [timed("abE", 2), timed("", 3, "length", usage=usage(9, 3)), DONE])
    assert events == [Started(0), Delta(0, "ab"), Delta(0, "E", finish_reason=FinishReason.LENGTH), Finished(9, 0, 3)]


def test_an_answer_in_one_piece() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": usage(9, 3)}
    assert [*answer().whole(orjson.dumps(whole))] == [Started(9), Delta(0, "Hi", finish_reason=STOP), Finished(9, 0, 3)]
    for body in (b"{}", b"[]", b"{", orjson.dumps({"choices": [{"index": 0, "message": {}}]})):
        with pytest.raises(BadAnswer):
            [*answer().whole(body)]


@pytest.mark.parametrize("odd", ["2", 2.0, -1, 2**40, True, [5], {"n": 1}])
def test_a_count_that_is_none_counts_for_nothing(odd: object) -> None:
    details = {"cached_tokens": odd}
    told = {"prompt_tokens": odd, "completion_tokens": odd, "prompt_tokens_details": details}
    events = take(answer(prompt="x"), [said("a"), said(reason="stop"), {"choices": [], "usage": told}, DONE])
    assert events[-1] == Finished(0, 0, 1)


@pytest.mark.parametrize("ids", [["a"], [1.5], [-1], [2**40], "12", {"1": 2}])
def test_token_ids_that_are_none_are_not_told(ids: object) -> None:
    chunk = {"choices": [{"index": 0, "text": "a", "finish_reason": None, "token_ids": ids}]}
    assert take(answer(prompt="x"), [chunk])[-1] == Delta(0, "a")


@pytest.mark.parametrize("index", [0.0, "0", None, True])
def test_an_index_that_is_none_makes_the_chunk_unreadable(index: object) -> None:
    with pytest.raises(BadAnswer):
        take(answer(prompt="x"), [{"choices": [{"index": index, "text": "a", "finish_reason": None}]}])
