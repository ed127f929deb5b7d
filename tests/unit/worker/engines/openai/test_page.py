"""The pages of the servers we know, with the names they document."""

from __future__ import annotations

import pytest

from worker.engines.openai.kinds import KINDS
from worker.engines.openai.page import Page, read_page

PAGES = {
    "vllm": (
        """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" {c}"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"b\\" {c}"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a"} 0.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="a",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.75
vllm:gpu_cache_usage_perc{engine="1",model_name="a"} 0.99
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000",num_cpu_blocks="None"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="1000",num_cpu_blocks="None"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="a"} 12.0
""",
        Page(5, 1, 1000, 2000, 16),
    ),
    "vllm, older": (
        """\
vllm:num_requests_running{model_name="a"} 3.0
vllm:num_requests_waiting{model_name="a"} 0.0
vllm:gpu_cache_usage_perc{model_name="a"} 0.5
vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0
""",
        Page(3, 0, 0, 0, 0),
    ),
    "sglang": (
        """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="a",pp_rank="0",tp_rank="0"} 8.0
sglang:num_running_reqs{engine_type="unified",model_name="a",pp_rank="0",tp_rank="1"} 8.0
sglang:num_queue_reqs{engine_type="unified",model_name="a",pp_rank="0",tp_rank="0"} 2.0
sglang:token_usage{engine_type="unified",model_name="a",pp_rank="0",tp_rank="0"} 0.5
sglang:max_total_num_tokens{engine_type="unified",model_name="a",tp_rank="0"} 1600.0
sglang:page_size{engine_type="unified",model_name="a",tp_rank="0"} 16.0
""",
        Page(8, 2, 50, 100, 16),
    ),
    "llamacpp": (
        """\
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
llamacpp:requests_deferred 46
""",
        Page(4, 46),
    ),
    "lmdeploy": (
        """\
lmdeploy:num_requests_running{model_name="a",engine="0"} 1.0
lmdeploy:num_requests_waiting{model_name="a",engine="0"} 5.0
lmdeploy:gpu_cache_usage_perc{model_name="a",engine="0"} 0.5
""",
        Page(1, 5),
    ),
    "tensorrt-llm": (
        """\
trtllm_num_requests_running{model_name="a"} 6.0
trtllm_num_requests_waiting{model_name="a"} 2.0
trtllm_kv_cache_utilization{model_name="a"} 0.5
trtllm_kv_cache_max_blocks{model_name="a"} 400.0
trtllm_kv_cache_tokens_per_block{model_name="a"} 32.0
""",
        Page(6, 2, 200, 400, 32),
    ),
    "text-generation-inference": ("tgi_queue_size 3\ntgi_batch_current_size 4\n", Page(4, 3)),
    "triton": (
        """\
nv_trt_llm_request_metrics{model="t",request_type="waiting",version="1"} 1
nv_trt_llm_request_metrics{model="t",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="t",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="t"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="t"} 100
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="t"} 64
""",
        Page(2, 1, 25, 100, 64),
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_as_they_are_documented(name: str) -> None:
    text, told = PAGES[name]
    kind = next(kind for kind in KINDS if kind.name == name.split(",", maxsplit=1)[0])
    assert kind.page is not None
    assert read_page(text.encode(), kind.page) == told


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"<html>", b"vllm:num_requests_running\n", b"# vllm:x 1"])
def test_what_is_no_page_tells_nothing(kind: object, text: bytes) -> None:
    for one in KINDS:
        if one is kind and one.page is not None:
            assert read_page(text, one.page) == Page()


def test_malformed_values_are_passed_over() -> None:
    names = KINDS[0].page
    assert names is not None
    for value in (b"NaN", b"+Inf", b"-1", b"x", b"0x1"):
        assert read_page(b"vllm:num_requests_running " + value + b"\n", names).running is None
    assert read_page(b"vllm:num_requests_running 2 1700000000\r\n", names).running == 2
    assert read_page(b"vllm:num_requests_running 1e2", names).running == 100
