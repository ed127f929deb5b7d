"""What is special about the transformers engine: its answers, its chance, preemption, its end. Needs torch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lbcore.clock import Clock, MonotonicClock
from lbcore.errors import Cancelled, ConfigError, ContextLengthExceeded, EngineFailed, InvalidRequest
from lbcore.generation import Dialect, Finished, FinishReason, GenerationRequest
from tests.contract.engines import TIMEOUT_S, Answer, EngineCase, Feature, Watch
from tests.fakes import ManualClock, settle
from worker import demo
from worker.engines.transformers.engine import TransformersEngine, TransformersOptions
from worker.engines.transformers.runner import Runner

OPTIONS = TransformersOptions(context_length=1024)
MODEL = str(demo.HF_PATH)


@asynccontextmanager
async def running(
    options: TransformersOptions = OPTIONS, clock: Clock | None = None, model: str = MODEL
) -> AsyncIterator[Watch]:
    create = lambda: TransformersEngine(model, options, clock or MonotonicClock())  # noqa: E731
    watch = Watch(EngineCase("transformers", create, frozenset(Feature)))
    await watch.start()
    try:
        yield watch
    finally:
        await watch.close()


def runner_of(watch: Watch) -> Runner:
    assert isinstance(watch.engine, TransformersEngine)
    assert watch.engine._runner is not None
    return watch.engine._runner


def reference() -> tuple[Any, Any]:
    """The model and its tokenizer, by themselves."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(MODEL)


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return [*tokenizer(text, add_special_tokens=False)["input_ids"]]


async def until_true(holds: Any) -> None:
    """Waits for what another thread does."""
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.001)


async def test_the_demo_model_answers_its_faq_word_for_word() -> None:
    entries = demo.load_faq()
    async with running() as watch:
        answers = [watch.chat(entry.question) for entry in entries]
        texts = [(await answer.end()).text() for answer in answers]
    assert texts == [entry.answer for entry in entries]
    assert {answer.finish_reason() for answer in answers} == {FinishReason.STOP}


async def test_greedy_answers_are_those_of_transformers_own_generate() -> None:
    import torch

    model, tokenizer = reference()
    questions = [entry.question for entry in demo.load_faq()[:4]] + ["Tell me of the sea.", "日本 🙂 naïve?"]
    async with running() as watch:
        answers = [watch.chat(question, max_tokens=60, ignore_eos=True) for question in questions]
        for question, answer in zip(questions, answers, strict=True):
            await answer.end()
            ids = prompt_ids(tokenizer, question)
            whole = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=60, min_new_tokens=60, eos_token_id=-1
            )
            generated = whole[0, len(ids) :].tolist()
            assert answer.token_ids() == generated
            assert answer.text() == tokenizer.decode(generated, skip_special_tokens=True)
            assert answer.finished.prompt_tokens == len(ids)


async def test_the_text_is_that_of_all_tokens_whatever_they_are() -> None:
    _, tokenizer = reference()
    async with running() as watch:
        answers = [
            watch.chat("Anything.", seed=seed, temperature=3.0, max_tokens=120, ignore_eos=True) for seed in range(24)
        ]
        for answer in answers:
            await answer.end()
            assert answer.text() == tokenizer.decode(answer.token_ids(), skip_special_tokens=True)
    assert any("\N{REPLACEMENT CHARACTER}" in answer.text() for answer in answers), "no token was half a character"


async def test_log_probabilities_are_those_of_the_model() -> None:
    import torch

    model, tokenizer = reference()
    async with running() as watch:
        crowd = [watch.chat(f"Number {number}", max_tokens=30) for number in range(5)]
        answer = await watch.chat(
            "What now?", max_tokens=12, logprobs=True, top_logprobs=4, temperature=2, seed=1
        ).end()
        for other in crowd:
            await other.end()
    ids, tokens = prompt_ids(tokenizer, "What now?"), answer.token_ids()
    scores = torch.log_softmax(model(torch.tensor([ids + tokens])).logits[0].float(), dim=-1)
    told = [logprob for delta in answer.deltas for logprob in delta.logprobs]
    for place, (token, logprob) in enumerate(zip(tokens, told, strict=True)):
        row = scores[len(ids) + place - 1]
        assert logprob.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert logprob.token_bytes.decode(errors="replace") == logprob.token == tokenizer.decode([token])
        assert [top.logprob for top in logprob.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)


