"""The greatest declared speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbcore.policies.measures import declared_speeds
from lbcore.types import Endpoint, PickRequest, Snapshot


@dataclass(frozen=True, slots=True)
class DeclaredSpeed:
    """The declared speed, below 0: for a picker that gives everybody a share by it."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        return [-speed for speed in declared_speeds(candidates)]
