"""Who of several tenants is served next: the one that was served least.

After Sheng et al., "Fairness in serving large language models" (OSDI 2024): each tenant has a counter of the service it
got, and the least counter goes first. One that comes back after a pause is lifted to where the counter of the last one
that was served stood, so that nobody saves up. Service is counted in uncached prompt tokens, which is what a queue
delays.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_TENANTS = 10_000
"""Tenants remembered; the one seen longest ago is forgotten, and comes back as a new one."""


class ServiceCounters:
    """Tokens of service by tenant. Requests without a tenant are one tenant like any other."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, float] = OrderedDict()
        self._floor = 0.0
        """The greatest counter with which a tenant was served so far; who is below it was not there to be served."""

    def lift(self, tenant: str) -> None:
        """`tenant` begins to wait, after a pause or for the first time."""
        self._set(tenant, max(self.of(tenant), self._floor))

    def charge(self, tenant: str, tokens: float) -> None:
        """So much work of `tenant` was dispatched."""
        served = self.of(tenant)
        self._floor = max(self._floor, served)
        self._set(tenant, served + tokens)

    def of(self, tenant: str) -> float:
        """What it got so far."""
        return self._served.get(tenant, 0.0)

    def _set(self, tenant: str, served: float) -> None:
        self._served[tenant] = served
        self._served.move_to_end(tenant)
        if len(self._served) > MAX_TENANTS:
            self._served.popitem(last=False)
