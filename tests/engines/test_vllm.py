"""What is special about the vLLM engine: adapters, parsers, its own statistics, and its core's death. Needs vLLM."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from lbcore.clock import MonotonicClock
from lbcore.errors import Cancelled, ConfigError, EngineFailed, InvalidRequest, ModelNotFound
from lbcore.generation import Dialect, Finished, FinishReason, Started
from tests.contract.engines import TIMEOUT_S, VLLM_ON_CPU, Answer, EngineCase, Feature, Watch
from worker import demo
from worker.engines.vllm.engine import VllmEngine, VllmOptions

CONFIG = orjson.loads((demo.HF_PATH / "config.json").read_bytes())
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string", "enum": ["up", "down"]}},
            "required": ["where"],
            "additionalProperties": False,
        },
    },
}


def create(arguments: str = "", names: tuple[str, ...] = ("m", "alias"), **options: Any) -> VllmEngine:
    told = VllmOptions(args=f"{VLLM_ON_CPU} {arguments}", **options)
    return VllmEngine(str(demo.HF_PATH), names, told, MonotonicClock())


@asynccontextmanager
async def running(engine: VllmEngine) -> AsyncIterator[Watch]:
    watch = Watch(EngineCase("vllm", lambda: engine, frozenset(Feature), counts_prompt_first=False))
    await watch.start()
    try:
        yield watch
    finally:
        await watch.close()


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of random numbers, large enough to change every answer."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    size, heads = CONFIG["hidden_size"], CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(8, size, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(heads, 8, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_bytes(orjson.dumps(config))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rich(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watch]:
    """One engine with adapters, tools and priorities."""
    adapter = tmp_path_factory.mktemp("lora") / "fancy"
    write_adapter(adapter)
    engine = create(
        f"--max-num-seqs 4 --enable-lora --max-lora-rank 8 --lora-modules fancy={adapter} "
        "--enable-auto-tool-choice --tool-call-parser hermes --scheduling-policy priority"
    )
    async with running(engine) as watch:
        yield watch


def engine_of(watch: Watch) -> VllmEngine:
    assert isinstance(watch.engine, VllmEngine)
    return watch.engine


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.005)


def core_pid() -> int:
    """The engine core that was started last."""
    cores = [child for child in multiprocessing.active_children() if "EngineCore" in child.name]
    return max((core.pid or 0) for core in cores)


def alive(pid: int) -> bool:
    return any(child.pid == pid for child in multiprocessing.active_children())


async def test_an_adapter_is_a_model_of_its_own(rich: Watch) -> None:
    assert rich.info.adapters == ("fancy",)
    base = await rich.chat("What is a ticket?", max_tokens=16).end()
    adapted = await rich.chat("What is a ticket?", max_tokens=16, model="fancy").end()
    assert adapted.finished.prompt_tokens == base.finished.prompt_tokens
    assert adapted.text() != base.text()


async def test_every_name_it_was_given_is_its_own(rich: Watch) -> None:
    texts = {(await rich.chat("Hello", max_tokens=8, model=name).end()).text() for name in ("m", "alias")}
    assert len(texts) == 1


async def test_a_model_that_it_has_not_is_not_found(rich: Watch) -> None:
    answer = await rich.chat("Hello", model="other").end()
    assert isinstance(answer.error, ModelNotFound)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_a_forced_tool_call_arrives_in_parts_and_is_whole(rich: Watch, choice: object) -> None:
    answer = await rich.chat("Look up!", max_tokens=200, tools=[LOOK], tool_choice=choice).end()
    calls = [call for delta in answer.deltas for call in delta.tool_calls]
    assert calls[0].id
    assert calls[0].name == "look"
    arguments = orjson.loads("".join(call.arguments for call in calls))
    assert arguments["where"] in ("up", "down")
    assert answer.finish_reason() in (FinishReason.TOOL_CALLS, FinishReason.STOP)
    assert answer.text().strip() == ""


async def test_reasoning_is_told_apart_from_the_answer() -> None:
    said = "Here is my thought process: two and two\nHere is my response: four"
    guided = """--reasoning-parser granite --structured-outputs-config '{"enable_in_reasoning": true}'"""
    async with running(create(guided)) as watch:
        answer = await watch.chat("Sum?", max_tokens=100, structured_outputs={"choice": [said]}).end()
        reasoning = "".join(delta.reasoning for delta in answer.deltas)
        # vLLM's parser for this kind of reasoning lets a word of the border through when it streams.
        assert reasoning.strip().startswith("two and two")
        assert answer.text().strip() == "four"


@pytest.mark.parametrize(
    "guide",
    [
        {"structured_outputs": {"regex": "[0-9]{4}"}},
        {"guided_regex": "[0-9]{4}"},
        {"structured_outputs": {"choice": ["1234"]}},
        {"guided_choice": ["1234"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1234]}}}},
    ],
)
async def test_the_output_keeps_to_its_guide(rich: Watch, guide: dict[str, object]) -> None:
    answer = await rich.complete("The number is ", max_tokens=20, **guide).end()
    assert answer.text().isdigit()
    assert len(answer.text()) == 4


async def test_a_guide_that_is_none_is_refused(rich: Watch) -> None:
    answer = await rich.complete("The number is ", structured_outputs={"regex": "("}).end()
    assert isinstance(answer.error, InvalidRequest)


async def test_an_echo_stands_before_the_answer(rich: Watch) -> None:
    plain = await rich.complete("What is ", max_tokens=5).end()
    echoed = await rich.complete("What is ", max_tokens=5, echo=True).end()
    assert echoed.text() == "What is " + plain.text()
    assert echoed.finished == plain.finished


async def test_load_comes_from_the_engine_s_own_scheduler(rich: Watch) -> None:
    engine = engine_of(rich)
    answers = [rich.long(f"Story {number}") for number in range(7)]
    await until(lambda: engine._statistics.waiting > 0)
    assert engine._statistics.running == 4
    assert sum(bool(answer.events) for answer in answers) == 4, "more have started than the engine runs"
    assert all(isinstance(answer.events[0], Started) for answer in answers if answer.events)
    load = engine.load()
    assert 0 < load.kv_used_blocks <= rich.info.capacity.kv_blocks
    assert load.step_time_ms > 0
    for answer in answers:
        rich.abort(answer.request_id)
        await answer.end()
    # The speed of prefill needs prompts that are long enough to tell.
    await rich.chat("word " * 300, max_tokens=1).end()
    assert engine.load().prefill_tokens_per_s > 0
    assert engine.load().kv_used_blocks == 0
    assert engine.load().kv_cached_blocks > 0


async def test_what_is_urgent_overtakes_what_waits(rich: Watch) -> None:
    from lbcore.generation import GenerationRequest

    running = [rich.long(f"Story {number}") for number in range(4)]
    await until(lambda: all(answer.events for answer in running))
    order: list[str] = []
    for request_id, priority in (("late", 0), ("urgent", 5)):
        body = orjson.dumps({"messages": [{"role": "user", "content": request_id}], "max_tokens": 1})
        request = GenerationRequest(request_id, Dialect.CHAT, body, priority=priority)
        rich.engine.submit(request, lambda event, name=request_id: order.append(name))  # type: ignore[misc]
    await until(lambda: len(engine_of(rich)._calls) == 6 and engine_of(rich)._statistics.waiting == 2)
    rich.abort(running[0].request_id)
    await until(lambda: "late" in order)
    assert order[0] == "urgent"
    for answer in running:
        rich.abort(answer.request_id)


async def test_an_abort_frees_the_engine_soon(rich: Watch) -> None:
    engine = engine_of(rich)
    answers = [rich.long(f"Story {number}") for number in range(4)]
    await until(lambda: engine._statistics.running == 4)
    for answer in answers[1:]:
        rich.abort(answer.request_id)
    # The one that goes on keeps the core's statistics coming.
    await until(lambda: engine._statistics.running == 1)
    rich.abort(answers[0].request_id)
    for answer in answers:
        assert isinstance((await answer.end()).error, Cancelled)


async def all_unfinished_fail(answers: list[Answer]) -> None:
    """The core may be done with the first of them before this process has read a word; never with the last."""
    for answer in answers:
        await answer.end()
    assert isinstance(answers[-1].error, EngineFailed)
    for answer in answers:
        assert isinstance(answer.events[-1], Finished) or isinstance(answer.error, EngineFailed)


async def test_a_core_that_dies_ends_every_request_and_the_engine() -> None:
    async with running(create("--max-num-seqs 2")) as watch:
        # What the first request has to load would hold this process up, and the core be done with others meanwhile.
        await watch.chat("Hello").end()
        answers = [watch.long(f"Story {number}") for number in range(9)]
        await answers[0].until(lambda answer: len(answer.deltas) >= 2)
        pid = core_pid()
        os.kill(pid, signal.SIGKILL)
        await all_unfinished_fail(answers)
        async with asyncio.timeout(TIMEOUT_S):
            assert "died" in await watch.engine.failed()
        late = await watch.chat("Hello").end()
        assert late.error
    await until(lambda: not alive(pid))


async def test_a_core_that_hangs_ends_every_request_and_the_engine() -> None:
    async with running(create("--max-num-seqs 2", hang_timeout_s=2.0)) as watch:
        # What the first request has to load would hold this process up, and the core be done with others meanwhile.
        await watch.chat("Hello").end()
        answers = [watch.long(f"Story {number}") for number in range(9)]
        await answers[0].until(lambda answer: len(answer.deltas) >= 2)
        pid = core_pid()
        os.kill(pid, signal.SIGSTOP)
        await all_unfinished_fail(answers)
        async with asyncio.timeout(TIMEOUT_S):
            assert "hangs" in await watch.engine.failed()
    await until(lambda: not alive(pid))


@pytest.mark.parametrize("arguments", ["--tensor-parallel-size 2", "--data-parallel-size 2"])
async def test_a_model_spread_over_several_processes_is_one_engine(
    arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # vLLM finds cores for several workers by itself only where there are as many NUMA nodes.
    first, second, *_ = sorted(os.sched_getaffinity(0))
    if "tensor" in arguments:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{first}|{second}")
    entries = demo.load_faq()[:8]
    async with running(create(f"--max-num-seqs 2 {arguments}")) as watch:
        assert watch.info.capacity.max_sequences == (4 if "data" in arguments else 2)
        answers = [watch.chat(entry.question) for entry in entries]
        assert [(await answer.end()).text() for answer in answers] == [entry.answer for entry in entries]
        assert watch.engine.load().kv_used_blocks == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--no-such-flag 1", "no-such-flag"),
        ("--max-model-len many", "max-model-len"),
        ("--port 8000", "port"),
        ("--max-num-batched-tokens 0", "max_num_batched_tokens"),
        ("--served-model-name x", "served-model-name"),
    ],
)
async def test_arguments_that_make_no_sense_are_one_line(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        await create(arguments).start()
    assert message in refused.value.message
    assert "\n" not in refused.value.message


async def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    engine = VllmEngine(str(tmp_path / "nothing"), ("m",), VllmOptions(args=VLLM_ON_CPU), MonotonicClock())
    with pytest.raises(ConfigError, match=r"^--model: vLLM cannot serve"):
        await engine.start()


async def test_arguments_reach_vllm_under_their_own_names_and_old_ones() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from worker.engines.vllm.arguments import read_arguments

    words = (
        "--num-gpus 4 --pipeline-parallel-size 2 --data-parallel-size 2 --distributed-executor-backend ray "
        "--gpu_memory_utilization 0.5 --trust_remote_code --limit-worker-conc 17 --max-model 512 "
        """--kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'"""
    )
    arguments = AsyncEngineArgs.from_cli_args(read_arguments(VllmOptions(args=words), "some/model", ["m"]))
    assert (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (4, 2)
    assert (arguments.data_parallel_size, arguments.distributed_executor_backend) == (2, "ray")
    assert (arguments.gpu_memory_utilization, arguments.trust_remote_code) == (0.5, True)
    assert (arguments.max_num_seqs, arguments.max_model_len) == (17, 512)
    assert arguments.kv_transfer_config.kv_connector == "NixlConnector"
    assert (arguments.model, arguments.served_model_name) == ("some/model", ["m"])


async def test_without_vllm_one_line_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'lbcore\[vllm\]'"):
        await create().start()
