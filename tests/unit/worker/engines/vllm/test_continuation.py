"""One answer from what another engine began and what vLLM puts out of the rest. Tokens here are letters' numbers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Delta, Event, Finished, FinishReason, Started
from worker.engines.vllm import continuation
from worker.engines.vllm.answer import Answer, events
from worker.engines.vllm.continuation import Continued, refuse_params, refuse_request

PROMPT = [1, 2, 3]
ANSWER = "<Because.>So says nobody."
"""What it thinks is in angle brackets."""


class Detokenizer:
    """Has what of vLLM's is used, and holds back as it does."""

    def __init__(self, params: Any) -> None:
        self.output_text = ""
        self.stop_buffer_length = max(map(len, params.stop), default=1) - 1
        self._stop = params.stop
        self._tokens = 0
        self._told = 0

    def update(self, token_ids: Sequence[int], stop_terminated: bool) -> str | None:
        for token in token_ids:
            self._tokens += 1
            self.output_text += chr(token)
            for stop in self._stop:
                if (at := self.output_text.find(stop)) >= 0:
                    self.output_text = self.output_text[:at]
                    return str(stop)
        return None

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        end = len(self.output_text) - (0 if finished else self.stop_buffer_length)
        text = self.output_text[self._told : max(end, self._told)]
        self._told += len(text)
        return text

    def num_output_tokens(self) -> int:
        return self._tokens


class ThinkingParser:
    """Takes out what stands in angle brackets. It must see the answer from its beginning, behind the very prompt."""

    def __init__(self) -> None:
        self._is_thinking = False

    def parse_delta(self, *, delta_text: str, prompt_token_ids: Sequence[int], **_: object) -> Any:
        assert prompt_token_ids == PROMPT
        content = reasoning = ""
        for letter in delta_text:
            if letter in "<>":
                self._is_thinking = letter == "<"
            elif self._is_thinking:
                reasoning += letter
            else:
                content += letter
        return SimpleNamespace(content=content, reasoning=reasoning, tool_calls=[])


@pytest.fixture(autouse=True)
def _detokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "new_detokenizer", lambda tokenizer, prompt, params: Detokenizer(params))


def params(**fields: object) -> Any:
    plain = {
        "stop": [],
        "max_tokens": 100,
        "min_tokens": 0,
        "bad_words": [],
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_detection": None,
        "structured_outputs": None,
        "thinking_token_budget": None,
    }
    return SimpleNamespace(**{**plain, **fields})


def asked(**fields: object) -> Any:
    plain = {"n": 1, "echo": False, "logprobs": None, "tool_choice": "auto", "include_reasoning": True}
    return SimpleNamespace(**{**plain, **fields})


def prompt(**fields: object) -> dict[str, object]:
    return {"type": "token", "prompt_token_ids": PROMPT, **fields}


ENGINE = SimpleNamespace(
    tokenizer=SimpleNamespace(encode=lambda text, add_special_tokens: [*map(ord, text)]),
    model_config=SimpleNamespace(get_vocab_size=lambda: 256),
)


class Rest:
    """vLLM's outputs of the rest of an answer, until it is aborted."""

    def __init__(self, text: str, reason: str | None = "stop", piece: int = 1) -> None:
        self.taken = 0
        self.is_closed = False
        self._text, self._reason, self._piece = text, reason, piece

    async def outputs(self) -> AsyncGenerator[Any, None]:
        try:
            for at in range(0, len(self._text), self._piece):
                piece = self._text[at : at + self._piece]
                self.taken += len(piece)
                is_last = self.taken == len(self._text)
                one = SimpleNamespace(
                    token_ids=[*map(ord, piece)], finish_reason=self._reason if is_last else None, logprobs=None
                )
                yield SimpleNamespace(
                    num_cached_tokens=2, outputs=[one], metrics=None, prompt_logprobs=None, prompt_token_ids=[9, 9]
                )
        finally:
            self.is_closed = True


