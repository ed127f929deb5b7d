"""Reads an OpenAI body for the simulated engine: the prompt as tokens and blocks, and what is asked of it. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import orjson
import xxhash

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines import fields

BYTES_PER_TOKEN = 4
"""Of UTF-8 text: the rule of thumb for English and a vocabulary of 100,000."""
_BYTES_PER_TOKEN_ID = 8

MAX_CHOICES = 128

ENGINE = "simulated"
_LIMITS = {Dialect.CHAT: ("max_completion_tokens", "max_tokens"), Dialect.COMPLETION: ("max_tokens",)}

_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
"""Checked, and without effect."""
_UNSUPPORTED = (
    "audio",
    "echo",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "logit_bias",
    "min_tokens",
    "stop_token_ids",
    "structured_outputs",
    "suffix",
)
"""Refused by name unless null, false or empty: an answer that ignored them would be wrong."""
_CHECKED = frozenset((*_UNSUPPORTED, *_NUMBERS, "response_format", "tool_choice", "best_of", "ignore_eos"))
_OPTIONS = frozenset(("n", "stop", "seed", "logprobs", "top_logprobs"))
"""What a body says beside its prompt and its limit. Most say little of it, and are not asked for each."""


class Prompt(NamedTuple):
    """One prompt, as the engine sees it."""

    data: bytes
    """Text as UTF-8, or token ids of eight bytes each."""
    bytes_per_token: int = BYTES_PER_TOKEN

    @property
    def tokens(self) -> int:
        # An empty text still has the token that begins a sequence.
        return max(1, -(-len(self.data) // self.bytes_per_token))

    def block_hashes(self, block_size: int) -> tuple[int, ...]:
        """Chained 64-bit hashes of the prompt's whole blocks, first block first."""
        size = block_size * self.bytes_per_token
        data, digest = self.data, xxhash.xxh3_64_intdigest
        if len(data) < size:
            return ()
        # Text and token ids may agree byte for byte and still are different prompts.
        block_hash = self.bytes_per_token
        hashes = []
        for end in range(size, len(data) + 1, size):
            block_hash = digest(data[end - size : end], block_hash)
            hashes.append(block_hash)
        return tuple(hashes)

    def answer_key(self, engine_seed: int, request_seed: int) -> bytes:
        """What an answer depends on, beside the number of the choice among those with this prompt."""
        return _seeds(engine_seed, request_seed, self.bytes_per_token) + xxhash.xxh3_128_digest(self.data)


@lru_cache(maxsize=64)
def _seeds(engine_seed: int, request_seed: int, bytes_per_token: int) -> bytes:
    """Nearly always the same: few requests name a seed."""
    return f"{engine_seed} {request_seed} {bytes_per_token} ".encode()


class Ask(NamedTuple):
    """What a body asks for, checked but for the context length."""

    prompt_field: str
    """Where the prompts stood, for errors about them."""
    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    """None when the client set no limit."""
    choices_per_prompt: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0
    top_logprobs: int | None = None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""


def read_body(request: GenerationRequest) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what this engine cannot do."""
    body = fields.json_object(request.body)
    if not _CHECKED.isdisjoint(body):
        _refuse_unsupported(body)
    fields.boolean(body, "stream")
    chat = request.dialect is Dialect.CHAT
    prompts = (_chat_prompt(body),) if chat else tuple(prompt_of(one, "prompt") for one in fields.prompts(body))
    max_tokens = fields.output_limit(body, _LIMITS[request.dialect])
    ask = Ask("messages" if chat else "prompt", prompts, max_tokens)
    if not _OPTIONS.isdisjoint(body):
        ask = _with_options(ask, body, chat)
    if len(prompts) * ask.choices_per_prompt > MAX_CHOICES:
        raise InvalidRequest(f"prompt and n make more than {MAX_CHOICES} choices.", param="prompt")
    return ask


def _with_options(ask: Ask, body: Mapping[str, object], chat: bool) -> Ask:
    return ask._replace(
        choices_per_prompt=fields.integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=fields.stop_strings(body),
        seed=fields.integer(body, "seed") or 0,
        top_logprobs=(
            fields.chat_logprobs(body) if chat else fields.integer(body, "logprobs", 0, fields.MAX_TOP_LOGPROBS)
        ),
    )


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    fields.refuse(body, _UNSUPPORTED, ENGINE)
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise fields.unsupported("response_format", ENGINE)
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise fields.unsupported("tool_choice", ENGINE)
    best_of = fields.integer(body, "best_of", 1)
    if best_of is not None and best_of != (fields.integer(body, "n", 1, MAX_CHOICES) or 1):
        raise fields.unsupported("best_of", ENGINE)
    for name in _NUMBERS:
        fields.number(body, name)
    fields.boolean(body, "ignore_eos")


def _chat_prompt(body: Mapping[str, object]) -> Prompt:
    """The messages in one text, each behind its role, the tools before them: a prefix of a talk is a prefix here."""
    tools = body.get("tools")
    parts = [f"{orjson.dumps(tools).decode()}\n"] if tools else []
    for index, message in enumerate(fields.messages(body)):
        said = message.get("content")
        if not isinstance(said, str) or message.get("tool_calls"):
            said = _said(message, index)
        parts.append(f"{message['role']}\n{said}\n")
    return Prompt("".join(parts).encode())


def _said(message: Mapping[str, object], index: int) -> str:
    """What a message says, in parts or by calling tools."""
    content, calls = message.get("content"), message.get("tool_calls")
    text = "" if calls and content is None else _content(content, f"messages[{index}].content")
    return text + orjson.dumps(calls).decode() if calls else text


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts.", param=where)
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{index}] is not a text part.", param=f"{where}[{index}]")
        texts.append(text)
    return "".join(texts)


def prompt_of(prompt: str | list[int], field: str) -> Prompt:
    """A text or a list of token ids. Raises InvalidRequest, which blames `field`, for an id that is too great."""
    if isinstance(prompt, str):
        return Prompt(prompt.encode())
    try:
        return Prompt(array("Q", prompt).tobytes(), _BYTES_PER_TOKEN_ID)
    except OverflowError:
        raise InvalidRequest(f"{field} holds a token id beyond 64 bits.", param=field) from None
