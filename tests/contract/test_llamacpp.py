"""What is special about the embedded engine: cancelling at once in every phase, its queue, model files, its end."""

from __future__ import annotations

import asyncio
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from lbcore.clock import MonotonicClock
from lbcore.errors import Cancelled, ConfigError, EngineFailed, InvalidRequest
from lbcore.generation import Dialect, Event, Finished, FinishReason, GenerationRequest, Started
from tests.contract.engines import TIMEOUT_S, Answer, EngineCase, Feature, Watch
from tests.fakes import settle
from worker import demo
from worker.engines.llamacpp import engine as engine_module
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.llamacpp.server import LlamaCppServer

PROMPT = [50 + (7 * position) % 600 for position in range(1900)]
"""Tokens that mean nothing, as many as nearly fill the context."""

TOOL_TEMPLATE = """
{%- if tools %}{{ '<|user|>tools:' }}{%- for tool in tools %}{{ tool | tojson }}{%- endfor %}
{{- 'Answer <|system|>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n<|pad|><|end|>' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|assistant|>' }}
        {%- for call in message.tool_calls %}
            {{- '\\n<|system|>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{ '}\\n<|pad|>' }}
        {%- endfor %}{{ '<|end|>' }}
    {%- else %}{{ '<|' + ('user' if message.role == 'tool' else message.role) + '|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}
"""
"""A template that knows tools, and writes a call between two of the demo model's special tokens."""


def create(options: LlamaCppOptions) -> LlamaCppEngine:
    return LlamaCppEngine(demo.GGUF_PATH, options, MonotonicClock())


@asynccontextmanager
async def running(options: LlamaCppOptions) -> AsyncIterator[Watch]:
    case = EngineCase("llamacpp", lambda: create(options), frozenset(Feature), tells_token_ids=False)
    watch = Watch(case)
    await watch.start()
    try:
        yield watch
    finally:
        await watch.close()


def long(watch: Watch, request_id: str, prompt: object = "Once") -> Answer:
    return watch.complete(prompt, request_id, max_tokens=140, ignore_eos=True)


def begun(answer: Answer) -> bool:
    return bool(answer.events)


def streaming(answer: Answer) -> bool:
    return len(answer.deltas) >= 3


async def cancel(watch: Watch, answer: Answer, request_id: str) -> None:
    watch.abort(request_id)
    assert isinstance((await answer.end()).error, Cancelled)


async def test_the_demo_model_answers_its_faq_word_for_word() -> None:
    entries = demo.load_faq()
    async with running(LlamaCppOptions()) as watch:
        answers = [watch.chat(entry.question) for entry in entries]
        texts = [(await answer.end()).text() for answer in answers]
    assert texts == [entry.answer for entry in entries]
    assert {answer.finish_reason() for answer in answers} == {FinishReason.STOP}


async def test_a_queued_request_is_cancelled_without_waiting_for_anything() -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        first, queued = long(watch, "first"), long(watch, "queued")
        await first.until(streaming)
        watch.abort("queued")
        await settle(2)
        assert isinstance(queued.error, Cancelled)
        assert len(queued.events) == 1
        assert not first.ended
        assert (await first.end()).finished.output_tokens == 140


async def test_cancelled_requests_leave_nothing_in_the_queue() -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        engine = watch.engine
        assert isinstance(engine, LlamaCppEngine)
        first = long(watch, "first")
        behind = [watch.complete("Once", name, max_tokens=2) for name in ("a", "b")]
        for number in range(500):
            watch.complete("Twice", str(number), max_tokens=2)
            watch.abort(str(number))
            assert len(engine._waiting) == 2
            assert len(engine._turns) <= 4
        await settle(2)
        assert not first.ended
        assert set(engine._calls) == {"first", "a", "b"}
        await cancel(watch, first, "first")
        await behind[1].end()
        assert [answer.finished.output_tokens for answer in behind] == [2, 2]


async def test_who_waited_behind_a_cancelled_request_goes_in() -> None:
    async with running(LlamaCppOptions(n_parallel=2)) as watch:
        blocking = long(watch, "blocking")
        await blocking.until(begun)
        watch.complete("Once", "wide", max_tokens=2, n=2)
        narrow = watch.complete("Once", max_tokens=2)
        narrow.on_event = lambda: ends.append(blocking.ended)
        ends: list[bool] = []
        watch.abort("wide")
        assert (await narrow.end()).finished
        assert not ends[-1], "it waited for a request that took only one of two sequences"


async def fails_alone(watch: Watch, prompt: object) -> None:
    """A request fails, and the engine is as it was."""
    engine = watch.engine
    assert isinstance(engine, LlamaCppEngine)
    answer = await watch.complete(prompt, "r", max_tokens=2).end()
    assert isinstance(answer.error, EngineFailed)
    assert "secret" not in answer.error.message
    assert (engine._free, engine._calls, engine._waiting, engine._turns, engine._inside) == (2, {}, {}, [], set())


