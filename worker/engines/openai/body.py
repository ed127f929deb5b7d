"""Reads off a client's body what the engine must know, and makes it into the body for a server. Pure.

What OpenAI's API fixes is checked here, so that every worker refuses the same things in the same words. Everything
else is the server's business and reaches it byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lbcore.generation import Dialect, GenerationRequest
from worker.engines import fields
from worker.engines.openai.kinds import Facts
from worker.engines.openai.rewrite import append, rewrite

PATHS = {
    Dialect.CHAT: "/v1/chat/completions",
    Dialect.COMPLETION: "/v1/completions",
    Dialect.EMBEDDING: "/v1/embeddings",
}
ENGINE = "openai"
"""The engine's name in errors."""

LIMITS = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETION: ("max_tokens",),
}
"""What the client's limit on each choice may be called; the first that has a value counts."""
_PROMPT_FIELDS = {Dialect.CHAT: "messages", Dialect.COMPLETION: "prompt", Dialect.EMBEDDING: "input"}
_USAGE = {"include_usage": True}
_NOTHING: Mapping[str, object] = {}
_VECTOR_FORM = ("encoding_format", "embed_dtype", "endianness")
"""Fields that say how vectors are to be written; the last two are vLLM's. Between a server and us that is our business,
and floats, which come unless something else is asked for, are what every server can write."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request, and what to expect of its answer."""

    dialect: Dialect
    raw: bytes
    body: Mapping[str, Any]
    prompts: int
    choices_per_prompt: int
    max_tokens: int | None
    """Tokens of each choice; None when the client set no limit."""
    top_logprobs: int | None
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""
    stop: tuple[str, ...] = ()
    dimensions: int | None = None
    """Numbers in each vector; None when the client left that to the model."""

    @property
    def choices(self) -> int:
        return self.prompts * self.choices_per_prompt

    @property
    def prompt_field(self) -> str:
        """Where the prompt stands, for errors about it."""
        return _PROMPT_FIELDS[self.dialect]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as one server gets it."""

    path: str
    body: bytes
    stop: tuple[str, ...]
    """The stop strings that are ours to look for; the server knows nothing of them."""


def read_body(request: GenerationRequest) -> Ask:
    """Raises InvalidRequest for what is no such body."""
    body = fields.json_object(request.body)
    if request.dialect is Dialect.EMBEDDING:
        return _read_embedding_body(request.body, body)
    chat = request.dialect is Dialect.CHAT
    if chat:
        fields.messages(body)
    top = fields.chat_logprobs(body) if chat else fields.integer(body, "logprobs", 0, fields.MAX_TOP_LOGPROBS)
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        fields.number(body, name)
    fields.integer(body, "seed")
    return Ask(
        dialect=request.dialect,
        raw=request.body,
        body=body,
        prompts=1 if chat else len(fields.prompts(body)),
        choices_per_prompt=fields.integer(body, "n", 1) or 1,
        max_tokens=fields.output_limit(body, LIMITS[request.dialect]),
        top_logprobs=top,
        stop=fields.stop_strings(body),
    )


def write_body(
    ask: Ask, model: str, facts: Facts, more: Mapping[str, object] = _NOTHING, *, cuts: bool = False
) -> Sent:
    """The request for a server. Raises InvalidRequest for what this kind of server cannot do.

    `more` are fields to change beside those that every request needs. With `cuts` stop strings are ours to look for
    whatever the server does about them.
    """
    kind = facts.kind
    body = ask.body
    cut = ask.stop if cuts or kind.loses_text_at_stop else ()
    gone: tuple[str, ...] = ("stop",) if cut else ()
    changes: dict[str, object] = {"stream": True, "stream_options": _USAGE, **kind.asks}
    if ask.dialect is Dialect.EMBEDDING:
        changes, gone = {}, _VECTOR_FORM
        if kind.knows_base64:
            changes, gone = {"encoding_format": "base64"}, _VECTOR_FORM[1:]
    if body.get("model") not in facts.adapters:
        changes["model"] = model
    changes |= {**kind.adapt(ask, facts), **more}
    wanted = {name: value for name, value in changes.items() if name not in body or body[name] != value}
    # True and 1 are equal here and not in JSON.
    if "stream" in changes and body.get("stream") is not True:
        wanted["stream"] = True
    if any(name in body for name in (*wanted, *gone)):
        raw = rewrite(ask.raw, wanted, gone)
    else:
        raw = append(ask.raw, wanted) if wanted else ask.raw
    return Sent(PATHS[ask.dialect], raw, cut)


def _read_embedding_body(raw: bytes, body: Mapping[str, Any]) -> Ask:
    # vLLM takes them instead of inputs, and other servers pass over them.
    fields.refuse(body, ("messages",), ENGINE)
    fields.encoding_format(body)
    return Ask(
        dialect=Dialect.EMBEDDING,
        raw=raw,
        body=body,
        prompts=len(fields.inputs(body)),
        choices_per_prompt=1,
        max_tokens=None,
        top_logprobs=None,
        dimensions=fields.integer(body, "dimensions", 1),
    )