async def numbered(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[tuple[int, Any], None]:
    async for output in outputs:
        yield 0, output


async def answer(continued: Continued, rest: Rest, parser: Any = None) -> list[Event]:
    outputs = continued.end() if continued.is_at_its_end else continued.outputs(rest.outputs())
    whole = Answer(asked(), [parser], 1, lambda *_: None, lambda: None, continued.tokens)
    return [event async for event in events(whole, numbered(outputs), [], continued.told)]


def text(found: list[Event]) -> str:
    return "".join(event.text for event in found if isinstance(event, Delta))


def begun(told: str, tokens: str, wanted: Any, *, reasoning: str = "", is_parsed: bool = False) -> Continued:
    one = Continued(Continuation(told, reasoning, tuple(map(ord, tokens))), is_parsed)
    longer = one.lengthen(ENGINE, prompt(cache_salt="x"), wanted)
    assert longer == prompt(cache_salt="x", prompt_token_ids=[*PROMPT, *map(ord, tokens or told)])
    return one


@pytest.mark.parametrize("piece", [1, 3])
@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
async def test_it_is_one_answer_wherever_it_was_cut(cut: int, piece: int) -> None:
    wanted = params(min_tokens=5)
    one = begun(ANSWER[:cut], ANSWER[:cut], wanted)
    assert (wanted.max_tokens, wanted.min_tokens) == (100 - cut, max(0, 5 - cut))
    found = await answer(one, Rest(ANSWER[cut:], piece=piece))
    assert text(found) == ANSWER[cut:]
    assert found[0] == Started(3 + cut, 2)
    assert found[-1] == Finished(3, 2, len(ANSWER))
    assert [token for event in found if isinstance(event, Delta) for token in event.token_ids] == [
        *map(ord, ANSWER[cut:])
    ]


async def test_its_text_stands_for_tokens_that_were_not_told() -> None:
    found = await answer(begun("So sa", "", params()), Rest("ys."))
    assert text(found) == "ys."
    assert found[-1] == Finished(3, 2, 8)


@pytest.mark.parametrize("cut", range(1, ANSWER.index("says") + 4))
async def test_a_stop_string_across_the_cut_ends_it_and_vllm(cut: int) -> None:
    wanted = params(stop=["says", "never in there"])
    told = ANSWER[: max(0, cut - 13)]
    one = begun(told, ANSWER[:cut], wanted)
    assert wanted.stop == []
    rest = Rest(ANSWER[cut:])
    found = await answer(one, rest)
    end = ANSWER.index("says")
    assert told + text(found) == ANSWER[:end]
    assert isinstance(found[-2], Delta)
    assert found[-2].finish_reason is FinishReason.STOP
    assert found[-1] == Finished(3, 2 if cut < end + 4 else 0, end + 4)
    assert rest.is_closed
    assert rest.taken == end + 4 - cut


async def test_what_was_begun_may_have_its_stop_string_already() -> None:
    one = begun("So ", "So says", params(stop=["says"]))
    assert one.is_at_its_end
    found = await answer(one, Rest(""))
    assert found[1:] == [Delta(0, "", (), finish_reason=FinishReason.STOP), Finished(3, 0, 7)]


async def test_with_nothing_left_of_the_limit_it_tells_what_was_held_back_and_ends() -> None:
    one = begun("So ", "So sa", params(stop=["says"], max_tokens=5))
    assert one.is_at_its_end
    found = await answer(one, Rest(""))
    assert found[1:] == [Delta(0, "sa", (), finish_reason=FinishReason.LENGTH), Finished(3, 0, 5)]


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
async def test_a_parser_goes_on_where_it_was(cut: int) -> None:
    said = ThinkingParser().parse_delta(delta_text=ANSWER[:cut], prompt_token_ids=PROMPT)
    one = begun(said.content, ANSWER[:cut], params(), reasoning=said.reasoning, is_parsed=True)
    found = await answer(one, Rest(ANSWER[cut:]), ThinkingParser())
    reasoning = "".join(event.reasoning for event in found if isinstance(event, Delta))
    assert (said.reasoning + reasoning, said.content + text(found)) == ("Because.", "So says nobody.")
    assert found[-1] == Finished(3, 2, len(ANSWER))


async def test_what_a_parser_takes_for_something_else_is_not_gone_on_with() -> None:
    one = begun("Because", "<Because", params(), is_parsed=True)
    rest = Rest(".>So")
    with pytest.raises(CannotContinue):
        await answer(one, rest, ThinkingParser())


async def test_many_tokens_are_gone_through_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "_TURN", 2)
    assert text(await answer(begun("abcde", "abcde", params()), Rest("f"))) == "f"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"echo": True},
        {"suffix": "end"},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        {"include_reasoning": False},
    ],
)
def test_requests_whose_answer_is_more_than_a_text_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CannotContinue):
        refuse_request(asked(**fields))


@pytest.mark.parametrize("fields", [{}, {"prompt": "a"}, {"prompt": ["a"]}, {"prompt": [1, 2]}, {"tool_choice": None}])
def test_others_are_not(fields: dict[str, object]) -> None:
    refuse_request(asked(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": ["x"]},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"repetition_detection": SimpleNamespace()},
        {"structured_outputs": SimpleNamespace()},
        {"thinking_token_budget": 0},
    ],
)
def test_rules_that_see_the_whole_answer_are_refused(fields: dict[str, object]) -> None:
    refuse_params(params())
    with pytest.raises(CannotContinue):
        refuse_params(params(**fields))


@pytest.mark.parametrize(
    ("given", "engine"),
    [
        ({"type": "embeds", "prompt_token_ids": PROMPT}, ENGINE),
        ({"type": "enc_dec"}, ENGINE),
        (prompt(), SimpleNamespace(tokenizer=None)),
    ],
)
def test_prompts_that_are_more_than_tokens_are_refused(given: dict[str, object], engine: Any) -> None:
    with pytest.raises(CannotContinue):
        Continued(Continuation("a"), False).lengthen(engine, given, params())
