"""lbctl simulate: which policy for which traffic, in virtual time and without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from lbcore.config import between, load, option
from lbcore.errors import ConfigError
from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import check_policy
from lbcore.simulator.compare import MakeWorkload, Result, compare
from lbcore.simulator.generate import GENERATORS
from lbcore.simulator.outcome import Objective
from lbcore.simulator.plot import plot
from lbcore.simulator.replay import FleetSpec, Incident
from lbcore.simulator.table import table
from lbcore.simulator.traces import READERS, read_trace
from lbcore.simulator.worker import EngineSpec
from lbcore.simulator.workload import Workload

PROG = "lbctl simulate"


def _policies(text: str) -> str | None:
    for policy in text.split():
        problem = check_policy(policy)
        if problem:
            return problem
    return None if text.split() else "names no policy"


def _loads(words: tuple[str, ...]) -> str | None:
    try:
        good = all(0.0 <= float(word) <= 100.0 for word in words)
    except ValueError:
        good = False
    return None if good else "is not a list of numbers from 0 to 100"


def _speeds(words: tuple[str, ...]) -> str | None:
    try:
        good = all(0.001 <= float(word) <= 1000.0 for word in words)
    except ValueError:
        good = False
    return None if good else "is not a list of numbers from 0.001 to 1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """What traffic, which fleet, which policies, and where the results go."""

    trace: str = option("", metavar="FILE", help="a trace to replay; may be compressed with gzip; servegen is a folder")
    format: str = option("own", choices=tuple(READERS), help="format of the trace")
    traffic: tuple[str, ...] = option(
        (),
        choices=tuple(GENERATORS),
        metavar="KIND,...",
        help="made-up traffic to play, beside the trace or without one",
    )
    calls: int = option(6000, check=between(10, 1_000_000), help="calls of made-up traffic, and at most of the trace")
    loads: tuple[str, ...] = option(
        ("0.7", "0.9", "1.05"),
        check=_loads,
        metavar="X,...",
        help="how much of what the fleet can take comes in; 0 plays a trace as it was recorded",
    )
    policies: str = option(
        f"{DEFAULT_POLICY} least_requests round_robin prefix_affinity",
        check=_policies,
        metavar="'NAME NAME(X=1) ...'",
        help="policies to compare, with blanks between them",
    )
    workers: int = option(8, check=between(1, 10_000), help="workers of the fleet")
    speeds: tuple[str, ...] = option((), check=_speeds, metavar="X,...", help="relative speed of each worker")
    kv_tokens: int = option(1_000_000, check=between(1024, 10**9), help="tokens in the KV cache of each worker")
    max_num_seqs: int = option(256, check=between(1, 100_000), help="sequences that a worker runs at once")
    report_interval_ms: float = option(
        100.0, check=between(0, 60_000), help="pause between two load reports; 0 reports with every step"
    )
    report_delay_ms: float = option(0.0, check=between(0, 60_000), help="age of a report when it arrives")
    prefix_events: bool = option(
        False, help="workers tell what their prefix caches hold, as those of engines with KV-cache events do"
    )
    ttft_ms: float = option(2000.0, check=between(0.001, 1e9), help="time to first token that counts as served well")
    tpot_ms: float = option(100.0, check=between(0.001, 1e9), help="time per further token that does")
    incidents: tuple[str, ...] = option(
        (), metavar="AT:WORKER:KIND[:X],...", help="what happens: kind is slow (X times), die or start; AT in seconds"
    )
    seed: int = option(1, help="seed of chance, in traffic and in picks")
    json: str = option("", metavar="FILE", help="where all figures go")
    svg: str = option("", metavar="FILE", help="where a picture goes")


def simulate(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Runs the comparison and prints its tables.

    Raises:
        ConfigError: an option makes no sense, or the trace cannot be read.
    """
    config = load(SimulateConfig, PROG, argv, environ, description=__doc__ or "")
    workloads: list[tuple[str, MakeWorkload]] = []
    if config.trace:
        path = Path(config.trace)
        # Read once here, so that what is wrong with it is said once.
        workloads.append((read_trace(path, config.format).name, partial(_trace, path, config.format, config.calls)))
    workloads += [(kind, partial(GENERATORS[kind], config.calls, config.seed)) for kind in config.traffic]
    if not workloads:
        raise ConfigError("--trace or --traffic: one of them must be given")
    speeds = [float(speed) for speed in config.speeds]
    if speeds and len(speeds) != config.workers:
        raise ConfigError(f"--speeds: {len(speeds)} for {config.workers} workers")
    fleet = FleetSpec(
        workers=config.workers,
        engine=EngineSpec(kv_tokens=config.kv_tokens, max_num_seqs=config.max_num_seqs),
        speeds=speeds,
        report_interval_s=config.report_interval_ms / 1000,
        report_delay_s=config.report_delay_ms / 1000,
        prefix_events=config.prefix_events,
        incidents=[_incident(text, config.workers) for text in config.incidents],
    )
    for name, make in workloads:
        shortest = min(call.input_tokens + call.output_tokens for talk in make().conversations for call in talk.calls)
        if shortest > config.kv_tokens:
            raise ConfigError(f"--kv-tokens: {config.kv_tokens} hold no request of {name}, the shortest of {shortest}")
    results: list[Result] = []
    for result in compare(
        workloads,
        [float(share) for share in config.loads],
        config.policies.split(),
        fleet,
        Objective(config.ttft_ms, config.tpot_ms),
        seed=config.seed,
    ):
        results.append(result)
        print(f"{result.case.workload} {result.case.load:g} {result.case.policy}", file=sys.stderr, flush=True)
    print(table(results))
    if config.json:
        Path(config.json).write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    if config.svg:
        Path(config.svg).write_text(plot(results), encoding="utf-8")


def _trace(path: Path, form: str, calls: int) -> Workload:
    return read_trace(path, form).first(calls)


def _incident(text: str, workers: int) -> Incident:
    parts = text.split(":")
    try:
        at_s, worker, kind = float(parts[0]), int(parts[1]), parts[2]
        factor = float(parts[3]) if len(parts) > 3 else 1.0
    except (IndexError, ValueError):
        raise ConfigError(f"--incidents: {text} is not AT:WORKER:KIND or AT:WORKER:KIND:X") from None
    if kind not in ("slow", "die", "start") or not 0 <= worker < workers or at_s < 0 or factor <= 0:
        raise ConfigError(f"--incidents: {text} names no worker, or no kind of incident")
    return Incident(at_s, worker, kind, factor)
