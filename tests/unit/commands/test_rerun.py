"""lbctl rerun: what a log's decisions come to when they are made again."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from lbcore.commands.rerun import rerun_log
from lbcore.decisions import Decided, Recorder, outcome, rerun
from lbcore.errors import ConfigError
from lbcore.pick import pick
from lbcore.policies.registry import build_policy
from lbcore.types import LoadReport, PickRequest
from tests.fleet import MODEL, endpoint, snapshot


def decisions(count: int = 20, policy: str = "random") -> list[dict[str, Any]]:
    """A log of draws between a worker that is idle and one that is not."""
    recorder, build = Recorder(), build_policy(policy)
    taken = snapshot(endpoint("w0"), endpoint("w1", load=LoadReport(running_requests=9)))
    request = PickRequest(MODEL, 100)
    return [
        recorder.line(Decided(f"r{chance}", request, taken, build, chance, pick(request, taken, build, Random(chance))))
        for chance in range(count)
    ]


def written(path: Path, lines: Iterable[Any]) -> str:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return str(path)


def test_all_of_them_come_out_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rerun_log([written(tmp_path / "log", decisions())], {})
    assert capsys.readouterr().out == "20 decisions again: 20 alike, 0 different\n"


def test_one_that_does_not_is_named_and_the_status_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = decisions()
    lines[3]["picked"] = "w7"
    lines[5]["costs"][0] += 1.0
    with pytest.raises(SystemExit) as exit_:
        rerun_log(["--log", written(tmp_path / "log", lines)], {})
    assert exit_.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "20 decisions again: 18 alike, 2 different",
        "different: r3, r5",
    ]


def test_another_policy_is_counted_by_whom_it_picks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = decisions()
    alike = sum(line["picked"] == "w0" for line in lines)
    rerun_log([written(tmp_path / "log", lines), "--policy", "least_requests"], {})
    assert capsys.readouterr().out == (f"20 decisions by least_requests: {alike} alike, {20 - alike} different\n")


def test_lines_that_cannot_be_made_again_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.gz"
    lines = b"\n".join(map(orjson.dumps, decisions()))
    # The first of these leans on a line that is not there; the last of the second log is cut.
    head = orjson.dumps(decisions(2)[1])
    path.write_bytes(gzip.compress(head + b"\n" + lines + b'\n{"request_id": "r2'))
    rerun_log([str(path)], {})
    assert capsys.readouterr().out.splitlines() == [
        "20 decisions again: 20 alike, 0 different",
        "1 lines skipped: what they lean on is not in the log",
        "1 lines skipped: they end in their middle",
    ]


def test_one_decision_can_be_taken_out_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = decisions()
    rerun_log([written(tmp_path / "log", lines), "--show", "r7"], {})
    alone = orjson.loads(capsys.readouterr().out)
    assert alone["request_id"] == "r7"
    assert outcome(rerun(alone))["picked"] == lines[7]["picked"]


@pytest.mark.parametrize(
    ("lines", "words", "problem"),
    [
        ([{"request": 1}], (), r"line 1 of .*log is no decision: "),
        ([], (), "has no decision in it"),
        (decisions(1), ("--show", "r9"), "has no decision for r9"),
        (decisions(1), ("--policy", "fastest"), "is no policy"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, lines: list[Any], words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rerun_log([written(tmp_path / "log", lines), *words], {})


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log: cannot read .*gone"):
        rerun_log([str(tmp_path / "gone")], {})
