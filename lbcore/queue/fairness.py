"""Who of several tenants is served next: the one that was served least.

After Sheng et al., "Fairness in serving large language models" (OSDI 2024): each tenant has a counter of the service it
got, and the least counter goes first; one that comes back after a pause is lifted to the least counter of those that
wait, so that nobody saves up. Service is counted in uncached prompt tokens, which is what a queue delays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_TENANTS = 10_000
"""Tenants remembered; the one served longest ago is forgotten, and comes back as a new one."""


class ServiceCounters:
    """Tokens of service by tenant."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, float] = OrderedDict()

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """`tenant` begins to wait, where these others do already."""
        least = min((self.of(other) for other in waiting), default=None)
        if least is not None and self.of(tenant) < least:
            self._served[tenant] = least

    def charge(self, tenant: str, tokens: float) -> None:
        """So much work of `tenant` was dispatched."""
        self._served[tenant] = self.of(tenant) + tokens
        self._served.move_to_end(tenant)
        if len(self._served) > MAX_TENANTS:
            self._served.popitem(last=False)

    def of(self, tenant: str) -> float:
        """What it got so far."""
        return self._served.get(tenant, 0.0)
