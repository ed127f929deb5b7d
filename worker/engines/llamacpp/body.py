"""Makes the client's OpenAI body into one for llama.cpp, and reads off it what the engine must know. Pure.

The body stays as it came, digit for digit, and what we need is written behind its last field: of two fields with one
name llama.cpp takes the later, as every JSON reader here does. Fields that nobody here knows reach llama.cpp so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.llamacpp.grammar import refuse_reversed_bounds

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI gives a completion whose client set no limit; a chat may use up the context."""
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16

_PATHS = {Dialect.CHAT: "/v1/chat/completions", Dialect.COMPLETION: "/v1/completions"}

_UNSUPPORTED = (
    "allowed_token_ids",
    "audio",
    "bad_words",
    "echo",
    "function_call",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "min_tokens",
    "post_sampling_probs",
    "prompt_logprobs",
    "stop_token_ids",
    "structured_outputs",
    "suffix",
    "truncate_prompt_tokens",
    "use_beam_search",
)
"""Refused by name unless null, false or empty: llama.cpp would ignore them or answer in a form that is not OpenAI's."""
_OURS = ("id_slot", "n_cmpl", "response_fields")
"""Fields of llama.cpp's own by which a client would take over what this engine decides."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model and its server can do, as far as a body is checked against it."""

    choices_per_prompt: int
    tools: bool
    """Whether the chat template knows tools. One that does not leaves them out, and nothing can force their use."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What to send to llama.cpp, and what to expect of it."""

    path: str
    body: bytes
    prompt_field: str
    """Where the prompt stood, for errors about it."""
    prompts: tuple[str | list[int], ...]
    """The prompts of a completion; a chat has one, which only its template can write."""
    choices_per_prompt: int
    max_tokens: int | None
    """Tokens of each choice; None when the client set no limit and has the whole context."""
    explicit_limit: bool
    """Whether the client set it."""
    top_logprobs: int | None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""

    stop: tuple[str, ...]

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.choices_per_prompt


def read_body(request: GenerationRequest, limits: Limits) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what llama.cpp would ignore or break on."""
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    _refuse_unsupported(body)
    refuse_reversed_bounds(body)
    chat = request.dialect is Dialect.CHAT
    limit = _limit(body, chat)
    top = _chat_logprobs(body) if chat else _integer(body, "logprobs", 0, MAX_TOP_LOGPROBS)
    added: dict[str, object] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "n_predict": limit if limit is not None else -1 if chat else DEFAULT_COMPLETION_TOKENS,
    }
    if chat:
        _check_messages(body.get("messages"))
        added |= _forced_tool(body, limits)
    stop = _stop(body.get("stop"))
    if stop:
        # We look for them, and count tokens with llama.cpp's counter, since its own count comes too late then.
        added |= {"stop": [], "timings_per_token": True}
    if top is not None:
        # llama.cpp takes 0 for no log probabilities at all.
        added |= {"logprobs": True, "top_logprobs": max(1, top)} if chat else {"logprobs": max(1, top)}
    try:
        spliced = splice(request.body, added)
    except orjson.JSONEncodeError:
        # orjson reads more levels than it writes, and only tools are written again.
        raise InvalidRequest("tools are nested too deeply.", param="tools") from None
    return Ask(
        path=_PATHS[request.dialect],
        body=spliced,
        prompt_field="messages" if chat else "prompt",
        prompts=("",) if chat else _prompts(body.get("prompt")),
        choices_per_prompt=_integer(body, "n", 1, limits.choices_per_prompt) or 1,
        max_tokens=limit if limit is not None or chat else DEFAULT_COMPLETION_TOKENS,
        explicit_limit=limit is not None,
        top_logprobs=top,
        stop=stop,
    )


def splice(body: bytes, added: Mapping[str, object]) -> bytes:
    """A JSON object with fields written behind its last; the rest stays byte for byte."""
    inside = body.rstrip()[:-1].rstrip()
    comma = b"" if inside.endswith(b"{") else b","
    return inside + comma + orjson.dumps(added)[1:]


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name in _UNSUPPORTED:
        if body.get(name):
            raise InvalidRequest(f"{name} is not supported by the llama.cpp engine.", param=name)
    for name in _OURS:
        if name in body:
            raise InvalidRequest(f"{name} cannot be chosen here.", param=name)
    if body.get("repetition_penalty") not in (None, 1):
        raise InvalidRequest("repetition_penalty is repeat_penalty in llama.cpp.", param="repetition_penalty")
    best_of = _integer(body, "best_of", 1)
    if best_of is not None and best_of != (_integer(body, "n", 1) or 1):
        raise InvalidRequest("best_of is not supported by the llama.cpp engine.", param="best_of")


def _stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise InvalidRequest("stop must be a non-empty string or a list of such.", param="stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has more than {MAX_STOP_STRINGS} strings.", param="stop")
    return tuple(strings)


def _limit(body: Mapping[str, object], chat: bool) -> int | None:
    """The client's limit on each choice, by the newest of the names it has."""
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    limits = [_integer(body, name, 1) for name in (*names, "n_predict")]
    return next((limit for limit in limits if limit is not None), None)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list.", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{where} must be an object.", param=where)
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise InvalidRequest(f"{where}.role must be a string.", param=f"{where}.role")


def _forced_tool(body: Mapping[str, object], limits: Limits) -> dict[str, object]:
    """Checks the choice of a tool; llama.cpp knows no choice by name, so all tools but the named are left out."""
    choice = body.get("tool_choice")
    if choice in (None, "none", "auto"):
        return {}
    tools = body.get("tools")
    if choice != "required":
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        tools = [tool for tool in tools if _tool_name(tool) == name] if isinstance(tools, list) and name else None
    if not isinstance(tools, list) or not tools:
        raise InvalidRequest("tool_choice names no tool of the request.", param="tool_choice")
    if not limits.tools:
        raise InvalidRequest("tool_choice cannot be kept: the model's chat template has no tools.", param="tool_choice")
    return {} if choice == "required" else {"tools": tools, "tool_choice": "required"}


def _tool_name(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _prompts(prompt: object) -> tuple[str | list[int], ...]:
    """A string or a list of token ids is one prompt, a list of such is many."""
    if isinstance(prompt, str) or _is_token_ids(prompt):
        prompt = [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(one, str) or _is_token_ids(one) for one in prompt):
        return tuple(prompt)
    raise InvalidRequest("prompt must be a string, a list of token ids, or a list of such.", param="prompt")


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(one) is int for one in prompt)


def _chat_logprobs(body: Mapping[str, object]) -> int | None:
    wanted = body.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidRequest("logprobs must be true or false.", param="logprobs")
    top = _integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (top or 0) if wanted else None


def _integer(body: Mapping[str, object], name: str, low: int, high: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer.", param=name)
    if value < low:
        raise InvalidRequest(f"{name} must be at least {low}.", param=name)
    if high is not None and value > high:
        raise InvalidRequest(f"{name} must be at most {high} on this worker.", param=name)
    return value
