"""Going on with an answer that another worker began, at a server that knows nothing of it. Pure.

The server computes what there is behind the prompt: of a chat as a last message of the assistant, of a completion as
tokens. What it tells from there on is new, but for what was held back when the answer was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Delta, Dialect, Event, Finished, FinishReason
from worker.engines.openai.body import LIMITS, Ask
from worker.engines.openai.kinds import Kind
from worker.engines.stop import StopFilter

_GUIDES = ("ebnf", "grammar", "json_schema", "regex", "structural_tag", "structured_outputs")
"""Fields by which an answer follows a grammar, beside those that begin with `guided_`."""
_OF_THE_WHOLE = (
    "bad_words",
    "custom_logit_processor",
    "logits_processors",
    "repetition_detection",
    "thinking_budget_tokens",
    "thinking_token_budget",
    "use_beam_search",
)
"""Fields by which a token depends on all of the answer before it."""
_OF_THE_PROMPT = ("continue_final_message", "echo", "prompt_embeds", "suffix", "truncate_prompt_tokens")
"""Fields that give the prompt an end of their own, or cut it to a length."""
_OF_STOPS = ("include_stop_str_in_output", "no_stop_trim")
"""Fields by which a stop string is told."""
_FORCED = ("function_call", "functions")


@dataclass(frozen=True, slots=True)
class Begun:
    """What there is of an answer, as one server takes it up."""

    text: str
    """All that it says; the server computes this."""
    token_ids: tuple[int, ...]
    """Its tokens at the server."""
    tokens: int
    """How many it had where it was made; the limit counts these."""
    held: str = ""
    """The end of the text, which was not told because it may become a stop string."""
    tells_ids: bool = True
    """Whether the ids of what follows go on where those that were told end."""
    repeats: tuple[int, ...] = ()
    """Ids that were told and are not in the text, being half a character: the server makes them again."""
    prompt_ids: tuple[int, ...] = ()
    """The prompt of a completion."""
    limits: tuple[tuple[str, int], ...] = ()
    """What is left of each of the client's limits, by its name."""


def refuse_to_continue(ask: Ask, continuation: Continuation) -> None:
    """Raises CannotContinue where prompt and text are not all that the rest of an answer depends on."""
    body = ask.body
    if ask.dialect is Dialect.EMBEDDING:
        raise CannotContinue("Vectors are not gone on with.")
    if continuation.reasoning or body.get("include_reasoning") is False:
        raise CannotContinue("An upstream server does not go on behind reasoning.")
    if ask.choices > 1 or body.get("best_of") not in (None, 1):
        raise CannotContinue("An upstream server goes on with one choice only.")
    if _is_guided(body):
        raise CannotContinue("An upstream server does not go on in the middle of a grammar.")
    if body.get("tool_choice") not in (None, "none", "auto") or any(map(body.get, _FORCED)):
        raise CannotContinue("An upstream server does not go on with a tool call.")
    for name in (*_OF_THE_WHOLE, *_OF_THE_PROMPT, *_OF_STOPS):
        if body.get(name):
            raise CannotContinue(f"An upstream server does not go on under {name}.")
    if ask.dialect is Dialect.CHAT:
        last_role = body["messages"][-1]["role"]
        if last_role == "assistant" or body.get("add_generation_prompt") is False:
            raise CannotContinue("An upstream server does not go on with a message that the client began.")


def refuse_kind(ask: Ask, kind: Kind) -> None:
    """Raises CannotContinue for a kind of server that cannot go on with this, or of which that is not known."""
    if kind.goes_on is None:
        raise CannotContinue("It is not known how the upstream server goes on with an answer.")
    for name, neutral in kind.output_penalties.items():
        if ask.body.get(name) not in (None, neutral):
            raise CannotContinue(f"The upstream server does not go on under {name}.")


def limits_left(ask: Ask, kind: Kind, tokens: int) -> tuple[tuple[str, int], ...]:
    """What is left of each limit with so many tokens there. Raises CannotContinue where it is not clear."""
    body = ask.body
    values = {name: body.get(name) for name in (*LIMITS[ask.dialect], *kind.more_limits)}
    limits = {name: value for name, value in values.items() if isinstance(value, int) and value > 0}
    if not limits and ask.dialect is Dialect.COMPLETION and kind.completion_tokens:
        if "max_tokens" in body:
            # Some versions take null for no limit, others for none given.
            raise CannotContinue("It is not known where the upstream server ends the answer.")
        limits = {"max_tokens": kind.completion_tokens}
    if len({*limits.values()}) > 1:
        raise CannotContinue("It is not known which of several limits the upstream server keeps.")
    return tuple((name, value - tokens) for name, value in limits.items())


def body_changes(ask: Ask, kind: Kind, begun: Begun) -> dict[str, object]:
    """The fields of the client's body that are other ones for the rest of the answer."""
    changes: dict[str, object] = dict(begun.limits)
    min_tokens = ask.body.get("min_tokens")
    if isinstance(min_tokens, int):
        changes["min_tokens"] = max(0, min_tokens - begun.tokens)
    if begun.text:
        if ask.dialect is Dialect.CHAT:
            changes |= chat_changes(ask, kind, begun.text)
        else:
            changes["prompt"] = [*begun.prompt_ids, *begun.token_ids]
    return changes


def chat_changes(ask: Ask, kind: Kind, text: str) -> dict[str, object]:
    """The fields of a chat that has this text of its answer already."""
    messages = [*ask.body["messages"], {"role": "assistant", "content": text}]
    return {"messages": messages, **(kind.goes_on or {})}


def fits(said: str, ask: Ask, text: str) -> bool:
    """Whether tokens that say this may be those of an answer of which this text was told.

    Beyond the text there is only what may become a stop string; anything else, a token that is not text among it, would
    be told as text here and was not where the answer was begun.
    """
    may_hold = 0 if ask.body.get("ignore_eos") else max(map(len, ask.stop), default=1) - 1
    return said.startswith(text) and len(said) - len(text) <= may_hold


def end_of(ask: Ask, begun: Begun) -> list[Event]:
    """The end of an answer that has nothing left of its limit, or a stop string in what was held back; else nothing."""
    text, reason = begun.held, None
    if ask.stop:
        stops = StopFilter(ask.stop)
        text = stops.feed(begun.held)
        reason = FinishReason.STOP if stops.stopped else None
        text += stops.flush()
    if reason is None and any(left <= 0 for _, left in begun.limits):
        reason = FinishReason.LENGTH
    if reason is None:
        return []
    # What is known of the prompt whoever began it has told.
    return [Delta(0, text, finish_reason=reason), Finished(0, 0, begun.tokens)]


def _is_guided(body: Mapping[str, object]) -> bool:
    wanted = body.get("response_format")
    if wanted and not (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return True
    return any(value and (name in _GUIDES or name.startswith("guided_")) for name, value in body.items())
