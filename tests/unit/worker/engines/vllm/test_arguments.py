"""The words behind `--`: vLLM's own go through as they are, FastChat's are put into vLLM's."""

from __future__ import annotations

import sys

import pytest

from lbcore.errors import ConfigError
from worker.engines.vllm.arguments import VllmOptions, read_arguments, translate


@pytest.mark.parametrize(
    "words",
    [
        ["--tensor-parallel-size", "2", "--pipeline-parallel-size=4", "--distributed-executor-backend", "ray"],
        ["--tensor_parallel_size", "2", "--gpu_memory_utilization", "0.8", "--trust_remote_code"],
        ["--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'],
        ["--num-gpu-blocks-override", "70", "-tp", "2", "--limit-mm-per-prompt", "{}", "--num-lookahead", "3"],
    ],
)
def test_words_of_vllm_itself_are_left_alone(words: list[str]) -> None:
    assert translate(words) == words


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--num-gpus 2", "--tensor-parallel-size 2"),
        ("--num_gpus=2", "--tensor-parallel-size=2"),
        ("--limit-worker-concurrency 64", "--max-num-seqs 64"),
        ("--limit-worker-conc 64", "--max-num-seqs 64"),
        ("--limit_worker=64", "--max-num-seqs=64"),
        ("--worker-use-ray --seed 1", "--distributed-executor-backend ray --seed 1"),
        ("--engine-use-ray --seed 1", "--seed 1"),
    ],
)
def test_flags_of_fastchat_say_the_same_in_vllms_words(old: str, new: str) -> None:
    assert translate(old.split()) == new.split()


@pytest.mark.parametrize("word", ["--model", "--model-path=x", "--model_path", "--served-model-name", "--model-names"])
def test_what_the_worker_itself_must_know_belongs_before_the_dashes(word: str) -> None:
    with pytest.raises(ConfigError, match="belongs before the --"):
        translate([word])


def test_a_quote_that_does_not_end_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^--vllm-args: No closing quotation$"):
        read_arguments(VllmOptions(args="--seed '1"), "m", ["m"])


def test_without_vllm_one_line_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'lbcore\[vllm\]'$"):
        read_arguments(VllmOptions(), "m", ["m"])
