"""What the servers have to do, added up. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.engine import EngineLoad
from worker.engines.openai.errors import BadEnd
from worker.engines.openai.upstream import Upstream


def total_load(upstreams: Sequence[Upstream], bad_ends: Mapping[BadEnd, int]) -> EngineLoad:
    """The load of all servers that are ready, as if they were one, and how often they let requests down."""
    ready = [upstream for upstream in upstreams if upstream.is_ready]
    speeds = [speed for upstream in ready if (speed := upstream.meter.prefill_tokens_per_s) > 0]
    steps = [step for upstream in ready if (step := upstream.meter.step_time_ms) > 0]
    queued = sum(upstream.crowd.foreign.queued for upstream in ready)
    running = sum(upstream.crowd.foreign.running for upstream in ready)
    tokens = [upstream.meter.prompt_tokens for upstream in ready if upstream.meter.prompt_tokens]
    # Nobody tells how long the prompts of others are: like ours, for want of anything better.
    mean_prompt = sum(tokens) / len(tokens) if tokens else 0.0
    return EngineLoad(
        faults={how.value: count for how, count in bad_ends.items()},
        unready=bool(upstreams) and not ready,
        kv_used_blocks=sum(upstream.kv_used_blocks for upstream in ready),
        # A server whose speed is not known yet is taken for one like the others.
        prefill_tokens_per_s=sum(speeds) / len(speeds) * len(ready) if speeds else 0.0,
        step_time_ms=sum(steps) / len(steps) if steps else 0.0,
        other_queued_requests=queued,
        other_running_requests=running,
        other_queued_prompt_tokens=round(queued * mean_prompt),
        other_tokens_in_flight=round((queued + running) * mean_prompt),
    )