async def test_what_nobody_expected_ends_one_request_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> Any:
        raise RuntimeError("secret")

    async with running(LlamaCppOptions(n_parallel=2)) as watch:
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "read_body", broken)
            await fails_alone(watch, "Once")
        with monkeypatch.context() as patch:
            patch.setattr(LlamaCppServer, "count_tokens", broken)
            await fails_alone(watch, ["Once", "Twice"])
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "create_connection", broken)
            await fails_alone(watch, "Once")
        asyncio.get_running_loop().set_task_factory(broken)
        answer = watch.complete("Once", "r", max_tokens=2)
        asyncio.get_running_loop().set_task_factory(None)
        assert isinstance((await answer.end()).error, EngineFailed)
        assert (await watch.complete(["Once", "Twice"], "r", max_tokens=2).end()).finished


@pytest.mark.parametrize("fields", [{"logprobs": True, "post_sampling_probs": True}, {"reasoning_format": "x"}])
async def test_a_field_llama_cpp_would_stumble_over_is_refused_by_name(fields: dict[str, object]) -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        answer = await watch.chat("Hello", max_tokens=2, **fields).end()
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.param == [*fields][-1]


async def test_a_request_is_cancelled_in_the_middle_of_its_prompt() -> None:
    async with running(LlamaCppOptions(n_parallel=1, n_batch=8)) as watch:
        answer = long(watch, "r", PROMPT)
        await answer.until(begun)
        assert answer.events == [Started(len(PROMPT), 0)]
        await cancel(watch, answer, "r")
        assert not answer.deltas
        # The only sequence is free again, and holds the part of the prompt that was computed.
        again = await watch.complete(PROMPT, max_tokens=1).end()
        assert again.finished.cached_tokens < len(PROMPT) - 1


async def test_a_request_is_cancelled_while_it_streams() -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        answer, following = long(watch, "r"), watch.complete("Twice", max_tokens=4)
        await answer.until(streaming)
        await cancel(watch, answer, "r")
        assert len(answer.deltas) < 140
        assert (await following.end()).finished


async def test_a_request_is_cancelled_before_llama_cpp_has_heard_of_it() -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        for turns in range(4):
            answer = long(watch, "r")
            await settle(turns)
            await cancel(watch, answer, "r")
        assert (await watch.complete("Once", max_tokens=2).end()).finished


async def test_the_urgent_goes_first_then_the_old() -> None:
    heard: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        blocking = long(watch, "blocking")
        await blocking.until(begun)
        for name, priority in (("a", 0), ("b", 0), ("urgent", 5), ("idle", -1)):
            body = orjson.dumps({"prompt": "Once", "max_tokens": 2})
            request = GenerationRequest(name, Dialect.COMPLETION, body, priority=priority)
            watch.engine.submit(request, partial(put, heard, name))
        order: list[str] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(order) < 4:
                name, event = await heard.get()
                order += [name] if isinstance(event, Finished) else []
    assert order == ["urgent", "a", "b", "idle"]


def put(queue: asyncio.Queue[tuple[str, Event]], name: str, event: Event) -> None:
    queue.put_nowait((name, event))


async def test_a_request_with_many_choices_waits_for_enough_sequences_and_is_not_overtaken() -> None:
    async with running(LlamaCppOptions(n_parallel=3)) as watch:
        blocking = long(watch, "blocking")
        await blocking.until(begun)
        wide = watch.complete("Once", max_tokens=2, n=3)
        narrow = watch.complete("Once", max_tokens=2)
        narrow.on_event = lambda: ends.append(wide.ended)
        ends: list[bool] = []
        await narrow.end()
        assert ends[0], "the later request began before the one in front of it was over"


async def test_more_prompts_than_sequences_are_served_all_the_same() -> None:
    prompts = [f"{number} is a number" for number in range(7)]
    async with running(LlamaCppOptions(n_parallel=2)) as watch:
        alone = [(await watch.complete(prompt, max_tokens=5).end()).text() for prompt in prompts]
        together = await watch.complete(prompts, max_tokens=5).end()
        assert [together.text(choice) for choice in range(7)] == alone
        refused = await watch.complete("x", n=3).end()
        assert isinstance(refused.error, InvalidRequest)
        assert refused.error.param == "n"


