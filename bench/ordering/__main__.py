"""Policies and rival routers before real processes, and the same traffic in the simulator.

python -m bench.ordering [--systems "lbcore cost,sglang-router cache_aware"] [--shape mixed] [--load 0.9]
    [--seconds 120] [--rounds 3] [--beside 1] [--seed 1] [--out build/ordering.json] [--folder ~/.cache/lbcore-bench]
python -m bench.ordering --show build/ordering.json

Each round has traffic of its own, the same for all, at a part of what the simulator says the fleet can take. Rounds are
interleaved: all systems, then all again. Every run starts its processes anew, with empty caches. `--beside` plays so
many systems at once, each with its own processes: they share the machine's cores, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from bench.dataplane.meter import Meter
from bench.dataplane.record import this_machine
from bench.ordering.client import idle_delay_ms, play, requests_of
from bench.ordering.figures import OBJECTIVE, figures, played_figures
from bench.ordering.fleets import CONTENDERS, Contender, Engine, Serving
from bench.ordering.tables import page
from bench.ordering.traffic import SHAPES, Ask, simulated, traffic
from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import build_policy
from lbcore.simulator.capacity import calls_per_s
from lbcore.simulator.compare import WARM_UP_SHARE
from lbcore.simulator.replay import Replay

_PATIENCE_S = 120.0
_SETTLE_S = 1.0
"""From the last probe to the first request: reports of what was asked are all in."""
_CAPACITY_RATE, _CAPACITY_S = 6.0, 300.0
"""Of the traffic by which the capacity is found, which is played as fast as it is answered."""


def capacity(engine: Engine, shape: str, seed: int) -> float:
    """Requests a second that the simulator says the fleet can take under the default policy."""
    workload = simulated(traffic(SHAPES[shape], _CAPACITY_RATE, _CAPACITY_S, seed), engine.block_tokens)
    return calls_per_s(workload, engine.simulated(), lambda: build_policy(DEFAULT_POLICY), OBJECTIVE.tpot_ms)


def simulate(engine: Engine, asks: Sequence[Ask], policy: str, seed: int) -> dict[str, Any]:
    """Figures of a replay."""
    workload = simulated(asks, engine.block_tokens)
    played = Replay(workload, engine.simulated(), build_policy(policy), seed).run()
    return asdict(played_figures(played, _skipped(asks)))


async def measure(
    contender: Contender, serving: Serving, asks: Sequence[Ask], begin: float, idle_ms: float
) -> dict[str, Any]:
    """One run of a system that serves."""
    before = await requests_of(serving.metrics)
    roles = {"engines": serving.engines, "fronts": serving.fronts, "layer": serving.layer}
    with Meter(roles).spent() as spent:
        answers = await play(serving.url, asks, begin, _PATIENCE_S)
    after = await requests_of(serving.metrics)
    requests = [count - start for count, start in zip(after, before, strict=True)]
    return {
        "system": contender.name,
        "policy": contender.policy,
        "figures": asdict(figures(answers, requests, _skipped(asks))),
        "errors": sorted({answer.error for answer in answers if answer.error}),
        "idle_delay_ms": idle_ms,
        "cores": {role: cpu_s / spent.wall_s for role, cpu_s in spent.cpu_s.items()},
    }


async def batch(
    contenders: Sequence[Contender],
    engine: Engine,
    asks: Sequence[Ask],
    folder: Path,
    greeting: int,
    rng: Random,
) -> list[dict[str, Any]]:
    """Some systems side by side: all start, then each is probed alone, then all are asked."""
    async with AsyncExitStack() as stack:
        serving = [
            await stack.enter_async_context(contender.start(folder, engine, greeting)) for contender in contenders
        ]
        idle = [await idle_delay_ms(one.url, engine, greeting, rng) for one in serving]
        gc.collect()
        begin = time.monotonic() + _SETTLE_S
        return list(
            await asyncio.gather(
                *(
                    measure(contender, one, asks, begin, idle_ms)
                    for contender, one, idle_ms in zip(contenders, serving, idle, strict=True)
                )
            )
        )


async def run(record: dict[str, Any], contenders: Sequence[Contender], options: argparse.Namespace) -> None:
    """Installs, simulates, measures; the record is written after each step."""
    loop, own = asyncio.get_running_loop(), asyncio.current_task()
    assert own is not None
    # What it has started ends with it.
    loop.add_signal_handler(signal.SIGTERM, own.cancel)
    folder, engine, rng = options.folder.expanduser(), Engine(), Random(options.seed)
    for rival in {contender.rival.name: contender.rival for contender in contenders if contender.rival}.values():
        if await rival.version(folder) is None:
            await rival.install(folder)
        record["versions"][rival.name.split()[0]] = await rival.version(folder)
    record["capacity"] = capacity(engine, options.shape, options.seed)
    record["rate"] = options.load * record["capacity"]
    rounds = [
        traffic(SHAPES[options.shape], record["rate"], options.seconds, options.seed + number)
        for number in range(options.rounds)
    ]
    policies = list(dict.fromkeys(contender.policy for contender in contenders))
    with ProcessPoolExecutor(initializer=os.nice, initargs=(10,)) as pool:
        replays = [
            (number, policy, pool.submit(simulate, engine, asks, policy, options.seed + number))
            for number, asks in enumerate(rounds)
            for policy in policies
        ]
        for number, policy, replay in replays:
            record["simulated"].append({"round": number, "policy": policy, "figures": replay.result()})
            _say(number, f"simulated {policy}", record["simulated"][-1]["figures"])
    for number, asks in enumerate(rounds):
        # In each round others stand beside one another.
        turned = [*contenders[number:], *contenders[:number]]
        for first in range(0, len(turned), options.beside):
            for one in await batch(
                turned[first : first + options.beside], engine, asks, folder, options.greeting_tokens, rng
            ):
                record["runs"].append({"round": number, **one})
                _say(number, one["system"], one["figures"])
            _save(record, options.out)


def _skipped(asks: Sequence[Ask]) -> int:
    """Requests that find cold caches, as the simulator leaves them out."""
    return int(len(asks) * WARM_UP_SHARE)


def _say(number: int, name: str, found: dict[str, Any]) -> None:
    ttft = " / ".join(f"{found['ttft'][part]:,.0f}" for part in ("mean", "p50", "p90", "p99"))
    rest = (
        f"goodput {found['goodput']:.3f}, cached {found['hit_rate']:.1%}, {found['failed']} of {found['calls']} failed"
    )
    print(f"round {number + 1}  {name:32} TTFT {ttft} ms, {rest}, {found['requests']}", flush=True)


def _save(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {name: ",\n".join(json.dumps(_short(one)) for one in record[name]) for name in ("simulated", "runs")}
    rest = json.dumps({name: _short(value) for name, value in record.items() if name not in lists}, indent=1)
    rows = ",\n".join(f' "{name}": [\n{lines}\n ]' for name, lines in lists.items())
    path.write_text(f"{rest[:-2]},\n{rows}\n}}\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """The same with five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {name: _short(one) for name, one in value.items()}
        case list() | tuple():
            return [_short(one) for one in value]
        case _:
            return value


