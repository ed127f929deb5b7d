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
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    _refuse_unsupported(body)
    chat = request.dialect is Dialect.CHAT
    prompts = (_chat_prompt(body),) if chat else _completion_prompts(body.get("prompt"))
    choices_per_prompt = _integer(body, "n", 1, MAX_CHOICES) or 1
    if len(prompts) * choices_per_prompt > MAX_CHOICES:
        raise InvalidRequest(f"prompt and n make more than {MAX_CHOICES} choices.", param="prompt")
    max_tokens = _integer(body, "max_tokens", 1)
    if chat and (newer := _integer(body, "max_completion_tokens", 1)) is not None:
        max_tokens = newer
    return Ask(
        prompt_field="messages" if chat else "prompt",
        prompts=prompts,
        choices_per_prompt=choices_per_prompt,
        max_tokens=max_tokens,
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


def _chat_prompt(body: Mapping[str, object]) -> Prompt:
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


def _completion_prompts(prompt: object) -> tuple[Prompt, ...]:
    """A string and a list of token ids are one prompt; a list of such is several."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return tuple(map(_completion_prompt, prompt))
    return (_completion_prompt(prompt),)


def _completion_prompt(prompt: object) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(prompt.encode())
    if isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        try:
            return Prompt(array("Q", cast("list[int]", prompt)).tobytes(), _BYTES_PER_TOKEN_ID)
        except OverflowError:
            raise InvalidRequest("prompt holds a negative token id.", param="prompt") from None
    raise InvalidRequest("prompt must be a string, a list of token ids, or a list of such.", param="prompt")


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
