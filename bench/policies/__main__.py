"""Every serious policy against every workload, in the simulator: the tables of docs/simulator.md.

    python -m bench.policies --traces FOLDER --json FILE
    python -m bench.policies --json FILE --print

FOLDER has the public traces under the names in TRACES; without one only made-up traffic is played. Results go to FILE
as they come, and what is in it already is not played again: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.policies.incidents import TABLES
from bench.policies.tables import Case, Row, against, missing, overview
from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.simulator.compare import compare
from lbcore.simulator.generate import GENERATORS
from lbcore.simulator.outcome import Objective
from lbcore.simulator.replay import FleetSpec
from lbcore.simulator.traces import read_trace
from lbcore.simulator.workload import Workload

TRACES: Mapping[str, tuple[str, str]] = {
    "conversation": ("mooncake_conversation.jsonl.gz", "mooncake"),
    "servegen": (".", "servegen"),
    "azure": ("azure2023_conv.csv.gz", "azure"),
    "agentic": ("agentic_claude_code_rle_first355.jsonl.gz", "agentic"),
}
"""File and format of each trace."""

TRAFFIC = ("bursts", "long_mix", "system_prompts", "multi_turn", "one_prefix", "poisson")

POLICIES = (
    DEFAULT_POLICY,
    "lmetric",
    "cached_process_token",
    "preble",
    "gie",
    "dynamo_cost",
    "prefix_affinity",
    "sglang_cache_aware",
    "cache_aware",
    "aibrix_prefix",
    "vllm_dp",
    "process_tokens",
    "least_requests",
    "power_of_two",
    "consistent_hash",
    "prequal",
)

CLOSED_CALLS_PER_WORKER = 500
"""Of a closed loop: some two conversations of each of its users, who are more where there are more workers."""


def make(name: str, traces: Path | None, calls: int, workers: int) -> Workload:
    """A workload by its name."""
    if name in GENERATORS:
        return GENERATORS[name](calls, 1)
    assert traces is not None
    file, form = TRACES[name]
    workload = read_trace(traces / file, form)
    return workload.first(CLOSED_CALLS_PER_WORKER * workers if workload.users else calls)


def play(cases: Sequence[Case], rows: Sequence[Row], traces: Path | None, calls: int, processes: int) -> Iterator[Row]:
    """Rows of these cases, in their order; capacities that `rows` have are not searched for again."""
    capacities = {(row["workload"], row["workers"]): row["capacity"] for row in rows}
    for workload, workers, load in dict.fromkeys(case[:3] for case in cases):
        policies = [case[3] for case in cases if case[:3] == (workload, workers, load)]
        made = [(workload, partial(make, workload, traces, calls, workers))]
        known = {name: found for (name, size), found in capacities.items() if size == workers}
        fleet = FleetSpec(workers)
        for one in compare(made, [load], policies, fleet, Objective(), processes=processes, capacities=known):
            capacities[workload, workers] = one.capacity
            yield {
                "workload": workload,
                "workers": workers,
                "load": load,
                "policy": one.case.policy,
                "capacity": one.capacity,
                "users": one.users,
                "outcome": asdict(one.outcome),
            }


def show(content: Mapping[str, Any]) -> None:
    """All tables of what a file holds."""
    rows = content["rows"]
    traces = [row for row in rows if row["workload"] in TRACES]
    made_up = [row for row in rows if row["workload"] not in TRACES]
    for workers, load in dict.fromkeys((row["workers"], row["load"]) for row in rows):
        print(f"\n### {workers} workers at {load:.0%} of capacity")
        for text in (overview(traces, workers, load), overview(made_up, workers, load)):
            print(f"\n{text}" if text else "")
        print(f"\n{against(rows, workers, load, ('sglang_cache_aware', 'dynamo_cost', 'gie', 'lmetric'))}")
    for title, text in content["incidents"].items():
        print(f"\n### {title}\n\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder of the public traces")
    parser.add_argument("--json", type=Path, required=True, help="where results are kept")
    parser.add_argument("--workloads", default=",".join((*TRACES, *TRAFFIC)))
    parser.add_argument("--policies", default=" ".join(POLICIES))
    parser.add_argument("--workers", default="8,16")
    parser.add_argument("--loads", default="0.9,1.05,0.7")
    parser.add_argument("--calls", type=int, default=4000, help="calls of each workload but a closed loop's")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="show what is there, play nothing")
    given = parser.parse_args()
    content = json.loads(given.json.read_text()) if given.json.exists() else {"rows": [], "incidents": {}}
    names = [name for name in given.workloads.split(",") if given.traces or name in GENERATORS]
    cases = [
        (name, int(workers), float(load), policy)
        for workers in given.workers.split(",")
        for load in given.loads.split(",")
        for name in names
        for policy in given.policies.split()
    ]

    def keep(what: str) -> None:
        given.json.write_text(json.dumps(content, indent=1))
        print(what, file=sys.stderr, flush=True)

    if not given.print:
        there = list(content["rows"])
        for row in play(missing(there, cases), there, given.traces, given.calls, given.processes):
            content["rows"].append(row)
            keep(f"{row['workload']} {row['workers']} {row['load']} {row['policy']}")
        for title, table in TABLES.items():
            if title not in content["incidents"]:
                content["incidents"][title] = table()
                keep(title)
    show(content)


if __name__ == "__main__":
    main()
