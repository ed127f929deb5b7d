"""The log of decisions: whole lines of what was decided, and decisions that do not depend on it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import orjson
from structlog.testing import capture_logs

from lbcore.decisions import Decided, outcome, rerun
from lbcore.line_file import LineFile
from lbcore.pick import pick
from lbcore.policies.registry import build_policy
from lbcore.scheduler.decision_log import DecisionLog
from lbcore.types import PickRequest
from tests.fleet import MODEL, endpoint, snapshot

POLICY = build_policy("cost")
REQUEST, TAKEN = PickRequest(MODEL, 100), snapshot(endpoint("w0"), endpoint("w1"))
MADE = Decided("r", REQUEST, TAKEN, POLICY, 5, pick(REQUEST, TAKEN, POLICY, Random(5)))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_each_decision_is_a_line_with_the_time_of_day(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(file := LineFile(str(path), "--decision-log"))
    log.record(MADE)
    log.record(MADE)
    await file.close()
    first, second = lines_of(path)
    assert first["unix_s"] > 1.7e9
    assert outcome(rerun(first)) == outcome(MADE.decision)
    assert ("workers" in first, "workers" in second) == (True, False)


async def test_after_the_file_is_given_up_decisions_go_on_unrecorded() -> None:
    log = DecisionLog(file := LineFile("/dev/full", "--decision-log"))
    log.record(MADE)
    with capture_logs() as logs:
        await file.flush()
    log.record(MADE)
    assert [entry["event"] for entry in logs] == ["file_given_up"]
    await file.close()


async def test_what_cannot_be_written_is_said_once_and_raises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(file := LineFile(str(path), "--decision-log"))
    with capture_logs() as logs:
        for _ in range(3):
            # No number of 64 bits, and so no JSON that every reader takes.
            log.record(MADE._replace(chance=2**64))
    assert [entry["event"] for entry in logs] == ["decision_not_recorded"]
    await file.close()
    assert lines_of(path) == []
