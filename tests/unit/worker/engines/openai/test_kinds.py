"""Servers are recognised by what they say of their models, or by their metrics, and tell their context length."""

from __future__ import annotations

import pytest

from worker.engines.openai.kinds import KINDS, UNKNOWN, facts, read_models, recognise

VLLM = {
    "object": "list",
    "data": [{"id": "m", "object": "model", "owned_by": "vllm", "root": "m", "max_model_len": 4096}],
}
SGLANG = {"data": [{"id": "m", "owned_by": "sglang", "root": "m", "max_model_len": 8192}]}
LLAMACPP = {
    "models": [{"name": "m"}],
    "data": [{"id": "/m.gguf", "aliases": ["m"], "owned_by": "llamacpp", "meta": {"n_ctx": 512, "n_ctx_train": 2048}}],
}
LMDEPLOY = {"data": [{"id": "m", "owned_by": "lmdeploy", "root": "m", "parent": None}]}


@pytest.mark.parametrize(
    ("answer", "name", "context_length"),
    [(VLLM, "vllm", 4096), (SGLANG, "sglang", 8192), (LLAMACPP, "llamacpp", 512), (LMDEPLOY, "lmdeploy", 0)],
)
def test_by_the_owner_of_the_model(answer: object, name: str, context_length: int) -> None:
    listing = read_models(answer, "m")
    kind = recognise(listing, b"")
    assert kind.name == name
    assert facts(kind, listing, None).context_length == context_length


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_by_its_metrics_when_somebody_else_owns_the_model(kind: object) -> None:
    listing = read_models({"data": [{"id": "m", "owned_by": "me"}]}, "m")
    assert kind in KINDS
    for one in KINDS:
        if one is kind:
            page = b"# HELP x\n# TYPE x\n" + one.page_prefix + b"running 1\n"
            assert recognise(listing, page) is one
    assert recognise(listing, b"process_cpu_seconds_total 5\n# vllm:x\n") is UNKNOWN


def test_llama_cpp_tells_more_at_props() -> None:
    props = {
        "default_generation_settings": {"n_ctx": 1024},
        "total_slots": 4,
        "chat_template_caps": {"supports_tools": False},
    }
    found = facts(KINDS[2], read_models(LLAMACPP, "m"), props)
    assert (found.context_length, found.sequences, found.knows_tools) == (1024, 4, False)


def test_models_adapters_and_those_that_are_not_there() -> None:
    answer = {"data": [*VLLM["data"], {"id": "lora", "parent": "m"}, {"id": "x", "parent": None}, 5, {"id": 7}]}  # type: ignore[misc]
    listing = read_models(answer, "m")
    assert (listing.names, listing.adapters) == (("m", "lora", "x"), ("lora",))
    assert read_models(answer, "nothing").card == {}


@pytest.mark.parametrize("answer", [None, [], {}, {"data": 5}, {"data": [None]}, "x"])
def test_what_lists_no_models(answer: object) -> None:
    listing = read_models(answer, "m")
    assert listing.names == ()
    assert recognise(listing, b"") is UNKNOWN
    assert facts(UNKNOWN, listing, {"total_slots": "x"}).sequences == 0
