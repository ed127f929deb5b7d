"""Reads an OpenAI body for the transformers engine: what to ask the tokenizer, and what to make of the answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines import fields

ENGINE = "transformers"

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI gives a completion whose client set no limit; a chat may use up the context."""

MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024
"""Tokens that one request may bias: each is written into the scores in every step."""

_LIMITS = {Dialect.CHAT: ("max_completion_tokens", "max_tokens"), Dialect.COMPLETION: ("max_tokens",)}

_UNSUPPORTED = (
    "audio",
    "bad_words",
    "chat_template",
    "documents",
    "echo",
    "function_call",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "length_penalty",
    "prompt_logprobs",
    "structured_outputs",
    "suffix",
    "truncate_prompt_tokens",
    "use_beam_search",
)
"""Refused by name unless null, false or empty: an answer that ignored them would be wrong."""
_TEMPLATE_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tools",
    }
)
"""What `chat_template_kwargs` may not hold, because this engine says it itself."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's authors recommend, for fields that a request leaves out; OpenAI's where they say nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen."""

    temperature: float
    """0 takes the likeliest."""
    top_p: float
    top_k: int
    """0 means all."""
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...]
    """Empty means all."""
    min_tokens: int
    """Tokens before which nothing ends the answer but its length."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template is given."""

    messages: list[dict[str, Any]]
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body asks for, checked but for what only the model's vocabulary and context length can tell."""

    prompt_field: str
    """Where the prompts stood, for errors about them."""
    chat: Chat | None
    prompts: tuple[str | list[int], ...]
    """The prompts of a completion; of a chat there is one, which the template writes."""
    choices_per_prompt: int
    max_tokens: int | None
    """Tokens of each choice; None when the client set no limit and has the whole context."""
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    sampling: SamplingParams
    seed: int | None
    top_logprobs: int | None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""


def read_body(request: GenerationRequest, defaults: SamplingDefaults) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what this engine cannot do."""
    body = fields.json_object(request.body)
    if request.dialect is Dialect.EMBEDDING:
        raise fields.no_embeddings()
    _refuse_unsupported(body)
    chat = request.dialect is Dialect.CHAT
    limit = fields.output_limit(body, _LIMITS[request.dialect])
    max_tokens = limit if limit is not None or chat else DEFAULT_COMPLETION_TOKENS
    prompts: tuple[str | list[int], ...] = ("",) if chat else fields.prompts(body)
    choices = fields.integer(body, "n", 1, MAX_CHOICES) or 1
    if len(prompts) * choices > MAX_CHOICES:
        raise InvalidRequest(f"prompt and n make more than {MAX_CHOICES} choices.", param="prompt")
    return Ask(
        prompt_field="messages" if chat else "prompt",
        chat=_chat(body) if chat else None,
        prompts=prompts,
        choices_per_prompt=choices,
        max_tokens=max_tokens,
        stop=fields.stop_strings(body),
        stop_token_ids=_token_ids(body, "stop_token_ids"),
        ignore_eos=fields.boolean(body, "ignore_eos"),
        sampling=_sampling(body, defaults, max_tokens),
        seed=fields.integer(body, "seed"),
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
    if body.get("tools") and body.get("tool_choice") != "none":
        # A call would come back as text in the model's own notation, which nobody here reads.
        raise fields.unsupported("tools", ENGINE)
    best_of = fields.integer(body, "best_of", 1)
    if best_of is not None and best_of != (fields.integer(body, "n", 1, MAX_CHOICES) or 1):
        raise fields.unsupported("best_of", ENGINE)
    fields.boolean(body, "stream")
    for name in ("skip_special_tokens", "spaces_between_special_tokens"):
        if body.get(name) is False:
            raise fields.unsupported(name, ENGINE)


def _sampling(body: Mapping[str, object], defaults: SamplingDefaults, max_tokens: int | None) -> SamplingParams:
    def number(name: str, low: float, high: float, default: float) -> float:
        value = fields.number(body, name, low, high)
        return default if value is None else value

    top_k = fields.integer(body, "top_k", -1)
    penalty = number("repetition_penalty", 0, 100, defaults.repetition_penalty)
    if penalty == 0:
        raise InvalidRequest("repetition_penalty must be greater than 0.", param="repetition_penalty")
    return SamplingParams(
        temperature=number("temperature", 0, 100, defaults.temperature),
        top_p=number("top_p", 0, 1, defaults.top_p),
        top_k=max(0, defaults.top_k if top_k is None else top_k),
        min_p=number("min_p", 0, 1, defaults.min_p),
        presence_penalty=number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=number("frequency_penalty", -2, 2, 0.0),
        repetition_penalty=penalty,
        logit_bias=_logit_bias(body),
        allowed_token_ids=_token_ids(body, "allowed_token_ids"),
        min_tokens=fields.integer(body, "min_tokens", 0, max_tokens) or 0,
    )


def _logit_bias(body: Mapping[str, object]) -> tuple[tuple[int, float], ...]:
    given = body.get("logit_bias")
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias must be an object with at most {MAX_LOGIT_BIAS} token ids.", param="logit_bias"
        )
    biases = []
    for token, bias in given.items():
        number = not isinstance(bias, bool) and isinstance(bias, int | float)
        if not (token.isascii() and token.isdigit() and number and -100 <= bias <= 100):
            raise InvalidRequest("logit_bias must give token ids numbers from -100 to 100.", param="logit_bias")
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _token_ids(body: Mapping[str, object], name: str) -> tuple[int, ...]:
    given = body.get(name)
    if given is None or given == []:
        return ()
    if not isinstance(given, list) or set(map(type, given)) != {int} or min(given) < 0:
        raise InvalidRequest(f"{name} must be a list of token ids.", param=name)
    return tuple(given)


def _chat(body: Mapping[str, object]) -> Chat:
    messages = [_message(message, index) for index, message in enumerate(fields.messages(body))]
    given = body.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise InvalidRequest("chat_template_kwargs must be an object.", param="chat_template_kwargs")
    taken = sorted(_TEMPLATE_ARGUMENTS.intersection(given or ()))
    if taken:
        raise InvalidRequest(f"chat_template_kwargs may not hold {taken[0]}.", param="chat_template_kwargs")
    continued = fields.boolean(body, "continue_final_message")
    answer = body.get("add_generation_prompt") is None or fields.boolean(body, "add_generation_prompt")
    if continued and answer and body.get("add_generation_prompt") is not None:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
        )
    return Chat(
        messages,
        {
            **(given or {}),
            "add_generation_prompt": answer and not continued,
            "continue_final_message": continued,
        },
    )


def _message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as chat templates want it: content in one text, arguments of tool calls as an object."""
    where = f"messages[{index}]"
    content = message.get("content")
    if isinstance(content, list):
        message = {**message, "content": "".join(_texts(content, f"{where}.content"))}
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(f"{where}.content must be a string or a list of parts.", param=f"{where}.content")
    elif content is None and not message.get("tool_calls"):
        message = {**message, "content": ""}
    calls = message.get("tool_calls")
    if calls is None:
        return message
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequest(f"{where}.tool_calls must be a list of objects.", param=f"{where}.tool_calls")
    return {**message, "tool_calls": [_with_arguments(call) for call in calls]}


def _texts(parts: list[Any], where: str) -> list[str]:
    texts = []
    for index, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{index}] is not a text part.", param=f"{where}[{index}]")
        texts.append(text)
    return texts


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": orjson.loads(arguments or "{}")}}
    except orjson.JSONDecodeError:
        return call
