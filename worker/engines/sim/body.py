"""Reads an OpenAI body for the simulated engine: the prompt as tokens and blocks, and what is asked of it. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Prompt:
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
        # Text and token ids may agree byte for byte and still are different prompts.
        block_hash = self.bytes_per_token
        hashes = []
        for end in range(size, len(data) + 1, size):
            block_hash = digest(data[end - size : end], block_hash)
            hashes.append(block_hash)
        return tuple(hashes)

    def answer_key(self, engine_seed: int, request_seed: int) -> bytes:
        """What an answer depends on, beside the number of the choice among those with this prompt."""
        seeds = f"{engine_seed} {request_seed} {self.bytes_per_token} ".encode()
        return seeds + xxhash.xxh3_128_digest(self.data)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body asks for, checked but for the context length."""

    prompt_field: str
    """Where the prompts stood, for errors about them."""
    prompts: tuple[Prompt, ...]
    choices_per_prompt: int
    max_tokens: int | None
    """None when the client set no limit."""
    stop: tuple[str, ...]
    seed: int
    top_logprobs: int | None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""


def read_body(request: GenerationRequest) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what this engine cannot do."""
    body = fields.json_object(request.body)
    _refuse_unsupported(body)
    chat = request.dialect is Dialect.CHAT
    prompts = (_chat_prompt(body),) if chat else tuple(prompt_of(one, "prompt") for one in fields.prompts(body))
    choices_per_prompt = fields.integer(body, "n", 1, MAX_CHOICES) or 1
    if len(prompts) * choices_per_prompt > MAX_CHOICES:
        raise InvalidRequest(f"prompt and n make more than {MAX_CHOICES} choices.", param="prompt")
    return Ask(
        prompt_field="messages" if chat else "prompt",
        prompts=prompts,
        choices_per_prompt=choices_per_prompt,
        max_tokens=fields.output_limit(body, _LIMITS[request.dialect]),
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
    for name in ("stream", "ignore_eos"):
        fields.boolean(body, name)


def _chat_prompt(body: Mapping[str, object]) -> Prompt:
    """The messages in one text, each behind its role, the tools before them: a prefix of a talk is a prefix here."""
    parts = [orjson.dumps(body["tools"]), b"\n"] if body.get("tools") else []
    for index, message in enumerate(fields.messages(body)):
        where = f"messages[{index}]"
        calls = message.get("tool_calls")
        text = "" if calls and message.get("content") is None else _content(message.get("content"), f"{where}.content")
        parts += [message["role"].encode(), b"\n", text.encode(), orjson.dumps(calls) if calls else b"", b"\n"]
    return Prompt(b"".join(parts))


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
