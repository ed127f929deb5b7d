"""Fleets that are not as they should be, in the simulator: old reports, slow halves, slow minutes, deaths.

    python -m bench.policies.incidents

Made-up traffic before eight workers at 90 % of what they can take when nothing happens to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import build_policy
from lbcore.simulator.capacity import at_load, capacity
from lbcore.simulator.generate import GENERATORS
from lbcore.simulator.outcome import Objective, Outcome, summarise
from lbcore.simulator.replay import FleetSpec, Incident, Played, Replay
from lbcore.simulator.worker import Flight
from lbcore.simulator.workload import Workload

POLICIES = (DEFAULT_POLICY, "lmetric", "gie", "dynamo_cost", "sglang_cache_aware", "least_requests")
WORKERS = 8
LOAD = 0.9
CALLS = 4000
LONG_CALLS = 8000
"""Where something happens again and again: some ten minutes of traffic."""
AGES_MS = (0, 10, 100, 1000)
SLOW_FACTOR, SLOW_S = 5.0, 60.0
DEAD_S = 60.0
EVERY_S = 150.0
"""From one incident to the next: what it left behind is over by then."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a replay, in seconds from an incident on."""

    begin_s: float
    end_s: float


def in_span(flights: Sequence[Flight], moments: Sequence[float], span: Span) -> list[list[Flight]]:
    """For each moment those that were sent to a worker in this span after it."""
    return [
        [flight for flight in flights if moment + span.begin_s <= flight.sent_at < moment + span.end_s]
        for moment in moments
    ]


def share(flights: Sequence[Flight], incidents: Sequence[Incident], span: Span) -> float:
    """Which part of the new prompt tokens went to the worker it happened to, over what it would be for each of the
    fleet alike: 1 is as much as the others get."""
    spans = in_span(flights, [incident.at_s for incident in incidents], span)
    here = everywhere = 0
    for incident, sent in zip(incidents, spans, strict=True):
        for flight in sent:
            new = flight.call.input_tokens - flight.cached_tokens
            everywhere += new
            here += new if flight.worker == f"w{incident.worker:03}" else 0
    return WORKERS * here / everywhere if everywhere else 0.0


def ttft_ms(flights: Sequence[Flight], incidents: Sequence[Incident], span: Span) -> float:
    """Mean time to first token of those asked in this span after an incident."""
    asked = [
        (flight.first_at - flight.asked_at) * 1000
        for incident in incidents
        for flight in flights
        if not flight.refused and incident.at_s + span.begin_s <= flight.asked_at < incident.at_s + span.end_s
    ]
    return fmean(asked) if asked else 0.0


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@cache
def workload(kind: str, speeds: tuple[float, ...] = (), calls: int = CALLS) -> Workload:
    """At 90 % of what eight workers of these speeds can take."""
    made = GENERATORS[kind](calls, 1)
    fleet = FleetSpec(WORKERS, speeds=speeds)
    found = capacity(made, fleet, lambda: build_policy(DEFAULT_POLICY), Objective().tpot_ms)
    return at_load(made, LOAD, found)


def play(kind: str, policy: str, fleet: FleetSpec) -> Played:
    calls = LONG_CALLS if fleet.incidents else CALLS
    return Replay(workload(kind, tuple(fleet.speeds), calls), fleet, build_policy(policy)).run()


def outcome(kind: str, policy: str, fleet: FleetSpec) -> Outcome:
    played = play(kind, policy, fleet)
    return summarise(played, Objective(), len(played.flights) // 20)


def figures(found: Outcome) -> str:
    return f"{found.ttft.mean:,.0f} / {found.ttft.p99:,.0f} · {found.goodput:.2f}"


def old_reports() -> str:
    """`system_prompts`, by the age of reports."""
    fleet = FleetSpec(WORKERS)
    fleets = [replace(fleet, report_delay_s=age / 1000) for age in AGES_MS]
    return table(
        ["policy", *(f"{age:,} ms" for age in AGES_MS)],
        [[f"`{policy}`", *(figures(outcome("system_prompts", policy, one)) for one in fleets)] for policy in POLICIES],
    )


def half_slow() -> str:
    """Four workers at half the speed of the others, of which nobody is told."""
    speeds = (1.0,) * (WORKERS // 2) + (0.5,) * (WORKERS // 2)
    kinds = ("poisson", "multi_turn", "long_mix")
    return table(
        ["policy", *(f"`{kind}`" for kind in kinds)],
        [
            [f"`{policy}`", *(figures(outcome(kind, policy, FleetSpec(WORKERS, speeds=speeds))) for kind in kinds)]
            for policy in POLICIES
        ],
    )


def moments(kind: str) -> list[float]:
    """When something happens: again and again, while there is traffic for it to end in."""
    last = workload(kind, calls=LONG_CALLS).conversations[-1].at_s
    return [at for at in (60.0 + EVERY_S * number for number in range(WORKERS)) if at + SLOW_S + DEAD_S < last]


def slow_minute() -> str:
    """Workers in turn become five times slower for a minute: what new work they get, and what it costs."""
    kind = "system_prompts"
    slowed = [Incident(at, number, "slow", SLOW_FACTOR) for number, at in enumerate(moments(kind))]
    back = [Incident(one.at_s + SLOW_S, one.worker, "slow", 1.0) for one in slowed]
    fleet = FleetSpec(WORKERS, incidents=(*slowed, *back))
    rows = []
    for policy in POLICIES:
        flights = play(kind, policy, fleet).flights
        shares = [share(flights, slowed, one) for one in (Span(0, 2), Span(2, 10), Span(10, SLOW_S))]
        shares += [share(flights, back, one) for one in (Span(0, 2), Span(2, 20))]
        waits = [ttft_ms(flights, slowed, one) for one in (Span(-30, 0), Span(0, SLOW_S))]
        rows.append([f"`{policy}`", *(f"{one:.2f}" for one in shares), *(f"{one:,.0f}" for one in waits)])
    heads = ("policy", "first 2 s", "2 to 10 s", "10 to 60 s", "2 s after", "2 to 20 s after")
    return table([*heads, "TTFT before, ms", "in the minute, ms"], rows)


def death() -> str:
    """Workers in turn die and come back a minute later with nothing in their caches."""
    kind = "system_prompts"
    dies = [Incident(at, number, "die") for number, at in enumerate(moments(kind))]
    back = [Incident(one.at_s + DEAD_S, one.worker, "start") for one in dies]
    fleet = FleetSpec(WORKERS, incidents=(*dies, *back))
    rows = []
    for policy in POLICIES:
        flights = play(kind, policy, fleet).flights
        waits = [ttft_ms(flights, dies, one) for one in (Span(-30, 0), Span(0, DEAD_S), Span(DEAD_S, DEAD_S + 30))]
        shares = [share(flights, back, one) for one in (Span(0, 2), Span(2, 20))]
        again = sum(bool(flight.tried) for flight in flights)
        rows.append([f"`{policy}`", *(f"{one:,.0f}" for one in waits), *(f"{one:.2f}" for one in shares), str(again)])
    heads = ("policy", "TTFT before, ms", "while it is gone, ms", "30 s after its return, ms")
    return table([*heads, "its share in 2 s", "2 to 20 s", "calls tried again"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "Age of reports": old_reports,
    "Half of the fleet at half speed": half_slow,
    "Five times slower for a minute": slow_minute,
    "Death and cold restart": death,
}
"""Each with its title."""


def main() -> None:
    for title, make in TABLES.items():
        print(f"### {title}\n\n{make()}\n", flush=True)


if __name__ == "__main__":
    main()
