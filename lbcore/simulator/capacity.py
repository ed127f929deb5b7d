"""How much of a workload a fleet can take: found by giving it more, until its tokens come too slowly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

from lbcore.policies.base import Policy
from lbcore.router import QueueLimits
from lbcore.simulator.outcome import summarise
from lbcore.simulator.replay import ENDLESS, FleetSpec, Replay
from lbcore.simulator.workload import Workload

FIRST_IN_FLIGHT = 4
"""Calls for each worker with which the search begins; it doubles from there."""

KV_SHARE = 0.75
"""How much of a KV cache the calls in flight may need together."""

SERVICE_S = 15.0
"""What a call of a closed loop takes where nobody else is: some 450 tokens at 30 ms, and a prompt."""


def calls_per_s(
    workload: Workload,
    fleet: FleetSpec,
    policy: Callable[[], Policy],
    tpot_ms: float,
    limits: QueueLimits = ENDLESS,
) -> float:
    """What the fleet completes with as many calls in flight as it can serve at this mean time per token, or hold in its
    KV caches, in calls per second.

    The first and the last tenth of the calls are left out: then it fills, and runs empty.
    """
    size = fmean(call.input_tokens + call.output_tokens for talk in workload.conversations for call in talk.calls)
    most = max(1, min(fleet.engine.max_num_seqs, int(KV_SHARE * fleet.engine.kv_tokens / size)))
    in_flight = min(FIRST_IN_FLIGHT, most)
    rate, took_ms = _with_in_flight(workload, fleet, policy, limits, in_flight)
    while in_flight < most and took_ms < tpot_ms:
        before, before_ms = rate, took_ms
        in_flight = min(2 * in_flight, most)
        rate, took_ms = _with_in_flight(workload, fleet, policy, limits, in_flight)
        if took_ms > tpot_ms:
            return before + (rate - before) * (tpot_ms - before_ms) / (took_ms - before_ms)
    return rate


def at_load(workload: Workload, load: float, capacity: float) -> Workload:
    """The workload at so many times the capacity: started faster or slower, or with more or fewer users."""
    if not workload.users:
        span = workload.conversations[-1].at_s - workload.conversations[0].at_s
        return workload.faster(load * capacity * span / workload.calls)
    pauses = fmean(call.think_s for talk in workload.conversations for call in talk.calls)
    return replace(workload, users=max(1, round(load * capacity * (pauses + SERVICE_S))))


def _with_in_flight(
    workload: Workload, fleet: FleetSpec, policy: Callable[[], Policy], limits: QueueLimits, in_flight: int
) -> tuple[float, float]:
    """Calls per second, and mean milliseconds per token."""
    eager = [
        replace(talk, calls=[replace(call, think_s=0.0) for call in talk.calls]) for talk in workload.conversations
    ]
    always = replace(workload, conversations=eager, users=in_flight * fleet.workers)
    played = Replay(always, replace(fleet, incidents=()), policy(), limits=limits).run()
    ends = sorted(flight.finished_at for flight in played.flights if not flight.refused)
    tenth = len(ends) // 10
    rate = (len(ends) - 2 * tenth - 1) / (ends[-tenth - 1] - ends[tenth])
    return rate, summarise(played, skip=tenth).tpot.mean
