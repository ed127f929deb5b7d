"""Requests drawn from the laws of ServeGen's client pools."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lbcore.errors import ConfigError
from lbcore.simulator.servegen import servegen
from lbcore.simulator.traces import read_trace

HEAD = "client,window_start_s,rate,cv,pattern,param1,param2"


def pool(folder: Path, *rates: str, clients: tuple[int, ...] = (7,)) -> Path:
    (folder / "m_rates.csv").write_text("\n".join([HEAD, *rates]) + "\n", encoding="utf-8")
    lines = [
        json.dumps({"client": client, "window_start_s": start, "input_tokens": tokens, "output_tokens": "{9: 1.0}"})
        for client in clients
        for start, tokens in ((0, "{45: 0.5, 50: 0.5}"), (3600, "{1000: 1.0}"))
    ]
    (folder / "m_lengths.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def chunks(folder: Path) -> Path:
    (folder / "chunk-3-trace.csv").write_text("0,2.0,1.0,Gamma,1.0,0.5\n600,0.0,0.0,,,\n", encoding="utf-8")
    lengths = {"0": {"input_tokens": "{100: 1.0}", "output_tokens": "{20: 1.0}"}, "21600": {"input_tokens": "{}"}}
    (folder / "chunk-3-dataset.json").write_text(json.dumps(lengths), encoding="utf-8")
    return folder


@pytest.mark.parametrize("law", ["Gamma,1.0,0.5", "Gamma,2.9,0.017", "Weibull,0.5,0.00003", "Weibull,1.7,9"])
def test_as_many_requests_are_drawn_as_the_rate_says_whatever_scale_was_fitted(tmp_path: Path, law: str) -> None:
    workload = servegen(pool(tmp_path, *(f"7,{start},2.0,1.0,{law}" for start in range(0, 7200, 600))))
    assert workload.calls == pytest.approx(14_400, rel=0.1)


def test_a_law_whose_tail_is_all_of_it_ends_nevertheless(tmp_path: Path) -> None:
    assert servegen(pool(tmp_path, "7,0,2.0,99,Weibull,0.004,1e-9"), end_s=600).calls < 20_000


def test_lengths_are_those_of_the_clients_last_window(tmp_path: Path) -> None:
    workload = servegen(pool(tmp_path, "7,0,2.0,1.0,Gamma,1.0,0.5", "7,3600,2.0,1.0,Gamma,1.0,0.5"))
    early = {talk.calls[0].input_tokens for talk in workload.conversations if talk.at_s < 3600}
    late = {talk.calls[0].input_tokens for talk in workload.conversations if talk.at_s >= 3600}
    assert (early, late) == ({45, 50}, {1000})
    assert {talk.calls[0].output_tokens for talk in workload.conversations} == {9}


def test_a_client_of_unknown_lengths_and_a_window_outside_the_hours_are_left_out(tmp_path: Path) -> None:
    rows = ("8,0,2.0,1.0,Gamma,1.0,0.5", "7,7200,2.0,1.0,Gamma,1.0,0.5")
    assert servegen(pool(tmp_path, *rows)).calls == 0


def test_a_seed_draws_the_same_again_in_order_of_time(tmp_path: Path) -> None:
    folder = pool(tmp_path, "7,0,2.0,1.0,Gamma,1.0,0.5", "5,0,1.0,1.0,Weibull,1.0,0.5", clients=(5, 7))
    workload = servegen(folder, seed=3)
    assert servegen(folder, seed=3) == workload
    assert servegen(folder, seed=4) != workload
    at = [talk.at_s for talk in workload.conversations]
    assert at == sorted(at)
    assert at[0] > 0
    assert at[-1] < 600


def test_servegens_own_files_are_read_as_they_are(tmp_path: Path) -> None:
    workload = read_trace(chunks(tmp_path), "servegen")
    assert workload.name == "servegen"
    assert 1000 < workload.calls < 1400
    assert {(talk.calls[0].input_tokens, talk.calls[0].output_tokens) for talk in workload.conversations} == {(100, 20)}


def test_files_of_all_clients_may_be_compressed(tmp_path: Path) -> None:
    plain = servegen(pool(tmp_path, "7,0,2.0,1.0,Gamma,1.0,0.5"))
    for name in ("m_rates.csv", "m_lengths.jsonl"):
        path = tmp_path / name
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert servegen(tmp_path) == plain


def test_a_folder_without_such_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no servegen trace: ValueError: it has 0 files \*_rates\.csv\*"):
        read_trace(tmp_path, "servegen")
