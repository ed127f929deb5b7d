from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.dataplane.page import BEGIN, END, insert, write
from bench.dataplane.plot import plot
from bench.dataplane.record import Mismatch, Record
from bench.dataplane.results import Figure, Spread, spread
from bench.dataplane.tables import number, tables

MACHINE = {"cores": 2, "cpu": "some", "memory_gb": 8, "kernel": "6", "python": "3.11", "wrk": "wrk 4", "sources": "a"}


def run(system: str, scenario: str, number: int, **figures: Any) -> dict[str, Any]:
    errors = figures.pop("errors", {})
    names = {"invocation": 0, "round": number, "system": system, "scenario": scenario}
    return {**names, "is_valid": not errors, "figures": {**figures, "errors": errors}}


@pytest.fixture
def record() -> Record:
    record = Record(dict(MACHINE))
    for name in ("direct", "ours", "other", "broken"):
        record.add_system(name, {"kind": "python", "version": "1", "flags": f"{name} --serve"})
    record.begin(["--repeat", "3"], 5, 3)
    for index, (ours, other) in enumerate([(100, 210), (90, 200), (120, 190)]):
        record.measurements += [
            run("direct", "plain-64", index, cpu_us_per_request_layer=0),
            run("ours", "plain-64", index, cpu_us_per_request_layer=ours),
            run("other", "plain-64", index, cpu_us_per_request_layer=other),
            run("broken", "plain-64", index, cpu_us_per_request_layer=1, errors={"status": index + 1}),
            run("direct", "ttft-1", index, ttft_ms={"p50": 1 + index}),
            run("ours", "ttft-1", index, ttft_ms={"p50": 2 + index}),
        ]
    return record


def test_a_spread_has_the_median_of_valid_runs(record: Record) -> None:
    figure = Figure("plain-64", "cpu_us_per_request_layer")
    assert spread(record.measurements, "ours", figure) == Spread(100, 90, 120, 3, 0)
    assert spread(record.measurements, "broken", figure) == 3
    assert spread(record.measurements, "absent", figure) is None
    record.measurements[1]["is_valid"] = False
    assert spread(record.measurements, "ours", figure) == Spread(105, 90, 120, 2, 1)


def test_what_is_added_is_taken_round_by_round(record: Record) -> None:
    assert spread(record.measurements, "ours", Figure("ttft-1", "ttft_ms.p50", is_added=True)) == Spread(1, 1, 1, 3, 0)


def test_tables_show_ratios_before_numbers_and_what_was_not_valid(record: Record) -> None:
    text = tables(record)
    assert "| **ours** |  |  | **1.00** · 100 (90.0–120) |  |  |" in text
    assert "| other |  |  | **2.00** · 200 (190–210) |  |  |" in text
    assert "| broken |  |  | not valid |  |  |" in text
    assert "- broken, plain-64, 3 of 3 runs: 1 x status; 2 x status; 3 x status" in text
    assert "| direct | python | 1 | `direct --serve` |" in text
    assert "- `python -m bench.dataplane --repeat 3`" in text
    layer = text.partition("### CPU of the layer per request")[2].partition("###")[0]
    assert "direct" not in layer


def test_a_system_that_could_not_be_installed_says_why(record: Record) -> None:
    record.add_system("gone", {"kind": "rust", "version": None, "reason": "not installed: no wheel"})
    assert "- gone: not installed: no wheel" in tables(record)


def test_numbers_have_two_or_three_digits() -> None:
    assert [number(value) for value in (12345.6, 99.94, 3.14159, 0.0, 0.0123, -5.0)] == [
        "12,346",
        "99.9",
        "3.14",
        "0.00",
        "0.012",
        "-5.00",
    ]


def test_the_picture_has_a_bar_for_each_system_that_has_a_layer(record: Record) -> None:
    drawn = plot(record)
    assert drawn is not None
    root = ET.fromstring(drawn)
    assert len(root.findall(".//{*}rect")) == 2
    texts = [text.text for text in root.findall(".//{*}text")]
    assert {"ours", "other", "100 (90.0–120)"} <= set(texts)
    assert "direct" not in texts
    assert plot(Record(dict(MACHINE))) is None


def test_a_page_keeps_what_stands_around_the_marks() -> None:
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nbelow\n"
    assert insert(page, "new") == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nbelow\n"
    with pytest.raises(ValueError, match="marks"):
        insert("# Title\n", "new")


def test_page_and_picture_are_written_beside_the_measurements(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "performance.json"
    record.save(path)
    assert Record.load(path) == record
    assert [one.name for one in write(path)] == ["performance.md", "performance-cpu.svg"]
    page = (tmp_path / "performance.md").read_text()
    write(path)
    assert (tmp_path / "performance.md").read_text() == page


def test_only_the_same_machine_and_versions_are_added_to_a_file(record: Record) -> None:
    record.check_machine(dict(MACHINE))
    with pytest.raises(Mismatch, match="kernel"):
        record.check_machine({**MACHINE, "kernel": "7"})
    with pytest.raises(Mismatch, match="ours was 1 and is 2"):
        record.add_system("ours", {"kind": "ours", "version": "2"})
