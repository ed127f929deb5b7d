"""Answers that are gone on with, by vLLM's own detokenizer and parsers. Needs vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from lbcore.generation import Continuation, Delta, Finished
from worker import demo
from worker.engines.vllm.answer import Answer, events
from worker.engines.vllm.continuation import Continued

pytestmark = pytest.mark.filterwarnings("default")

THOUGHT = "Here is my thought process: two and two, naïve\nHere is my response: четыре 🙂 日本, four"
PLAIN = "A naïve café: 日本 🙂🙂 Привет, and no more."
CALLING = 'Wait <b> a bit. <tool_call>\n{"name": "look", "arguments": {"where": "up"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from vllm.tokenizers import get_tokenizer

    return get_tokenizer(str(demo.HF_PATH))


def parser(tokenizer: Any, asked: Any, reasoning: str | None = None, tools: str | None = None) -> Any:
    from vllm.parser.parser_manager import ParserManager

    cls = ParserManager.get_parser(
        tool_parser_name=tools, reasoning_parser_name=reasoning, enable_auto_tools=tools is not None
    )
    return cls(tokenizer, asked.tools)


def chat(**fields: object) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **fields)


async def outputs(token_ids: list[int]) -> AsyncGenerator[Any, None]:
    for number, token in enumerate(token_ids, 1):
        reason = "length" if number == len(token_ids) else None
        one = SimpleNamespace(token_ids=[token], finish_reason=reason, logprobs=None)
        yield SimpleNamespace(num_cached_tokens=0, outputs=[one], metrics=None, prompt_logprobs=None)


async def numbered(given: AsyncGenerator[Any, None]) -> AsyncGenerator[tuple[int, Any], None]:
    async for output in given:
        yield 0, output


async def told(
    tokenizer: Any, asked: Any, one_parser: Any, begun: Continuation, rest: list[int]
) -> tuple[list[Delta], Finished]:
    prompt = tokenizer.encode("Sum?", add_special_tokens=False)
    engine = SimpleNamespace(tokenizer=tokenizer, model_config=SimpleNamespace(get_vocab_size=lambda: len(tokenizer)))
    one = Continued(begun, is_parsed=one_parser is not None)
    params = asked.to_sampling_params(900, {})
    longer = one.lengthen(engine, {"type": "token", "prompt_token_ids": prompt}, params)
    assert longer["prompt_token_ids"] == [*prompt, *begun.token_ids]
    assert (params.max_tokens, params.stop) == (900 - len(begun.token_ids), [])
    whole = Answer(asked, [one_parser], 1, lambda *_: None, lambda: None, one.tokens)
    given = [event async for event in events(whole, numbered(one.outputs(outputs(rest))), [], one.told)]
    end = given[-1]
    assert isinstance(end, Finished)
    assert end.prompt_tokens == len(prompt)
    return [event for event in given if isinstance(event, Delta)], end


def said(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str]]]:
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls]
    return "".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas), calls


@pytest.mark.parametrize(
    ("text", "fields", "parsers"),
    [
        (PLAIN, {}, {}),
        (PLAIN, {"stop": ["Привет", "日本 ."], "min_tokens": 3}, {}),
        (PLAIN, {"stop": ["Привет"], "include_stop_str_in_output": True}, {}),
        (PLAIN, {}, {"tools": "hermes"}),
        (THOUGHT, {}, {"reasoning": "granite"}),
        (THOUGHT, {"stop": ["but never"]}, {"reasoning": "granite"}),
        (CALLING, {"tools": [{"type": "function", "function": {"name": "look"}}]}, {"tools": "hermes"}),
    ],
)
async def test_it_is_one_answer_wherever_it_was_cut(
    tokenizer: Any, text: str, fields: dict[str, object], parsers: dict[str, str]
) -> None:
    asked = chat(**fields)
    token_ids = tokenizer.encode(text, add_special_tokens=False)

    def new_parser() -> Any:
        return parser(tokenizer, asked, **parsers) if parsers else None

    whole, end = await told(tokenizer, asked, new_parser(), Continuation(), token_ids)
    content, reasoning, calls = said(whole)
    assert content or reasoning
    cuts = 0
    for cut in range(1, len(whole)):
        begun_text, begun_reasoning, begun_calls = said(whole[:cut])
        if begun_calls:
            break
        begun = Continuation(begun_text, begun_reasoning, tuple(token_ids[:cut]))
        rest, rest_end = await told(tokenizer, asked, new_parser(), begun, token_ids[cut:])
        more, more_reasoning, more_calls = said(rest)
        assert (begun_text + more, begun_reasoning + more_reasoning, more_calls) == (content, reasoning, calls)
        assert rest_end == end
        assert [token for delta in rest for token in delta.token_ids] == [
            token for delta in whole[cut:] for token in delta.token_ids
        ]
        cuts += 1
    assert cuts > 5
