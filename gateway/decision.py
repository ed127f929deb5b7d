"""Why a request went where it went, as the header of its answer. Pure."""

from __future__ import annotations

import json
from typing import Any

from lbcore.types import Candidate, Route

HEADER = "X-LB-Decision"

SHOWN = 8
"""Candidates in it, the cheapest."""

MAX_BYTES = 3500
"""Of its value: some clients and proxies take no more than 4 KB of headers."""

_MAX_TEXT = 80
"""Characters of each text where the whole would be too long: written as JSON's escapes a character has twelve bytes."""


def decision_header(route: Route) -> str:
    """Compact JSON in ASCII, at most `MAX_BYTES` long whatever is in the route."""
    explanation = route.explanation
    said: dict[str, Any] = {"worker": route.target.worker_id}
    if explanation is None:
        said["reason"] = "the scheduler could not be asked; the last decision named this worker as another that could"
        return _bounded(said)
    said["policy"] = explanation.policy
    said["predicted_ttft_ms"] = round(route.predicted_ttft_ms, 1)
    said["waited_ms"] = round(explanation.waited_ms, 1)
    said["prompt_tokens"] = explanation.prompt_tokens
    said["reason"] = explanation.reason
    weighed = [one for one in explanation.candidates if not one.excluded_by][:SHOWN]
    for count in range(len(weighed), -1, -1):
        text = _json({**said, "candidates": [_candidate(one) for one in weighed[:count]]})
        if len(text) <= MAX_BYTES:
            return text
    return _bounded(said)


def _candidate(one: Candidate) -> dict[str, Any]:
    said: dict[str, Any] = {"worker": one.worker_id, "cost": _short(one.cost), "cached": round(one.cached_tokens)}
    largest_first = sorted(one.terms.items(), key=lambda term: -abs(term[1]))
    terms = {name: _short(term) for name, term in largest_first if _short(term)}
    return {**said, "terms": terms} if terms else said


def _short(number: float) -> float:
    return round(number, 1) if abs(number) >= 10 else round(number, 3)


def _bounded(said: dict[str, Any]) -> str:
    text = _json(said)
    if len(text) <= MAX_BYTES:
        return text
    return _json({name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in said.items()})


def _json(said: dict[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))