async def test_everyone_in_a_batch_chooses_by_its_own_rules() -> None:
    async with running() as watch:
        plain = (await watch.chat("Who?", max_tokens=20).end()).token_ids()
        rules: list[dict[str, object]] = [
            {},
            {"temperature": 1.5, "top_k": 1},
            {"temperature": 1.5, "top_p": 1e-9},
            {"temperature": 1.5, "min_p": 1.0},
            {"temperature": 3.0, "seed": 4},
            {"logit_bias": {"100": 100}},
            {"allowed_token_ids": [101, 102]},
            {"temperature": 1e-9},
        ]
        answers = [watch.chat("Who?", **{"max_tokens": 20, "ignore_eos": True, **one}) for one in rules]
        chosen = [(await answer.end()).token_ids() for answer in answers]
    for index in (0, 1, 2, 3, 7):
        assert chosen[index][: len(plain)] == plain
    assert chosen[4][: len(plain)] != plain
    assert chosen[5] == [100] * 20
    assert {*chosen[6]} <= {101, 102}


async def test_a_seed_means_the_same_alone_and_in_a_crowd() -> None:
    async with running() as watch:

        def ask(seed: int) -> Answer:
            return watch.chat("Dice", max_tokens=24, temperature=4, seed=seed, ignore_eos=True, n=2)

        alone = await ask(7).end()
        crowd = [ask(seed) for seed in range(10)]
        for answer in crowd:
            await answer.end()
    assert [crowd[7].token_ids(choice) for choice in range(2)] == [alone.token_ids(choice) for choice in range(2)]
    assert alone.token_ids(0) != alone.token_ids(1)
    assert len({tuple(answer.token_ids()) for answer in crowd}) == 10


async def test_an_engine_with_a_seed_repeats_itself_without_one_in_the_request() -> None:
    texts = []
    for seed in (3, 3, 4):
        async with running(TransformersOptions(context_length=256, seed=seed)) as watch:
            texts.append((await watch.chat("Dice", max_tokens=24, temperature=4).end()).token_ids())
    assert texts[0] == texts[1] != texts[2]


async def test_tokens_that_end_an_answer_and_tokens_before_which_nothing_does() -> None:
    question = demo.load_faq()[0].question
    async with running() as watch:
        whole = (await watch.chat(question).end()).token_ids()
        end = await watch.chat(question, stop_token_ids=[whole[5]]).end()
        first = whole.index(whole[5])
        assert end.token_ids() == whole[: first + 1]
        assert end.finish_reason() is FinishReason.STOP
        longer = await watch.chat(question, min_tokens=len(whole) + 5, max_tokens=len(whole) + 9).end()
        assert longer.finished.output_tokens >= len(whole) + 5
        assert longer.token_ids()[: len(whole) - 1] == whole[:-1]
        assert longer.token_ids()[len(whole) - 1] != whole[-1]


async def test_a_penalty_keeps_tokens_from_coming_back() -> None:
    async with running() as watch:
        fields = {"max_tokens": 60, "ignore_eos": True}
        often = (await watch.chat("Again", **fields).end()).token_ids()
        never = (await watch.chat("Again", **fields, repetition_penalty=100).end()).token_ids()
    assert len({*often}) < len({*never}) == 60