async def test_choices_that_meet_a_stop_string_end_and_are_counted_there() -> None:
    async with running(LlamaCppOptions()) as watch:
        whole = await watch.chat(demo.load_faq()[0].question).end()
        stop = whole.deltas[5].text + whole.deltas[6].text
        answer = await watch.chat(demo.load_faq()[0].question, n=2, stop=[stop], temperature=0).end()
        for choice in range(2):
            assert answer.text(choice) == whole.text()[: whole.text().find(stop)]
            assert answer.finish_reason(choice) is FinishReason.STOP
        assert answer.finished.output_tokens == 2 * 7


async def test_json_that_was_asked_for_is_json() -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    async with running(LlamaCppOptions()) as watch:
        answer = await watch.chat("Say something.", max_tokens=200, response_format=wanted).end()
    assert isinstance(orjson.loads(answer.text())["on"], bool)


async def test_a_tool_call_comes_in_parts() -> None:
    vocabulary = orjson.loads((demo.HF_PATH / "tokenizer.json").read_bytes())["model"]["vocab"]
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {**parameters, "additionalProperties": False}},
    }
    # The demo model knows no tools: the tokens by which a call begins are made so likely that one does.
    bias = {str(vocabulary[token]): 50 for token in ("<|system|>", "Ċ")}
    async with running(LlamaCppOptions(chat_template=TOOL_TEMPLATE)) as watch:
        for seed in range(40):
            fields = {"tools": [tool], "logit_bias": bias, "seed": seed, "temperature": 1, "max_tokens": 120}
            answer = await watch.chat("What is there to see?", **fields).end()
            calls = [call for delta in answer.deltas for call in delta.tool_calls if call.index == 0]
            if calls:
                break
    assert calls[0].id
    assert [call.name for call in calls if call.name] == ["look"]
    assert isinstance(orjson.loads("".join(call.arguments for call in calls))["on"], bool)


async def test_nobody_else_on_this_machine_gets_in() -> None:
    async with running(LlamaCppOptions()) as watch:
        assert isinstance(watch.engine, LlamaCppEngine)
        assert watch.engine._server is not None
        url = f"http://{watch.engine._server.host}:{watch.engine._server.port}/slots"
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(urllib.request.urlopen, url)


async def test_an_engine_whose_llama_cpp_is_gone_says_so() -> None:
    async with running(LlamaCppOptions(n_parallel=1)) as watch:
        assert isinstance(watch.engine, LlamaCppEngine)
        assert watch.engine._server is not None
        await watch.engine._server.close()
        answers = [watch.chat("Hello"), watch.chat("Hello again")]
        for answer in answers:
            assert isinstance((await answer.end()).error, EngineFailed)
        async with asyncio.timeout(TIMEOUT_S):
            assert await watch.engine.failed()
        assert len((await watch.chat("Anybody?").end()).events) == 1


def bad_files(folder: Path) -> dict[str, Path]:
    model = demo.GGUF_PATH.read_bytes()
    contents = {
        "empty": b"",
        "text": b"This is no model.\n",
        "head only": model[:100],
        "half": model[: len(model) // 2],
        "last tensor cut": model[:-100],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "missing"]} | {"folder": folder}


@pytest.mark.parametrize("name", ["empty", "text", "head only", "half", "last tensor cut", "missing", "folder"])
async def test_a_file_that_is_no_model_is_refused_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = LlamaCppEngine(bad_files(tmp_path)[name], LlamaCppOptions(), MonotonicClock())
    with pytest.raises(ConfigError) as caught:
        await engine.start()
    await engine.close()
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (LlamaCppOptions(n_ctx=10**6), "--llamacpp-n-ctx"),
        (LlamaCppOptions(chat_template="/nowhere/template.jinja"), "--llamacpp-chat-template"),
    ],
)
async def test_an_option_that_makes_no_sense_is_refused_by_name(options: LlamaCppOptions, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        await create(options).start()


async def test_nothing_is_printed_while_serving(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(LlamaCppOptions()) as watch:
        await watch.chat("Hello", max_tokens=3).end()
        await watch.complete([10**6]).end()
        await watch.chat("word " * 3000).end()
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import asyncio, sys
from lbcore.clock import MonotonicClock
from lbcore.generation import Dialect, GenerationRequest
from worker import demo
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions

async def main():
    engine = LlamaCppEngine(demo.GGUF_PATH, LlamaCppOptions(), MonotonicClock())
    await engine.start()
    running = asyncio.Event()
    body = b'{"prompt": "Once", "max_tokens": 2000, "ignore_eos": true}'
    for number in range(12):
        engine.submit(GenerationRequest(str(number), Dialect.COMPLETION, body), lambda event: running.set())
    await running.wait()
    if sys.argv[1] == "closed":
        await engine.close()
    return engine

engine = asyncio.run(main())
print("end")
"""


@pytest.mark.parametrize("how", ["closed", "left open"])
async def test_the_process_ends_cleanly_with_requests_under_way(how: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        SCRIPT,
        how,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"end\n", b"")
