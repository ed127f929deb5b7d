"""What a run comes to, real or simulated, by the same arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean

from lbcore.simulator.outcome import Objective, Spread, spread
from lbcore.simulator.replay import Played

OBJECTIVE = Objective(ttft_ms=1000.0, tpot_ms=100.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it; times in seconds from the begin of the run."""

    asked_s: float
    """When it was to be asked."""
    first_s: float = -1.0
    last_s: float = -1.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Empty for a whole answer."""

    @property
    def ttft_ms(self) -> float:
        return (self.first_s - self.asked_s) * 1000

    @property
    def tpot_ms(self) -> float:
        """Of the tokens behind the first; 0 where there is none."""
        more = self.output_tokens - 1
        return (self.last_s - self.first_s) * 1000 / more if more > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run."""

    calls: int
    failed: int
    ttft: Spread
    tpot: Spread
    goodput: float
    """Which part of the calls was answered inside the objective."""
    hit_rate: float
    """Which part of the prompt tokens was cached, as the answers' usage says."""
    requests: tuple[int, ...]
    """Of each worker, those left out of the other figures too."""


def figures(
    answers: Sequence[Answer], requests: Sequence[int], skip: int = 0, objective: Objective = OBJECTIVE
) -> Figures:
    """Of all but the first `skip` answers, which stand in the order in which they were to be asked."""
    counted = answers[skip:]
    good = [answer for answer in counted if not answer.error]
    served = sum(answer.ttft_ms < objective.ttft_ms and answer.tpot_ms < objective.tpot_ms for answer in good)
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    return Figures(
        calls=len(counted),
        failed=len(counted) - len(good),
        ttft=spread([answer.ttft_ms for answer in good]),
        tpot=spread([answer.tpot_ms for answer in good if answer.output_tokens > 1]),
        goodput=served / len(counted) if counted else 0.0,
        hit_rate=sum(answer.cached_tokens for answer in good) / prompt_tokens if prompt_tokens else 0.0,
        requests=tuple(requests),
    )


def played_figures(played: Played, skip: int = 0, objective: Objective = OBJECTIVE) -> Figures:
    """Of a replay: what its clients would have seen."""
    answers = [
        Answer(
            flight.asked_at,
            flight.first_at,
            flight.finished_at,
            flight.call.input_tokens,
            flight.cached_tokens,
            flight.call.output_tokens,
            flight.refused,
        )
        for flight in played.flights
    ]
    workers = [flight.worker for flight in played.flights]
    return figures(answers, [workers.count(worker.name) for worker in played.workers], skip, objective)


def rank_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Spearman's, over the names that both have: 1 where both put them in the same order, -1 where in opposite ones.

    Raises:
        StatisticsError: fewer than two names, or all equal.
    """
    names = [name for name in one if name in other]
    return correlation(_ranks([one[name] for name in names]), _ranks([other[name] for name in names]))


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in order, from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [fmean([place for place, value in enumerate(ordered, 1) if value == own]) for own in values]
