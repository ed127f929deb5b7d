"""One choice of an answer: makes deltas of the tokens that its sequence gains. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lbcore.generation import Delta, FinishReason, TokenLogprob
from worker.engines.stop import StopFilter
from worker.engines.transformers.detokenizer import Detokenizer


class Choice:
    """Its deltas, one for each time that it gains tokens; after the one with a finish reason there are none.

    `ends` are the tokens that end it. They count as its tokens, and their text is not part of it. A stop string counts
    only behind the first `min_tokens` tokens.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stop: Sequence[str],
        ends: Collection[int],
        min_tokens: int = 0,
    ) -> None:
        self.tokens = 0
        self.ended = False
        self._index = index
        self._detokenizer = detokenizer
        self._stop = StopFilter(stop) if stop else None
        self._ends = ends
        self._min_tokens = min_tokens

    def recall(self, texts: Sequence[str]) -> str:
        """Takes the texts of the first tokens, which the detokenizer knows. What is sure to be part of its text."""
        sure = []
        for text in texts:
            self.tokens += 1
            sure.append(self._filtered(text))
            if self.stopped:
                break
        return "".join(sure)

    def gain(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], is_last: bool) -> Delta:
        """`logprobs` has one for each token, or none at all. Tokens behind a stop string are left out."""
        texts = []
        reason = FinishReason.STOP if self.stopped else None
        before = self.tokens
        for token in tokens:
            self.tokens += 1
            if token in self._ends:
                reason = FinishReason.STOP
                break
            texts.append(self._filtered(self._detokenizer.feed(token)))
            if self.stopped:
                reason = FinishReason.STOP
                break
        if (reason is not None or is_last) and not self.stopped:
            texts.append(self._filtered(self._detokenizer.flush()))
            # What was held back as the last character may have completed a stop string.
            reason = FinishReason.STOP if self.stopped else reason or FinishReason.LENGTH
            texts.append(self._stop.flush() if self._stop is not None else "")
        taken = self.tokens - before
        self.ended = reason is not None
        return Delta(
            self._index, "".join(texts), tuple(tokens[:taken]), logprobs=tuple(logprobs[:taken]), finish_reason=reason
        )

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stop is not None and self._stop.stopped

    def _filtered(self, text: str) -> str:
        if self._stop is None or self.tokens <= self._min_tokens:
            return text
        return self._stop.feed(text)
