"""The options of lb-scheduler that are more than a number."""

from __future__ import annotations

import pytest

from lbcore.config import load
from lbcore.errors import ConfigError
from lbcore.scheduler.config import SchedulerConfig

LLAMA = "meta-llama/Llama-3.1-8B:latest"
WANTED = ((LLAMA, "cache_aware(hit_weight=2,load_weight=0.05)"), ("demo:prefill", "cost"))


def config(*argv: str, environ: dict[str, str] | None = None, toml: str = "") -> SchedulerConfig:
    file = ["--config", "lb.toml"] if toml else []
    return load(SchedulerConfig, "lb-scheduler", [*file, *argv], environ or {}, read_file=lambda path: toml.encode())


def test_policies_of_models_from_flags() -> None:
    text = f"{LLAMA}=cache_aware(hit_weight=2,load_weight=0.05)"
    assert config("--model-policy", text, "--model-policy", "demo:prefill=cost").model_policy == WANTED


def test_policies_of_models_from_the_environment() -> None:
    text = f"{LLAMA} = cache_aware(hit_weight=2,load_weight=0.05); demo:prefill=cost;"
    assert config(environ={"LB_MODEL_POLICY": text}).model_policy == WANTED


def test_policies_of_models_from_a_table_in_the_file() -> None:
    toml = f"""
        [model-policy]
        "{LLAMA}" = "cache_aware(hit_weight=2,load_weight=0.05)"
        "demo:prefill" = "cost"
    """
    assert config(toml=toml).model_policy == WANTED


@pytest.mark.parametrize("option", ["policy", "prefill-policy", "decode-policy"])
def test_a_policy_that_is_none_is_one_error(option: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{option}: fastest is no policy; there are "):
        config(f"--{option}", "fastest")


def test_a_policy_of_a_model_that_is_none_is_one_error_with_its_model() -> None:
    with pytest.raises(
        ConfigError, match=f"^--model-policy: .* has 'fastest' for {LLAMA}, which is no policy; there are"
    ):
        config("--model-policy", f"{LLAMA}=fastest;demo=cost")
