"""OpenAI request bodies: bytes in, the facts that routing and rendering need out, or `InvalidRequest`.

What a body may hold is a table: a field with a rule is one line in it. Fields without a rule travel on to the engine,
as does the body itself, byte for byte. Null is the same as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from gateway import shapes
from gateway.fields import Rule, flag, integer, missing, nested, number, one_of, short_string, string
from gateway.prompt import chat_prompt, completion_prompt, embedding_inputs
from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect

MAX_CHOICES = 1024
"""Choices in one answer: prompts times `n`."""

_output_tokens = integer(1, 2**31 - 1)
_penalty = number(-2, 2)
MAX_NAME_CHARS = 512
_name = short_string(MAX_NAME_CHARS)


def _no_stream(param: str, value: object) -> None:
    """An answer of vectors comes in one piece: who waits for a stream would wait in vain."""
    flag(param, value)
    if value:
        raise InvalidRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")


def _checked_with_prompt(param: str, value: object) -> None:
    """The prompt's bytes are made in the same pass that checks what they are made of."""


_COMMON: dict[str, Rule] = {
    "model": _name,
    "stream": flag,
    "stream_options": shapes.stream_options,
    "n": integer(1, 128),
    "max_tokens": _output_tokens,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": shapes.stop,
    "logit_bias": shapes.logit_bias,
    "response_format": shapes.response_format,
    "user": _name,
    "prompt_cache_key": _name,
}

_RULES: dict[Dialect, dict[str, Rule]] = {
    Dialect.CHAT: {
        **_COMMON,
        "messages": _checked_with_prompt,
        "max_completion_tokens": _output_tokens,
        "logprobs": flag,
        "top_logprobs": integer(0, 20),
        "tools": shapes.tools,
        "tool_choice": shapes.tool_choice,
        "parallel_tool_calls": flag,
        "reasoning_effort": string,
    },
    Dialect.COMPLETION: {
        **_COMMON,
        "prompt": _checked_with_prompt,
        "logprobs": integer(0, 20),
        "best_of": integer(1, 128),
        "echo": flag,
        "suffix": string,
    },
    Dialect.EMBEDDING: {
        "model": _name,
        "input": _checked_with_prompt,
        "encoding_format": one_of("float", "base64"),
        "dimensions": integer(1, 2**31 - 1),
        "stream": _no_stream,
        "user": _name,
    },
}

_GUIDES = frozenset(
    ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "json_schema")
)
"""Engines' own names for what the output must follow."""


def _is_tool_forced(fields: dict[str, object]) -> bool:
    choice = fields.get("tool_choice")
    return choice is not None and choice != "auto" and choice != "none"


_Clash = tuple[Callable[[dict[str, object]], bool], str, str]
"""What two fields must not say together, the one to blame, and the message."""

_STREAM_OPTIONS_ALONE: _Clash = (
    lambda fields: fields.get("stream_options") is not None and fields.get("stream") is not True,
    "stream_options",
    "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
)

_CLASHES: dict[Dialect, tuple[_Clash, ...]] = {
    Dialect.CHAT: (
        _STREAM_OPTIONS_ALONE,
        (
            lambda fields: fields.get("top_logprobs") is not None and fields.get("logprobs") is not True,
            "top_logprobs",
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        ),
        (
            lambda fields: _is_tool_forced(fields) and not fields.get("tools"),
            "tool_choice",
            "The 'tool_choice' parameter can only demand a tool when 'tools' are specified.",
        ),
    ),
    Dialect.COMPLETION: (
        _STREAM_OPTIONS_ALONE,
        (
            lambda fields: fields.get("best_of") not in (None, 1, fields.get("n") or 1),
            "best_of",
            "Invalid 'best_of': choosing among more answers than 'n' is not supported.",
        ),
    ),
    Dialect.EMBEDDING: (),
}


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A body that was found good."""

    dialect: Dialect
    model: str
    stream: bool
    include_usage: bool
    """The stream ends with a chunk that tells the usage."""
    choice_count: int
    """Choices the answer has: `n` for every prompt. Vectors, where those are asked for: one for every input."""
    max_output_tokens: int
    """For each choice; 0 when the client set no limit."""
    session_id: str
    """Requests of one session share prompts; empty when the client named none."""
    user: str
    """The end user in the client's words; empty when it named none."""
    prompt: bytes
    """Prompts that begin alike begin with the same bytes."""
    body: bytes
    """As it came, the same object."""
    has_logprobs: bool
    has_tools: bool
    is_guided: bool
    """The output must follow a schema, a grammar or a forced tool call: another engine cannot take it up half-way."""
    shows_prompt: bool
    """The answer holds the prompt, or stands before a suffix: what there is of it is not all that it goes on from."""
    is_base64: bool
    """Vectors are wanted as base64 of little-endian 32-bit floats."""

    @property
    def may_continue(self) -> bool:
        """Whether another engine could go on with the answer from its text."""
        return not (self.choice_count > 1 or self.is_guided or self.shows_prompt or self.dialect is Dialect.EMBEDDING)

    @property
    def prefix(self) -> bytes:
        """What of the prompt may begin as another's did, for an engine to have it in its cache.

        Nothing of what is embedded: a vector needs the whole of its input computed.
        """
        return b"" if self.dialect is Dialect.EMBEDDING else self.prompt