def main() -> None:
    """Reads the command, measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(CONTENDERS), help="names with commas between; all by default")
    parser.add_argument("--shape", default="mixed", choices=SHAPES, help="of the traffic")
    parser.add_argument("--load", type=float, default=0.9, help="of the fleet's capacity")
    parser.add_argument("--seconds", type=float, default=120.0, help="in which requests are asked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=int, default=1, help="systems measured at once")
    parser.add_argument(
        "--greeting-tokens",
        type=int,
        default=8,
        help="of the answers to the first, short requests; 1 as health checks do",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/ordering.json"))
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/lbcore-bench"), help="where rivals are installed")
    parser.add_argument("--show", type=Path, help="print the tables of a file instead")
    options = parser.parse_args()
    if options.show:
        print(page(json.loads(options.show.read_text(encoding="utf-8"))))
        return
    names = options.systems.split(",")
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    record: dict[str, Any] = {
        "machine": this_machine(),
        "engine": asdict(Engine()),
        "objective": asdict(OBJECTIVE),
        "shape": options.shape,
        "load": options.load,
        "seconds": options.seconds,
        "beside": options.beside,
        "greeting_tokens": options.greeting_tokens,
        "seed": options.seed,
        "versions": {},
        "simulated": [],
        "runs": [],
    }
    try:
        asyncio.run(run(record, [CONTENDERS[name] for name in names], options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        parser.exit(130, f"interrupted; what was measured stands in {options.out}\n")
    print(page(record))


if __name__ == "__main__":
    main()
