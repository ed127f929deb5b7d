"""What was passed on of an answer, kept so that another worker can go on with it when the one that gives it is lost."""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.generation import Continuation, Delta, Event, Finished, FinishReason, Started

_FOLD = 256
"""Deltas that are kept as they came before they become one: an object for each token of a long answer is more than its
text."""


class KeptAnswer:
    """An answer with one choice, so far."""

    __slots__ = (
        "_deltas",
        "_finish_reason",
        "_has_all_ids",
        "_has_tool_calls",
        "_reasoning",
        "_started",
        "_text",
        "_token_ids",
        "_tokens",
    )

    def __init__(self) -> None:
        self._deltas: list[Event] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._token_ids: list[int] = []
        self._tokens = 0
        self._has_all_ids = True
        self._has_tool_calls = False
        self._started: Started | None = None
        self._finish_reason: FinishReason | None = None

    def add(self, events: Sequence[Event]) -> None:
        """Takes what is passed on."""
        # Once per token: whatever has to be found out is found out later.
        self._deltas += events
        if len(self._deltas) >= _FOLD:
            self._fold()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the choice has ended; None while it goes on."""
        self._fold()
        return self._finish_reason

    @property
    def has_all_token_ids(self) -> bool:
        """Whether the id of every token was told."""
        self._fold()
        return self._has_all_ids

    @property
    def tokens(self) -> int:
        """Tokens so far; where no ids were told, deltas, which is about the same."""
        self._fold()
        return self._tokens

    def continuation(self) -> Continuation | None:
        """What another worker must know to go on; None when it would be wrong to.

        In the middle of a tool call it would: what was said of it cannot be said again as text.
        """
        self._fold()
        if self._has_tool_calls:
            return None
        ids = tuple(self._token_ids) if self._has_all_ids else ()
        return Continuation("".join(self._text), "".join(self._reasoning), ids)

    def finished(self) -> Finished:
        """The end that an answer would have had whose choice has ended."""
        return self.completed(Finished(0, 0, self.tokens))

    def completed(self, end: Finished) -> Finished:
        """The end that another worker told, with what the first one said of the prompt where that one knows nothing."""
        self._fold()
        if end.prompt_tokens or self._started is None:
            return end
        return Finished(self._started.prompt_tokens, self._started.cached_tokens, end.output_tokens)

    def _fold(self) -> None:
        deltas, self._deltas = self._deltas, []
        for event in deltas:
            if type(event) is Delta:
                _, text, token_ids, reasoning, tool_calls, _, finish_reason = event
                if text:
                    self._text.append(text)
                if reasoning:
                    self._reasoning.append(reasoning)
                if token_ids:
                    self._token_ids += token_ids
                    self._tokens += len(token_ids)
                elif text or reasoning:
                    self._has_all_ids = False
                    self._tokens += 1
                if tool_calls:
                    self._has_tool_calls = True
                if finish_reason is not None:
                    self._finish_reason = finish_reason
            elif type(event) is Started and self._started is None:
                self._started = event
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        if len(self._reasoning) > 1:
            self._reasoning = ["".join(self._reasoning)]