def parse(dialect: Dialect, body: bytes) -> OpenAIRequest:
    """Checks a body. Raises InvalidRequest that tells the first thing found wrong."""
    fields = _load(body)
    rules = _RULES[dialect]
    for name, value in fields.items():
        if value is not None:
            rules.get(name, nested)(name, value)
    model = fields.get("model")
    if not model:
        raise missing("model")
    for is_broken, param, message in _CLASHES[dialect]:
        if is_broken(fields):
            raise InvalidRequest(message, param=param)
    get = fields.get
    has_logprobs = False
    match dialect:
        case Dialect.CHAT:
            prompt, choice_count = chat_prompt(get("messages"), get("tools")), _integer(get("n")) or 1
            has_logprobs = get("logprobs") is True
        case Dialect.COMPLETION:
            prompt, prompt_count = completion_prompt(get("prompt"))
            choice_count = _choice_count(prompt_count, _integer(get("n")) or 1)
            has_logprobs = get("logprobs") is not None
        case Dialect.EMBEDDING:
            prompt, choice_count = embedding_inputs(get("input"))
    options = get("stream_options")
    user = _text(get("user"))
    return OpenAIRequest(
        dialect=dialect,
        model=_text(model),
        stream=get("stream") is True,
        include_usage=type(options) is dict and options.get("include_usage") is True,
        choice_count=choice_count,
        max_output_tokens=_integer(get("max_completion_tokens")) or _integer(get("max_tokens")),
        session_id=_session(get("session_id")) or _text(get("prompt_cache_key")) or user,
        user=user,
        prompt=prompt,
        body=body,
        has_logprobs=has_logprobs,
        has_tools=bool(get("tools")),
        is_guided=_is_guided(fields),
        shows_prompt=bool(get("echo")) or bool(get("suffix")),
        is_base64=get("encoding_format") == "base64",
    )


def _session(value: object) -> str:
    """A name of ours that others may use for theirs: what cannot be one is none."""
    name = _text(value)
    return name if len(name) <= MAX_NAME_CHARS else ""


def _load(body: bytes) -> dict[str, object]:
    try:
        fields: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The cause holds the whole body, and would carry it into every log.
        raise InvalidRequest(_malformed(body, error)) from None
    if type(fields) is not dict:
        raise InvalidRequest("The request body must be a JSON object.")
    return fields


def _malformed(body: bytes, error: orjson.JSONDecodeError) -> str:
    where = f"{error.msg}: line {error.lineno} column {error.colno}"
    try:
        body.decode()
    except UnicodeDecodeError as bad:
        where = f"invalid UTF-8 at byte {bad.start}"
    return f"We could not parse the JSON body of your request ({where})."


def _choice_count(prompt_count: int, n: int) -> int:
    if prompt_count * n <= MAX_CHOICES:
        return prompt_count * n
    message = f"Invalid 'prompt': {prompt_count} prompts times {n} are more than {MAX_CHOICES} choices in one request."
    raise InvalidRequest(message, param="prompt", code="array_above_max_length")


def _is_guided(fields: dict[str, object]) -> bool:
    wanted = fields.get("response_format")
    return (
        (type(wanted) is dict and wanted.get("type") != "text")
        or _is_tool_forced(fields)
        or any(fields[name] is not None for name in _GUIDES & fields.keys())
    )


def _integer(value: object) -> int:
    return value if type(value) is int else 0


def _text(value: object) -> str:
    return value if type(value) is str else ""
