"""Makes the client's OpenAI body into one for llama.cpp, and reads off it what the engine must know. Pure.

The body stays as it came, digit for digit, and what we need is written behind its last field: of two fields with one
name llama.cpp takes the later, as every JSON reader here does. Fields that nobody here knows reach llama.cpp so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from lbcore.errors import CannotContinue, InvalidRequest
from lbcore.generation import Continuation, Dialect, GenerationRequest
from worker.engines import fields
from worker.engines.llamacpp.grammar import refuse_reversed_bounds

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI gives a completion whose client set no limit; a chat may use up the context."""

_LIMITS = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens", "n_predict"),
    Dialect.COMPLETION: ("max_tokens", "n_predict"),
}
"""What the client's limit on each choice may be called; the first that has a value counts."""
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
_GUIDES = ("grammar", "json_schema", "response_format")
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
    begun: str = ""
    """What there is of the answer already; `body` has it behind the prompt."""
    begun_tokens: int = 0
    """How many tokens that is, once it was counted."""

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.choices_per_prompt

    def behind(self, begun_tokens: int) -> Ask:
        """The same when it is known how many tokens there are already: so many fewer are to come."""
        if self.max_tokens is None:
            return replace(self, begun_tokens=begun_tokens)
        left = self.max_tokens - begun_tokens
        return replace(self, begun_tokens=begun_tokens, max_tokens=left, body=splice(self.body, {"n_predict": left}))


def read_body(request: GenerationRequest, limits: Limits) -> Ask:
    """Raises InvalidRequest for what is no such body, and by name for what llama.cpp would ignore or break on."""
    body = fields.json_object(request.body)
    if request.dialect is Dialect.EMBEDDING:
        raise fields.no_embeddings()
    refuse_unsupported(body)
    refuse_reversed_bounds(body)
    chat = request.dialect is Dialect.CHAT
    limit = fields.output_limit(body, _LIMITS[request.dialect])
    top = fields.chat_logprobs(body) if chat else fields.integer(body, "logprobs", 0, fields.MAX_TOP_LOGPROBS)
    added: dict[str, object] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "n_predict": limit if limit is not None else -1 if chat else DEFAULT_COMPLETION_TOKENS,
    }
    prompts: tuple[str | list[int], ...]
    if chat:
        messages = fields.messages(body)
        prompts = ("",)
        added |= forced_tool(body, limits)
    else:
        prompts = fields.prompts(body)
    begun = request.continuation.text if request.continuation is not None else ""
    if request.continuation is not None:
        refuse_to_continue(request.continuation, body, prompts)
        if chat:
            # llama.cpp goes on with a last message that is the assistant's.
            added["messages"] = [*messages, {"role": "assistant", "content": begun}] if begun else messages
        else:
            added["prompt"] = [*prompts[0], begun] if isinstance(prompts[0], list) else prompts[0] + begun
    stop = fields.stop_strings(body)
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
        prompts=prompts,
        choices_per_prompt=fields.integer(body, "n", 1, limits.choices_per_prompt) or 1,
        max_tokens=limit if limit is not None or chat else DEFAULT_COMPLETION_TOKENS,
        explicit_limit=limit is not None,
        top_logprobs=top,
        stop=stop,
        begun=begun,
    )


def refuse_to_continue(
    continuation: Continuation, body: Mapping[str, object], prompts: Sequence[str | list[int]]
) -> None:
    """Raises CannotContinue where the text of an answer is not all that it goes on from."""
    if continuation.reasoning:
        raise CannotContinue("llama.cpp does not go on with reasoning.")
    if len(prompts) > 1 or body.get("n") not in (None, 1):
        raise CannotContinue("llama.cpp goes on with one choice only.")
    if any(body.get(name) for name in _GUIDES):
        raise CannotContinue("llama.cpp does not go on in the middle of a grammar.")


def splice(body: bytes, added: Mapping[str, object]) -> bytes:
    """A JSON object with fields written behind its last; the rest stays byte for byte."""
    inside = body.rstrip()[:-1].rstrip()
    comma = b"" if inside.endswith(b"{") else b","
    return inside + comma + orjson.dumps(added)[1:]


def refuse_unsupported(body: Mapping[str, object]) -> None:
    """Raises InvalidRequest for the first field that llama.cpp would ignore, or that is not for clients to choose."""
    fields.refuse(body, _UNSUPPORTED, "llama.cpp")
    for name in _OURS:
        if name in body:
            raise InvalidRequest(f"{name} cannot be chosen here.", param=name)
    if body.get("repetition_penalty") not in (None, 1):
        raise InvalidRequest("repetition_penalty is repeat_penalty in llama.cpp.", param="repetition_penalty")
    best_of = fields.integer(body, "best_of", 1)
    if best_of is not None and best_of != (fields.integer(body, "n", 1) or 1):
        raise fields.unsupported("best_of", "llama.cpp")


def forced_tool(body: Mapping[str, object], limits: Limits) -> dict[str, object]:
    """Checks the choice of a tool, and returns the fields to change for it.

    llama.cpp knows no choice by name, so all tools but the named are left out.
    """
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
