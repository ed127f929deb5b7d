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

PATHS = {Dialect.CHAT: "/v1/chat/completions", Dialect.COMPLETION: "/v1/completions"}

_LIMITS = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETION: ("max_tokens",),
}
"""What the client's limit on each choice may be called; the first that has a value counts."""
_USAGE = {"include_usage": True}


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
    stop: tuple[str, ...]

    @property
    def choices(self) -> int:
        return self.prompts * self.choices_per_prompt

    @property
    def prompt_field(self) -> str:
        """Where the prompt stands, for errors about it."""
        return "messages" if self.dialect is Dialect.CHAT else "prompt"


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
        raise fields.no_embeddings()
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
        max_tokens=fields.output_limit(body, _LIMITS[request.dialect]),
        top_logprobs=top,
        stop=fields.stop_strings(body),
    )


def write_body(ask: Ask, model: str, facts: Facts) -> Sent:
    """The request for a server. Raises InvalidRequest for what this kind of server cannot do."""
    kind = facts.kind
    changes: dict[str, object] = {"stream": True, "stream_options": _USAGE, **kind.asks}
    if ask.body.get("model") not in facts.adapters:
        changes["model"] = model
    cut = ask.stop if kind.loses_text_at_stop else ()
    changes |= kind.adapt(ask, facts)
    body = ask.body
    wanted = {name: value for name, value in changes.items() if name not in body or body[name] != value}
    # True and 1 are equal here and not in JSON.
    if body.get("stream") is not True:
        wanted["stream"] = True
    gone = ("stop",) if cut else ()
    if any(name in body for name in (*wanted, *gone)):
        raw = rewrite(ask.raw, wanted, gone)
    else:
        raw = append(ask.raw, wanted) if wanted else ask.raw
    return Sent(PATHS[ask.dialect], raw, cut)
