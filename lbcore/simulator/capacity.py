"""How much of a workload a fleet can take: found by giving it more, until its answers come too slowly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from heapq import heapreplace
from statistics import fmean

from lbcore.policies.base import Policy
from lbcore.router import QueueLimits
from lbcore.simulator.outcome import summarise
from lbcore.simulator.replay import ENDLESS, FleetSpec, Played, Replay
from lbcore.simulator.worker import EngineSpec
from lbcore.simulator.workload import Call, Conversation, Workload

FIRST_IN_FLIGHT = 4
"""Calls for each worker with which the search begins; it doubles from there."""

KV_SHARE = 0.75
"""How much of a KV cache the calls in flight may need together."""

FIRST_KV_SHARE = 0.5
"""How much of all KV caches the users need together with whom the search begins: contexts stay there while users think,
and where they fit no more every answer costs a whole prompt."""

STEP = 1.25
"""How many times more, or fewer, users it tries until it has found too many and not too many."""

PRECISION = 1 / 16
"""Of the number of users that is found."""

IN_PROPORTION = 0.9
"""Of the calls that users would have answered with an engine each, so many are answered while calls grow in proportion
to users."""

WATCHED_S = 3600.0
"""How long a closed loop is watched, of which the second half counts: some 50 calls of each user where agents work for
10 to 60 seconds on their own between two calls."""


def capacity(
    workload: Workload,
    fleet: FleetSpec,
    policy: Callable[[], Policy],
    tpot_ms: float,
    limits: QueueLimits = ENDLESS,
) -> float:
    """Calls per second of an open loop, users of a closed one."""
    if workload.users:
        return users(workload, fleet, policy, tpot_ms, limits)
    return calls_per_s(workload, fleet, policy, tpot_ms, limits)


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
    most = max(1, min(fleet.engine.max_num_seqs, int(KV_SHARE * fleet.engine.kv_tokens / _call_tokens(workload))))
    in_flight = min(FIRST_IN_FLIGHT, most)
    rate, took_ms = _with_in_flight(workload, fleet, policy, limits, in_flight)
    while in_flight < most and took_ms < tpot_ms:
        before, before_ms = rate, took_ms
        in_flight = min(2 * in_flight, most)
        rate, took_ms = _with_in_flight(workload, fleet, policy, limits, in_flight)
        if took_ms > tpot_ms:
            return before + (rate - before) * (tpot_ms - before_ms) / (took_ms - before_ms)
    return rate


def users(
    workload: Workload,
    fleet: FleetSpec,
    policy: Callable[[], Policy],
    tpot_ms: float,
    limits: QueueLimits = ENDLESS,
) -> int:
    """With how many users of a closed loop the calls that are answered still grow in proportion to them, at no more
    than this mean time per token.

    In proportion means: at least nine in ten of the calls that the same users would have answered in the same time if
    each had an engine to itself whose cache forgets nothing. Whatever else they wait for is the fleet's doing.
    """
    at_most = len(workload.conversations)

    def is_well(number: int) -> bool:
        closed = replace(workload, users=number)
        played = Replay(closed, replace(fleet, incidents=()), policy(), limits=limits).run(WATCHED_S)
        late = [flight for flight in played.flights if flight.finished_at >= WATCHED_S / 2]
        tpot = summarise(Played(late, played.duration_s, played.workers)).tpot.mean
        return tpot <= tpot_ms and len(late) >= IN_PROPORTION * calls_alone(
            closed, fleet.engine, WATCHED_S / 2, WATCHED_S
        )

    fitting = fleet.workers * fleet.engine.kv_tokens / _call_tokens(workload)
    number = max(1, min(at_most, round(FIRST_KV_SHARE * fitting)))
    well, ill = (number, 0) if is_well(number) else (0, number)
    while not ill and well < at_most:
        number = min(at_most, max(well + 1, round(well * STEP)))
        well, ill = (number, 0) if is_well(number) else (well, number)
    while ill > 1 and not well:
        number = min(ill - 1, round(ill / STEP))
        well, ill = (number, ill) if is_well(number) else (0, number)
    while ill and ill - well > max(1.0, PRECISION * well):
        number = (well + ill) // 2
        well, ill = (number, ill) if is_well(number) else (well, number)
    return max(1, well)


def calls_alone(workload: Workload, engine: EngineSpec, begin_s: float, end_s: float) -> int:
    """How many calls the users of a closed loop have answered between two moments if each has an engine to itself whose
    cache forgets nothing."""
    free_at = [0.0] * workload.users
    answered = 0
    for talk in workload.conversations:
        now = free_at[0]
        if now >= end_s:
            break
        for call, took_s in zip(talk.calls, _alone_s(talk, engine, workload.block_tokens), strict=True):
            now += call.think_s + took_s
            answered += took_s > 0.0 and begin_s <= now < end_s
        heapreplace(free_at, now)
    return answered


def at_load(workload: Workload, load: float, capacity: float) -> Workload:
    """The workload at so many times the capacity: started faster or slower, or with more or fewer users."""
    if workload.users:
        return replace(workload, users=max(1, round(load * capacity)))
    span = workload.conversations[-1].at_s - workload.conversations[0].at_s
    return workload.faster(load * capacity * span / workload.calls)


def _call_tokens(workload: Workload) -> float:
    return fmean(call.input_tokens + call.output_tokens for talk in workload.conversations for call in talk.calls)


def _alone_s(talk: Conversation, engine: EngineSpec, block_tokens: int) -> list[float]:
    """Seconds from each call to its whole answer; 0 for one that no engine of this kind takes."""
    held: set[int] = set()
    times = []
    for call in talk.calls:
        if not engine.fits(call, block_tokens):
            times.append(0.0)
            continue
        whole = (call.input_tokens - 1) // block_tokens
        hit = next((place for place, block in enumerate(call.blocks[:whole]) if block not in held), None)
        cached = block_tokens * (min(whole, len(call.blocks)) if hit is None else hit)
        times.append(_answer_ms(call, cached, engine) / 1000)
        held.update(call.blocks)
    return times


def _answer_ms(call: Call, cached: int, engine: EngineSpec) -> float:
    """Of a call of which so many prompt tokens are cached, with the engine to itself."""
    step_time = engine.step_time
    prompt, more = call.input_tokens, call.output_tokens - 1
    steps = -(-(prompt - cached) // engine.token_budget)
    prefill_ms = step_time.of(prompt - cached, (prompt**2 - cached**2) / 2, 0, 0) + (steps - 1) * step_time.base_ms
    return prefill_ms + more * step_time.of(0, 0.0, 1, round(prompt + more / 2))


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
