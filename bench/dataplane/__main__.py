"""Measures all systems in all scenarios.

python -m bench.dataplane [--systems ours,direct] [--scenarios plain-64,memory] [--repeat 3] [--seconds 5] [--quick]
    [--folder ~/.cache/lbcore-bench] [--out docs/performance.json] [--append]

Repeats are interleaved: a round takes all systems, one after another, before the next one begins, so that a noisy
neighbour hits all alike. A system starts anew for each kind of workers in each round. The file is written after every
measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.dataplane.record import Mismatch, Record, this_machine
from bench.dataplane.scenarios import NAMES, SCENARIOS, Scenario, Settings
from bench.dataplane.system import System
from bench.dataplane.systems import SYSTEMS

_START_S = 120
_QUICK = Settings(seconds=1, warm_up_s=1, memory_requests=2000, memory_warm_up=500)


class Bench:
    """One invocation: installs, starts, measures, writes down."""

    def __init__(self, record: Record, path: Path, folder: Path, settings: Settings, invocation: int) -> None:
        self._record = record
        self._path = path
        self._folder = folder
        self._settings = settings
        self._invocation = invocation

    async def run(self, systems: Sequence[System], scenarios: Sequence[Scenario], rounds: int) -> None:
        """All of it. Raises Mismatch when a system is of another version than in the file."""
        ready = [system for system in systems if await self._is_ready(system)]
        for number in range(rounds):
            for group in _groups([one for one in scenarios if number == 0 or not one.is_alone]):
                for system in ready:
                    await self._measure(system, group, number)

    async def _is_ready(self, system: System) -> bool:
        """Installs what is not there."""
        facts: dict[str, Any] = {"kind": system.kind, "version": None}
        try:
            if await system.version(self._folder) is None:
                print(f"{system.name}: installing", flush=True)
                await system.install(self._folder)
            facts["version"] = await system.version(self._folder)
        except (RuntimeError, OSError, TimeoutError) as error:
            facts["reason"] = f"not installed: {_words(error)}"
        self._record.add_system(system.name, facts)
        self._record.save(self._path)
        return facts["version"] is not None

    async def _measure(self, system: System, scenarios: Sequence[Scenario], number: int) -> None:
        """One start for all scenarios of a group, and another one behind each that failed."""
        waiting = list(scenarios)
        while waiting:
            current: Scenario | None = None
            try:
                # A start that hangs is cancelled; the measuring itself is bounded by its clients.
                async with asyncio.timeout(_START_S) as limit, system.start(self._folder)(waiting[0].fleet) as running:
                    limit.reschedule(None)
                    self._record.systems[system.name]["flags"] = running.flags
                    while waiting:
                        current = waiting.pop(0)
                        figures = await current.measure(running, self._settings)
                        self._note(system, current, number, figures)
                        if figures["errors"]:
                            break
            except Exception as error:  # whatever a system does, the others are measured
                # What does not start for one of them will not for the others.
                failed, waiting = ([current], waiting) if current else (waiting, [])
                for scenario in failed:
                    self._note(system, scenario, number, reason=_words(error))

    def _note(
        self,
        system: System,
        scenario: Scenario,
        number: int,
        figures: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        is_valid = figures is not None and not figures["errors"] and figures["requests"] > 0
        one = {
            "invocation": self._invocation,
            "round": number,
            "system": system.name,
            "scenario": scenario.name,
            "is_valid": is_valid,
            **({"figures": figures} if figures is not None else {"reason": reason}),
        }
        self._record.measurements.append(one)
        self._record.save(self._path)
        said = _summary(figures) if figures is not None else f"FAILED: {reason}"
        print(f"round {number + 1}  {scenario.name:13} {system.name:24} {said}", flush=True)


def _groups(scenarios: Sequence[Scenario]) -> list[list[Scenario]]:
    """Scenarios that one start can serve, in their order."""
    shared = [scenario for scenario in scenarios if not scenario.is_alone]
    groups = [list(group) for _, group in itertools.groupby(shared, key=lambda scenario: scenario.fleet)]
    return groups + [[scenario] for scenario in scenarios if scenario.is_alone]


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[-400:]


def _summary(figures: dict[str, Any]) -> str:
    """A line for whoever watches."""
    shown = {
        "requests_per_s": "{:,.0f} requests/s",
        "cpu_us_per_request_layer": "{:,.0f} us layer",
        "cpu_us_per_request_workers": "{:,.0f} us workers",
        "cpu_ms_per_1000_tokens_layer": "{:,.1f} ms per 1,000 tokens",
        "rss_mb_layer": "{:,.1f} MB",
    }
    parts = [text.format(figures[name]) for name, text in shown.items() if figures.get(name) is not None]
    times = {name: figures.get(name, {}) for name in ("ttft_ms", "delay_ms", "latency_ms")}
    parts += [f"{name[:-3]} {one['p50']:.2f}/{one['p99']:.2f} ms" for name, one in times.items() if one.get("p50")]
    return ", ".join([*parts, *([f"ERRORS {figures['errors']}"] if figures["errors"] else [])])


def _without_paths(arguments: list[str]) -> list[str]:
    """The words of the command but --folder and --out: where files lie here is nobody's business elsewhere."""
    kept, words = [], iter(arguments)
    for word in words:
        if word in ("--folder", "--out"):
            next(words, None)
        elif not word.startswith(("--folder=", "--out=")):
            kept.append(word)
    return kept


def _chosen(names: str, known: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    chosen = [name for name in names.split(",") if name] or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    return [name for name in known if name in chosen]


def main() -> None:
    """Reads the command and measures."""
    parser = argparse.ArgumentParser(prog="python -m bench.dataplane", description="Measures systems in scenarios.")
    parser.add_argument("--systems", default="", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--scenarios", default="", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="a second each, one round: to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/lbcore-bench"), help="where they are installed")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.json"))
    parser.add_argument("--append", action="store_true", help="add to the file, if it is of this machine and versions")
    options = parser.parse_args()
    systems = [SYSTEMS[name] for name in _chosen(options.systems, list(SYSTEMS), parser)]
    names = _chosen(options.scenarios, NAMES, parser)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in names]
    # Names this invocation in its prompts: nobody has seen them before.
    run = f"{time.time_ns() // 10**6:x}"
    settings = replace(_QUICK if options.quick else Settings(seconds=options.seconds), run=run)
    rounds = 1 if options.quick else options.repeat
    here = this_machine()
    try:
        record = Record.load(options.out) if options.append and options.out.exists() else Record(here)
        record.check_machine(here)
        invocation = record.begin(_without_paths(sys.argv[1:]), settings.seconds, rounds)
        bench = Bench(record, options.out, options.folder.expanduser(), settings, invocation)
        asyncio.run(bench.run(systems, scenarios, rounds))
    except Mismatch as error:
        parser.exit(1, f"{error}; leave out --append to begin a new file\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; what was measured stands in {options.out}\n")
    print(f"python -m bench.dataplane.page {shlex.quote(str(options.out))} writes the tables")


if __name__ == "__main__":
    main()