async def test_sequences_that_were_preempted_go_on_as_if_nothing_had_been() -> None:
    prompts = [f"{number}: a long story, please, of trains and of the sea." for number in range(6)]
    fields = {"max_tokens": 200, "ignore_eos": True, "temperature": 1.2, "seed": 5, "logprobs": True}
    preempted = 0
    async with running() as roomy:
        alone = [await roomy.chat(prompt, **fields).end() for prompt in prompts]
    async with running(TransformersOptions(context_length=256, kv_blocks=32)) as watch:
        manager = runner_of(watch)._batch.offloading_manager
        offload = manager.offload_requests

        def counted() -> Any:
            nonlocal preempted
            before = len(manager.scheduler.waiting_requests)
            done = offload()
            preempted += len(manager.scheduler.waiting_requests) - before
            return done

        manager.offload_requests = counted
        answers = [watch.chat(prompt, **fields) for prompt in prompts]
        for one, other in zip(answers, alone, strict=True):
            await one.end()
            assert one.token_ids() == other.token_ids()
            assert sum(len(delta.logprobs) for delta in one.deltas) == 200
    assert preempted > 0, "the cache was large enough: nothing was tried here"


async def test_cancelling_whoever_took_others_blocks_lets_them_go_on() -> None:
    async with running(TransformersOptions(context_length=256, kv_blocks=17, max_num_seqs=4)) as watch:
        for _ in range(5):
            answers = [
                watch.chat(f"Story {number}", f"r{number}", max_tokens=220, ignore_eos=True) for number in range(4)
            ]
            await until_true(lambda: runner_of(watch)._batch.scheduler.block_new_requests)
            for number in range(3):
                watch.abort(f"r{number}")
            assert (await answers[3].end()).finished.output_tokens == 220


async def test_a_cancelled_request_is_told_at_once_and_its_blocks_are_free_soon() -> None:
    async with running(TransformersOptions(context_length=1024, max_batch_tokens=128)) as watch:
        prompt = [50 + (7 * position) % 600 for position in range(900)]
        for length in (10, 900):
            answer = watch.complete(prompt[:length], "r", max_tokens=100, ignore_eos=True)
            await answer.until(lambda answer: bool(answer.events))
            aborted_at = time.perf_counter()
            watch.abort("r")
            await settle(2)
            assert isinstance(answer.error, Cancelled)
            await until_true(lambda: not runner_of(watch)._batch.scheduler.active_requests)
            await until_true(lambda: not watch.engine.load().kv_used_blocks)
            assert time.perf_counter() - aborted_at < 0.1


async def test_the_urgent_goes_first() -> None:
    ends: list[str] = []
    async with running(TransformersOptions(context_length=256, max_num_seqs=1)) as watch:
        blocking = watch.complete("Once", max_tokens=50, ignore_eos=True)
        await blocking.until(lambda answer: len(answer.deltas) > 2)
        for name, priority in (("a", 0), ("urgent", 5), ("idle", -1)):
            request = GenerationRequest(
                name, Dialect.COMPLETION, b'{"prompt": "Once", "max_tokens": 2}', priority=priority
            )

            def emit(event: object, name: str = name) -> None:
                ends.extend([name] if isinstance(event, Finished) else [])

            watch.engine.submit(request, emit)
        await until_true(lambda: len(ends) == 3)
    assert ends == ["urgent", "a", "idle"]


async def test_an_engine_that_hangs_says_so_when_its_time_is_over() -> None:
    clock = ManualClock()
    release, stuck = threading.Event(), threading.Event()

    def hang(model: object) -> None:
        stuck.set()
        release.wait(TIMEOUT_S)

    async with running(TransformersOptions(context_length=256, hang_timeout_s=60), clock) as watch:
        failed = asyncio.ensure_future(watch.engine.failed())
        assert (await watch.chat("Hello", max_tokens=2).end()).finished
        # Idle is not hung.
        await clock.elapse(600)
        assert not failed.done()
        runner_of(watch)._batch._generation_step = hang
        answer = watch.chat("Hello")
        await until_true(stuck.is_set)
        await clock.elapse(59)
        assert not answer.ended
        assert not failed.done()
        await clock.elapse(2)
        assert "60 seconds" in await failed
        assert isinstance((await answer.end()).error, EngineFailed)
        late = await watch.chat("Anybody?").end()
        assert len(late.events) == 1
        release.set()


