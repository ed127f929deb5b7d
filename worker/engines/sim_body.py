"""Reads an OpenAI body for the simulated engine: the prompt as tokens and blocks, and what is asked of it. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import orjson
import xxhash

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest

BYTES_PER_TOKEN = 4
"""Of UTF-8 text: the rule of thumb for English and a vocabulary of 100,000."""
_BYTES_PER_TOKEN_ID = 8

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20

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
class Ask:
    """What a body asks for, checked but for the context length."""

    prompt_field: str
    """Where the prompt stood, for errors about it."""
    prompt: bytes
    """Text as UTF-8, or token ids of eight bytes each."""
    bytes_per_token: int
    max_tokens: int | None
    """None when the client set no limit."""
    choices: int
    stop: tuple[str, ...]
    seed: int
    top_logprobs: int | None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""

    @property
    def prompt_tokens(self) -> int:
        # An empty text still has the token that begins a sequence.
        return max(1, -(-len(self.prompt) // self.bytes_per_token))

    def block_hashes(self, block_size: int) -> tuple[int, ...]:
        """Chained 64-bit hashes of the prompt's whole blocks, first block first."""
        size = block_size * self.bytes_per_token
        prompt, digest = self.prompt, xxhash.xxh3_64_intdigest
        # Text and token ids may agree byte for byte and still are different prompts.
        block_hash = self.bytes_per_token
        hashes = []
        for end in range(size, len(prompt) + 1, size):
            block_hash = digest(prompt[end - size : end], block_hash)
            hashes.append(block_hash)
        return tuple(hashes)

    def answer_key(self, engine_seed: int) -> bytes:
        """What the answer depends on, beside the number of the choice."""
        seeds = f"{engine_seed} {self.seed} {self.bytes_per_token} ".encode()
        return seeds + xxhash.xxh3_128_digest(self.prompt)


def read_body(request: GenerationRequest) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what this engine cannot do."""
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    _refuse_unsupported(body)
    chat = request.dialect is Dialect.CHAT
    bytes_per_token = BYTES_PER_TOKEN
    if chat:
        prompt = _chat_prompt(body)
    elif _is_token_ids(body.get("prompt")):
        prompt, bytes_per_token = _token_ids(body["prompt"]), _BYTES_PER_TOKEN_ID
    else:
        prompt = _text_prompt(body)
    max_tokens = _integer(body, "max_tokens", 1)
    if chat and (newer := _integer(body, "max_completion_tokens", 1)) is not None:
        max_tokens = newer
    return Ask(
        prompt_field="messages" if chat else "prompt",
        prompt=prompt,
        bytes_per_token=bytes_per_token,
        max_tokens=max_tokens,
        choices=_integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=_stop(body.get("stop")),
        seed=_integer(body, "seed") or 0,
        top_logprobs=_chat_logprobs(body) if chat else _integer(body, "logprobs", 0, MAX_TOP_LOGPROBS),
    )


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name in _UNSUPPORTED:
        if body.get(name):
            raise _unsupported(name)
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise _unsupported("response_format")
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise _unsupported("tool_choice")
    best_of = _integer(body, "best_of", 1)
    if best_of is not None and best_of != (_integer(body, "n", 1, MAX_CHOICES) or 1):
        raise _unsupported("best_of")
    for name in _NUMBERS:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidRequest(f"{name} must be a number.", param=name)
    for name in ("stream", "ignore_eos"):
        _boolean(body, name)


def _chat_prompt(body: Mapping[str, object]) -> bytes:
    """The messages in one text, each behind its role, the tools before them: a prefix of a talk is a prefix here."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list.", param="messages")
    parts = [orjson.dumps(body["tools"]), b"\n"] if body.get("tools") else []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{where} must be an object.", param=where)
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"{where}.role must be a string.", param=f"{where}.role")
        calls = message.get("tool_calls")
        text = "" if calls and message.get("content") is None else _content(message.get("content"), f"{where}.content")
        parts += [role.encode(), b"\n", text.encode(), orjson.dumps(calls) if calls else b"", b"\n"]
    return b"".join(parts)


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


def _text_prompt(body: Mapping[str, object]) -> bytes:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be one string or one list of token ids.", param="prompt")
    return prompt.encode()


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _token_ids(prompt: list[object]) -> bytes:
    try:
        if set(map(type, prompt)) == {int}:
            return array("Q", cast("list[int]", prompt)).tobytes()
    except OverflowError:
        pass
    raise InvalidRequest("prompt must hold token ids, integers from 0.", param="prompt")


def _stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise InvalidRequest("stop must be a non-empty string or a list of such.", param="stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has more than {MAX_STOP_STRINGS} strings.", param="stop")
    return tuple(strings)


def _chat_logprobs(body: Mapping[str, object]) -> int | None:
    wanted = _boolean(body, "logprobs")
    top = _integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (top or 0) if wanted else None


def _boolean(body: Mapping[str, object], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false.", param=name)
    return bool(value)


def _integer(body: Mapping[str, object], name: str, low: int | None = None, high: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer.", param=name)
    if low is not None and value < low:
        raise InvalidRequest(f"{name} must be at least {low}.", param=name)
    if high is not None and value > high:
        raise InvalidRequest(f"{name} must be at most {high}.", param=name)
    return value


def _unsupported(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not supported by the simulated engine.", param=name)
