"""What vLLM's scheduler says of itself after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbcore.generation import Finished
from worker.engines.vllm.speed import EngineSpeed


class CoreStatistics:
    """The last word of every engine core (there are several with data parallelism), summed up."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._kv_usage: dict[int, float] = {}
        self.blocks_filled = 0
        """KV blocks that were filled up to their end and can be found again, as far as nothing has taken their place;
        vLLM takes blocks that were never used first."""

    @property
    def running(self) -> int:
        """Sequences that are being computed."""
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        return sum(self._waiting.values())

    @property
    def kv_usage(self) -> float:
        """The share of all KV blocks that running sequences hold, from 0 to 1."""
        return sum(self._kv_usage.values()) / len(self._kv_usage) if self._kv_usage else 0.0

    def said(self, core: int, running: int, waiting: int, kv_usage: float) -> None:
        """One engine core's numbers after a step."""
        self._running[core], self._waiting[core], self._kv_usage[core] = running, waiting, kv_usage

    def filled(self, usage: Finished, block_size: int) -> None:
        """A request has ended and left its blocks behind; those it found in the cache were there before."""
        whole = (usage.prompt_tokens + usage.output_tokens) // block_size
        self.blocks_filled += max(0, whole - usage.cached_tokens // block_size)


def logger_factory(statistics: CoreStatistics, speed: EngineSpeed, stepped: Callable[[], None]) -> Any:
    """A factory of vLLM's stat loggers, which hear of every step on the event loop's thread."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Listener(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                statistics.said(
                    engine_idx,
                    scheduler_stats.num_running_reqs,
                    scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                    scheduler_stats.kv_cache_usage,
                )
            # A step that ends a prefill says little of how long one that only decodes takes.
            if iteration_stats is not None and not iteration_stats.time_to_first_tokens_iter:
                speed.stepped(iteration_stats.inter_token_latencies_iter)
            stepped()

        def log_engine_initialized(self) -> None:
            pass

    return Listener