async def test_an_engine_whose_thread_dies_says_so_and_ends_everything() -> None:
    def broken(model: object) -> None:
        raise RuntimeError("secret")

    async with running() as watch:
        answers = [watch.long(f"Story {number}") for number in range(40)]
        await answers[0].until(lambda answer: len(answer.deltas) > 2)
        runner_of(watch)._batch._generation_step = broken
        async with asyncio.timeout(TIMEOUT_S):
            why = await watch.engine.failed()
        assert "RuntimeError" in why
        assert "secret" not in why
        assert "\n" not in why
        for answer in answers:
            assert isinstance((await answer.end()).error, EngineFailed)
        assert len((await watch.chat("Anybody?").end()).events) == 1


async def test_what_nobody_expected_ends_one_request_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> Any:
        raise RuntimeError("secret")

    async with running() as watch:
        assert isinstance(watch.engine, TransformersEngine)
        assert watch.engine._loaded is not None
        vocabulary = watch.engine._loaded.vocabulary
        for name in ("encode", "decode"):
            with monkeypatch.context() as patch:
                patch.setattr(vocabulary, name, broken)
                answer = await watch.chat("Hello", max_tokens=3).end()
            assert isinstance(answer.error, EngineFailed)
            assert "secret" not in answer.error.message
        assert (await watch.chat("Hello", max_tokens=3).end()).finished
        await until_true(lambda: not watch.engine.load().kv_used_blocks)


