"""What tokens a server makes of a text. Asked only for answers that another worker began.

Nothing is taken on trust: a server that does not say, or whose template does not let the answer stand right behind the
prompt, is not asked to go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Dialect
from worker.engines import fields
from worker.engines.openai.body import Ask
from worker.engines.openai.chunks import ids_of
from worker.engines.openai.continuation import Begun, chat_changes, fits, limits_left, refuse_kind
from worker.engines.openai.kinds import Kind

Question = Callable[[str, Mapping[str, object]], Awaitable[object]]
"""Posts JSON to a path and returns the JSON of the answer, None where there is none."""

_HALF = "\N{REPLACEMENT CHARACTER}"
_MOST_PARTS = 4
"""Tokens that one character can have: no more than bytes."""


class Tokenizer:
    """That of a server with SGLang's API, which puts the tokens of the answer so far behind those of the prompt.

    Its versions that tell tokens have the field for it.
    """

    def __init__(self, ask: Question, model: str) -> None:
        self._ask = ask
        self._model = model

    async def encode(self, text: str, *, is_first: bool = False) -> tuple[int, ...]:
        """The tokens of a text; with `is_first` those before a prompt are among them. Raises CannotContinue."""
        return await self._tokens({"model": self._model, "prompt": text, "add_special_tokens": is_first})

    async def decode(self, token_ids: Sequence[int]) -> str | None:
        """The text of tokens; None where the server has no such tokens, or does not say."""
        answer = await self._ask("/detokenize", {"model": self._model, "tokens": [*token_ids]})
        found = answer if isinstance(answer, dict) else {}
        # vLLM, llama.cpp and SGLang have a word each.
        return next((said for name in ("prompt", "content", "text") if isinstance(said := found.get(name), str)), None)

    async def read(self, token_ids: Sequence[int]) -> tuple[tuple[int, ...], str | None]:
        """The text of tokens, without those at the end that are half a character; and the tokens that make it."""
        said: str | None = None
        for parts in range(min(_MOST_PARTS, len(token_ids))):
            kept = tuple(token_ids[: len(token_ids) - parts])
            said = await self.decode(kept)
            if said is None or not said.endswith(_HALF):
                return kept, said
        return (), None

    async def behind_chat(self, ask: Ask, kind: Kind, text: str) -> tuple[int, ...]:
        """The tokens of an answer behind its chat. Raises CannotContinue where it would not stand there as it is."""
        return await self.encode(text)

    async def _tokens(self, question: Mapping[str, object]) -> tuple[int, ...]:
        answer = await self._ask("/tokenize", question)
        tokens = ids_of(answer.get("tokens")) if isinstance(answer, dict) else ()
        if not tokens:
            raise CannotContinue("The upstream server does not tell the tokens of the answer so far.")
        return tokens


class VllmTokenizer(Tokenizer):
    """vLLM's, which takes chats too. Templates may trim what stands at the border, or put something in between."""

    async def behind_chat(self, ask: Ask, kind: Kind, text: str) -> tuple[int, ...]:
        question = {**ask.body, "model": self._model}
        prompt = await self._tokens(question)
        longer = await self._tokens({**question, **chat_changes(ask, kind, text)})
        answer = longer[len(prompt) :]
        if longer[: len(prompt)] != prompt or await self.decode(answer) != text:
            raise _other_prompt()
        return answer


class LlamaCppTokenizer(Tokenizer):
    """llama.cpp's. Its older versions close a message of the assistant and begin another."""

    async def encode(self, text: str, *, is_first: bool = False) -> tuple[int, ...]:
        return await self._tokens({"content": text, "add_special": is_first, "parse_special": is_first})

    async def behind_chat(self, ask: Ask, kind: Kind, text: str) -> tuple[int, ...]:
        prompt = await self._rendered(ask.body)
        if await self._rendered({**ask.body, **chat_changes(ask, kind, text)}) != prompt + text:
            raise _other_prompt()
        return await self.encode(text)

    async def _rendered(self, body: Mapping[str, object]) -> str:
        answer = await self._ask("/apply-template", body)
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(prompt, str):
            raise _other_prompt()
        return prompt


_TOKENIZERS: Mapping[str, type[Tokenizer]] = {
    "vllm": VllmTokenizer,
    "sglang": Tokenizer,
    "llamacpp": LlamaCppTokenizer,
}


async def begin(ask: Ask, continuation: Continuation, kind: Kind, model: str, question: Question) -> Begun:
    """Finds out how a server of this kind takes up an answer.

    The tokens that were told are taken where the server reads the same in them. Otherwise the text is all there is, and
    the server counts it: the client's limit is for the whole answer, and the usage too.

    Raises:
        CannotContinue: it cannot take it up, or does not say how many tokens there are.
    """
    refuse_kind(ask, kind)
    tokenizer = _TOKENIZERS[kind.name](question, model)
    told, text = continuation.token_ids, continuation.text
    kept: tuple[int, ...] = ()
    if told:
        kept, said = await tokenizer.read(told)
        if said is not None and fits(said, ask, text):
            text = said
        else:
            kept = ()
    token_ids = kept
    prompt_ids: tuple[int, ...] = ()
    if text and ask.dialect is Dialect.CHAT:
        token_ids = await tokenizer.behind_chat(ask, kind, text)
    elif text:
        (prompt,) = fields.prompts(ask.body)
        token_ids = kept or await tokenizer.encode(text)
        prompt_ids = tuple(prompt) if isinstance(prompt, list) else await _prompt_ids(tokenizer, ask, prompt)
    tokens = len(kept or token_ids)
    return Begun(
        text,
        token_ids,
        tokens,
        held=text[len(continuation.text) :],
        tells_ids=bool(kept) or not told,
        repeats=told[len(kept) :] if kept else (),
        prompt_ids=prompt_ids,
        limits=limits_left(ask, kind, tokens),
    )


async def _prompt_ids(tokenizer: Tokenizer, ask: Ask, prompt: str) -> tuple[int, ...]:
    if ask.body.get("add_special_tokens") is False:
        raise CannotContinue("The upstream server goes on only behind a prompt with its special tokens.")
    return await tokenizer.encode(prompt, is_first=True)


def _other_prompt() -> CannotContinue:
    return CannotContinue("The upstream server's template does not let the answer so far stand behind the prompt.")
