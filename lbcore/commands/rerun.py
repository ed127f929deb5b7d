"""lbctl rerun: makes the decisions of a decision log again, or those of another policy in their place."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from lbcore.config import load, option
from lbcore.decisions import Decided, Reader, Told, outcome, record, rerun
from lbcore.errors import ConfigError
from lbcore.policies.base import Policy
from lbcore.policies.registry import build_policy, check_policy

PROG = "lbctl rerun"

NAMED = 10
"""Decisions that came out differently of which the ids are printed."""


def _no_policy_or_a_good_one(text: str) -> str | None:
    return check_policy(text) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunOptions:
    """Which log, and what to do with it."""

    log: str = option(metavar="FILE", help="the log; may be compressed with gzip")
    policy: str = option(
        "", check=_no_policy_or_a_good_one, metavar="POLICY", help="policy that decides in place of the one that did"
    )
    show: str = option("", metavar="REQUEST_ID", help="print the lines of this request alone, each to stand for itself")


@dataclass(slots=True)
class Tally:
    """What came out of a log."""

    alike: int = 0
    different: list[str] = field(default_factory=list)
    """Ids of the requests."""
    skipped: int = 0
    """Lines before the first one that describes all workers of its model."""
    broken: int = 0
    """Lines that end in their middle: a process died, or a disk was full."""


def rerun_log(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Prints how many came out alike. Exits with status 1 when any did not, unless another policy decides.

    Raises:
        ConfigError: an option makes no sense, or the log cannot be read.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--log", *argv]
    options = load(RerunOptions, PROG, argv, environ, description=__doc__ or "")
    path, tally = Path(options.log), Tally()
    if options.show:
        shown = [_alone(told) for told in read_log(path, tally) if told.request_id == options.show]
        if not shown:
            raise ConfigError(f"--show: {path} has no decision for {options.show}")
        print("\n".join(shown))
        return
    policy = build_policy(options.policy) if options.policy else None
    compare(read_log(path, tally), policy, tally)
    if not tally.alike and not tally.different:
        raise ConfigError(f"--log: {path} has no decision in it that can be made again")
    print(summary(tally, policy))
    if tally.different and policy is None:
        sys.exit(1)


def compare(log: Iterator[Told], policy: Policy | None, tally: Tally) -> None:
    """Counts who is picked, or refused, as in the log; costs and fallbacks are compared too, but for another policy."""
    for told in log:
        again = outcome(rerun(told, policy))
        names = ("picked", "refused") if policy is not None else {*again, *told.outcome}
        if all(again.get(name) == told.outcome.get(name) for name in names):
            tally.alike += 1
        else:
            tally.different.append(told.request_id)


def summary(tally: Tally, policy: Policy | None) -> str:
    """What is printed."""
    count = tally.alike + len(tally.different)
    how = f"by {policy.name}" if policy is not None else "again"
    lines = [f"{count:,} decisions {how}: {tally.alike:,} alike, {len(tally.different):,} different"]
    if tally.different and policy is None:
        lines.append("different: " + ", ".join(tally.different[:NAMED]))
    if tally.skipped:
        lines.append(f"{tally.skipped:,} lines skipped: what they lean on is not in the log")
    if tally.broken:
        lines.append(f"{tally.broken:,} lines skipped: they end in their middle")
    return "\n".join(lines)


def read_log(path: Path, tally: Tally) -> Iterator[Told]:
    """The decisions of a log, in their order.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    reader = Reader()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    line = orjson.loads(text)
                except ValueError:
                    tally.broken += 1
                    continue
                try:
                    told = reader.read(line)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    problem = f"{type(error).__name__}: {error}"
                    raise ConfigError(f"--log: line {number} of {path} is no decision: {problem}") from error
                if told is None:
                    tally.skipped += 1
                else:
                    yield told
    except (OSError, EOFError) as error:
        raise ConfigError(f"--log: cannot read {path}: {error}") from error


def _alone(told: Told) -> str:
    policy = build_policy(told.policy)
    made = Decided(told.request_id, told.request, told.snapshot, policy, told.chance, rerun(told))
    return orjson.dumps(record(made)).decode()