@pytest.mark.parametrize(
    "field",
    [
        {"stop_token_ids": [768]},
        {"allowed_token_ids": [5, 9999]},
        {"logit_bias": {"768": 1}},
        {"echo": True},
        {"min_tokens": 9, "max_tokens": 8},
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(field: dict[str, object]) -> None:
    async with running(TransformersOptions(context_length=256)) as watch:
        answer = await watch.complete("Hello", **field).end()
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.param == next(iter(field))


async def test_prompts_that_are_no_tokens_of_the_model_are_refused() -> None:
    async with running(TransformersOptions(context_length=256)) as watch:
        for prompt in ([5, 768], "", ["fine", ""]):
            answer = await watch.complete(prompt, max_tokens=2).end()
            assert isinstance(answer.error, InvalidRequest)
            assert answer.error.param == "prompt"
        # Half a surrogate pair, as JSON can write it.
        body = b'{"messages": [{"role": "user", "content": "\\ud83d"}], "max_tokens": 2}'
        assert isinstance((await watch.submit(Dialect.CHAT, body).end()).error, InvalidRequest)
        too_long = await watch.complete([5] * 300, max_tokens=7).end()
        assert isinstance(too_long.error, ContextLengthExceeded)
        assert [number for number in ("256", "300", "7") if number in too_long.error.message] == ["256", "300", "7"]


async def test_arguments_and_earlier_calls_reach_the_template_and_its_refusals_the_client(tmp_path: Path) -> None:
    for file in demo.HF_PATH.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (
        "{{ extra }}"
        "{%- for message in messages -%}{%- if message.role == 'tool' -%}{{ raise_exception('secret') }}{%- endif -%}"
        "{%- for call in message.tool_calls or [] -%}{{ call.function.arguments.on }}{%- endfor -%}"
        "{{ message.content }}{%- endfor -%}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    _, tokenizer = reference()
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"on": "ARG"}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": [call]},
    ]
    body = {"messages": messages, "chat_template_kwargs": {"extra": "more"}, "max_tokens": 1}
    async with running(TransformersOptions(context_length=256), model=str(tmp_path)) as watch:
        answer = await watch.submit(Dialect.CHAT, body).end()
        assert answer.finished.prompt_tokens == len(tokenizer("moreabARGc")["input_ids"])
        refused = await watch.submit(Dialect.CHAT, {"messages": [{"role": "tool", "content": "x"}]}).end()
        assert isinstance(refused.error, InvalidRequest)
        assert "secret" not in refused.error.message
    (tmp_path / "chat_template.jinja").unlink()
    async with running(TransformersOptions(context_length=256), model=str(tmp_path)) as watch:
        refused = await watch.chat("Hello").end()
        assert isinstance(refused.error, InvalidRequest)
        assert (await watch.complete("Hello", max_tokens=1).end()).finished


async def fails_to_start(model: str, options: TransformersOptions = OPTIONS) -> str:
    engine = TransformersEngine(model, options, MonotonicClock())
    with pytest.raises(ConfigError) as caught:
        await engine.start()
    await engine.close()
    assert "\n" not in caught.value.message
    return caught.value.message


async def test_a_path_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    empty, damaged, other = tmp_path / "empty", tmp_path / "damaged", tmp_path / "other"
    for folder in (empty, damaged, other):
        folder.mkdir()
    for file in demo.HF_PATH.iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
        (other / file.name).write_bytes(content.replace(b'"model_type": "llama"', b'"model_type": "nothing"'))
    for model in (tmp_path / "missing", empty, damaged, other, demo.GGUF_PATH):
        message = await fails_to_start(str(model))
        assert message.startswith("--model: ")
        assert str(model) in message


SMALL = {
    "vocab_size": 768,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
}


def made(folder: Path, kind: str, **config: object) -> str:
    """A model of another architecture, that knows nothing, with the demo model's tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SMALL, **config}))
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.15)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((demo.HF_PATH / name).read_bytes())
    return str(folder)


@pytest.mark.parametrize(("kind", "config"), [("bloom", {"n_layer": 2, "n_head": 4}), ("mamba", {})])
async def test_models_that_transformers_batches_wrongly_or_not_at_all_are_refused(
    tmp_path: Path, kind: str, config: dict[str, object]
) -> None:
    message = await fails_to_start(made(tmp_path, kind, **config), TransformersOptions(context_length=256))
    assert message.startswith("--model: ")
    assert kind in message.lower()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("qwen3", {"head_dim": 16, "num_key_value_heads": 2}),
        ("mistral", {"sliding_window": 32, "num_key_value_heads": 2}),
        ("gpt2", {"n_layer": 2, "n_head": 4}),
    ],
)
async def test_models_of_other_kinds_say_what_they_say_alone(
    tmp_path: Path, kind: str, config: dict[str, object], attention: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = made(tmp_path, kind, **config)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    prompts = [[50 + 7 * number * place % 600 for place in range(60)] for number in range(1, 5)]
    async with running(TransformersOptions(context_length=256, attention=attention), model=path) as watch:
        answers = [watch.complete(prompt, max_tokens=30, ignore_eos=True) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt])
            alone = model.generate(ids, do_sample=False, max_new_tokens=30, min_new_tokens=30, eos_token_id=-1)
            assert (await answer.end()).token_ids() == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (TransformersOptions(device="abacus"), "--transformers-device"),
        (TransformersOptions(context_length=4096), "--transformers-context-length"),
        (TransformersOptions(context_length=1024, kv_blocks=10), "--transformers-context-length"),
        (TransformersOptions(max_batch_tokens=8, max_num_seqs=9), "--transformers-max-batch-tokens"),
        (TransformersOptions(kv_blocks=2**30), "--model"),
        (TransformersOptions(attention="flash_attention_2"), "--model"),
    ],
)
async def test_options_that_make_no_sense_are_refused_by_name(options: TransformersOptions, name: str) -> None:
    assert (await fails_to_start(MODEL, options)).startswith(name)
