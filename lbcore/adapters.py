"""Which LoRA adapters a worker has loaded, and how long it takes to load one: beliefs, made of what was sent where.

An engine keeps so many adapters ready and loads any other when a request for it begins, in place of the one that was
used least recently; its whole batch waits meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from lbcore.ewma import DecayingAverage

PRIOR_LOAD_MS = 100.0
"""Assumed while nobody has seen an adapter being loaded here: some hundred megabytes out of the memory of the machine,
and a few steps that were not prepared for it."""

MOST_LOAD_MS = 60_000.0
"""What took longer was not the loading."""


class Loading(NamedTuple):
    """What a request for an adapter that is not loaded makes a worker do."""

    own_ms: float
    """Loading it, in milliseconds."""
    again_ms: float
    """Loading the one again that has to make room for it; 0 while there is room."""


class LoadedAdapters:
    """Those of one worker, as many as it has slots, last used last."""

    __slots__ = ("_load_ms", "_names", "_slots")

    def __init__(self, slots: int) -> None:
        """`slots` is 0 for a worker that does not say: there everything counts as loaded."""
        self._slots = slots
        self._names: OrderedDict[str, None] = OrderedDict()
        # An hour, because the time belongs to the machine; the prior counts as two adapters that were seen.
        self._load_ms = DecayingAverage(prior=PRIOR_LOAD_MS, prior_weight=2.0, tau_s=3600.0)

    def loading(self, name: str, now: float) -> Loading | None:
        """What a request for this adapter costs beside its prompt; None when it is loaded."""
        if not self._slots or name in self._names:
            return None
        load_ms = max(0.0, self._load_ms.read(now))
        return Loading(load_ms, load_ms if len(self._names) >= self._slots else 0.0)

    def use(self, name: str) -> None:
        """A request for this adapter is on its way."""
        if not self._slots:
            return
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._slots:
            self._names.popitem(last=False)

    def took(self, load_ms: float, now: float) -> None:
        """A first token for which an adapter had to be loaded came so much later than its prompt alone explains."""
        # Earlier counts too, or the errors of the prediction would add up to a loading.
        self._load_ms.observe(min(MOST_LOAD_MS, max(-MOST_LOAD_MS, load_ms)), now)
