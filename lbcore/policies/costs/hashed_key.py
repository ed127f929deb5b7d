"""The same worker for the same key, while it has no more than its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from xxhash import xxh3_64_intdigest

from lbcore.policies.base import parameter
from lbcore.policies.measures import requests_in_flight
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class HashedKey:
    """A hash of worker and key, between 0 and 1; 2 more at a worker that already has its share of the requests.

    A worker that comes takes keys only to itself, and the keys of one that goes spread over all (rendezvous hashing:
    Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; with a bound as in Mirrokni, Thorup
    and Zadimoghaddam, "Consistent hashing with bounded loads", 2018). The key is the session, or else the first block
    of the prompt; a request without either goes by the requests in flight.
    """

    bound: float = parameter(1.25, least=1.0)
    """How many times the mean of the requests in flight, this one counted, a worker may have; SGLang's gateway."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        loads = requests_in_flight(candidates)
        key = xxh3_64_intdigest(request.session_id.encode()) if request.session_id else request.prefix_key
        if not key:
            return loads
        share = ceil(self.bound * (sum(loads) + 1) / max(1, len(loads)))
        return [
            xxh3_64_intdigest(candidate.spec.worker_id.encode(), key) * 2.0**-64 + (2.0 if load >= share else 0.0)
            for candidate, load in zip(candidates, loads, strict=True)
        ]
