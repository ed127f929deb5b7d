"""A server is asked for the tokens of an answer, and not asked to go on when it reads another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Dialect, GenerationRequest
from worker.engines.openai.body import Ask, read_body
from worker.engines.openai.continuation import Begun
from worker.engines.openai.kinds import KINDS, UNKNOWN, Kind
from worker.engines.openai.tokenizer import begin

VLLM, SGLANG, LLAMACPP = KINDS[:3]
ALL = [VLLM, SGLANG, LLAMACPP]


class Server:
    """A server whose tokens are bytes, with a template that says who speaks."""

    def __init__(self, *, trims: bool = False, closes: bool = False, mute: Sequence[str] = ()) -> None:
        self.trims = trims
        self.closes = closes
        self.mute = mute
        self.asked: list[str] = []

    async def __call__(self, path: str, body: Mapping[str, Any]) -> object:
        self.asked.append(path)
        if path in self.mute:
            return None
        if path == "/detokenize":
            text = bytes(body["tokens"]).decode(errors="replace") if max(body["tokens"]) < 256 else None
            return {"prompt": text} if text is not None else None
        if path == "/apply-template":
            return {"prompt": self._prompt(body["messages"])}
        if "messages" in body:
            return {"tokens": [*self._prompt(body["messages"]).encode()]}
        text = body["prompt"] if "prompt" in body else body["content"]
        begins = [1] if body.get("add_special_tokens") or body.get("add_special") else []
        return {"tokens": [*begins, *text.encode()]}

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        said = "".join(f"<{one['role']}>{one['content'].strip() if self.trims else one['content']}" for one in messages)
        return said if messages[-1]["role"] == "assistant" and not self.closes else f"{said}<assistant>"


def chat(**fields: object) -> Ask:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return read_body(GenerationRequest("r", Dialect.CHAT, orjson.dumps(body)))


def complete(**fields: object) -> Ask:
    return read_body(GenerationRequest("r", Dialect.COMPLETION, orjson.dumps({"prompt": "x", **fields})))


def ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


async def begun(ask: Ask, kind: Kind, continuation: Continuation, server: Server | None = None) -> Begun:
    return await begin(ask, continuation, kind, "m", server or Server())


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
async def test_a_text_is_counted_by_the_server(kind: Kind) -> None:
    found = await begun(chat(max_tokens=9), kind, Continuation("Hello"))
    assert found == Begun("Hello", ids("Hello"), 5, limits=(("max_tokens", 4),))
    found = await begun(complete(max_tokens=9), kind, Continuation("Hello"))
    assert found == Begun("Hello", ids("Hello"), 5, prompt_ids=(1, *ids("x")), limits=(("max_tokens", 4),))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
async def test_without_a_count_nothing_is_gone_on_with(kind: Kind) -> None:
    for ask in (chat(), complete()):
        with pytest.raises(CannotContinue):
            await begun(ask, kind, Continuation("Hello"), Server(mute=["/tokenize"]))


async def test_an_unknown_server_is_asked_nothing() -> None:
    server = Server()
    with pytest.raises(CannotContinue):
        await begun(complete(), UNKNOWN, Continuation("Hello"), server)
    assert server.asked == []


async def test_a_prompt_of_token_ids_stays_as_it_is() -> None:
    found = await begun(complete(prompt=[5, 6], max_tokens=9), SGLANG, Continuation("Hel", "", ids("Hel")))
    assert (found.prompt_ids, found.token_ids, found.tells_ids) == ((5, 6), ids("Hel"), True)


async def test_tokens_say_what_was_held_back() -> None:
    found = await begun(chat(stop="lord"), VLLM, Continuation("Hel", "", ids("Hello")))
    assert (found.text, found.held, found.tokens, found.tells_ids) == ("Hello", "lo", 5, True)


@pytest.mark.parametrize("told", [ids("Hello"), ids("Other"), (999,)])
async def test_tokens_that_say_something_else_are_left_alone(told: tuple[int, ...]) -> None:
    found = await begun(chat(), VLLM, Continuation("Hel", "", told))
    assert (found.text, found.held, found.token_ids, found.tokens, found.tells_ids) == ("Hel", "", ids("Hel"), 3, False)


async def test_half_a_character_is_made_again() -> None:
    told = ids("Hel€")[:-1]
    for ask in (chat(), complete()):
        found = await begun(ask, VLLM, Continuation("Hel", "", told))
        assert (found.text, found.tokens, found.repeats) == ("Hel", 3, told[3:])


async def test_without_any_sure_text_the_answer_begins_anew() -> None:
    found = await begun(chat(max_tokens=9), VLLM, Continuation("", "", ids("€")[:1]), Server())
    assert (found.text, found.token_ids, found.tokens, found.tells_ids) == ("", (), 0, False)
    assert found.limits == (("max_tokens", 9),)


@pytest.mark.parametrize("kind", [VLLM, LLAMACPP], ids=lambda kind: kind.name)
async def test_a_template_that_changes_the_text_or_closes_the_message_is_found_out(kind: Kind) -> None:
    for text, server in (("Hello ", Server(trims=True)), ("Hello", Server(closes=True))):
        with pytest.raises(CannotContinue):
            await begun(chat(), kind, Continuation(text), server)
    assert (await begun(chat(), kind, Continuation("Hello"), Server(trims=True))).text == "Hello"


async def test_a_prompt_without_its_special_tokens_is_not_made_again() -> None:
    with pytest.raises(CannotContinue):
        await begun(complete(add_special_tokens=False), VLLM, Continuation("Hello"))
