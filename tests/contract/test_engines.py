"""The laws of `worker.engine`, for every engine there is. The order of events is watched in every test, at its end."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from lbcore.errors import Cancelled, ContextLengthExceeded, InvalidRequest
from lbcore.generation import Dialect, Failed, FinishReason, Started
from tests.contract.engines import TIMEOUT_S, Answer, EngineCase, Feature, Watch

CROWD = 64


def assert_refused(answer: Answer, param: str) -> None:
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.param == param
    assert len(answer.events) == 1, "a refused request must not start"


async def test_an_engine_says_what_it_can_hold(watch: Watch) -> None:
    assert watch.info.context_length > 1
    assert watch.info.capacity.max_sequences >= 1
    assert watch.info.continues is watch.case.continues


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETION])
async def test_an_answer_starts_and_ends_with_its_usage(watch: Watch, dialect: Dialect) -> None:
    answer = await (watch.chat if dialect is Dialect.CHAT else watch.complete)("Hello there", max_tokens=20).end()
    assert answer.started.prompt_tokens >= (1 if watch.case.counts_prompt_first else 0)
    assert answer.finished.prompt_tokens >= 1
    assert 1 <= answer.finished.output_tokens <= 20


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
async def test_the_limit_is_exact(watch: Watch, max_tokens: int) -> None:
    answer = await watch.chat("Count as far as you can.", max_tokens=max_tokens).end()
    if answer.finish_reason() is FinishReason.LENGTH:
        assert answer.finished.output_tokens == max_tokens
    else:
        assert answer.finish_reason() is FinishReason.STOP
        assert answer.finished.output_tokens <= max_tokens


async def test_an_answer_that_may_not_end_by_itself_has_exactly_the_length_asked_for(watch: Watch) -> None:
    if await watch.offers(Feature.IGNORE_EOS):
        answer = await watch.chat("Say yes.", max_tokens=60, ignore_eos=True).end()
        assert answer.finished.output_tokens == 60
        assert answer.finish_reason() is FinishReason.LENGTH


async def test_without_a_limit_an_answer_ends_all_the_same(watch: Watch) -> None:
    answer = await watch.chat("What does a load balancer do?").end()
    assert answer.finished.output_tokens >= 1


async def test_the_newer_name_of_the_limit_is_understood(watch: Watch) -> None:
    answer = await watch.chat("Count as far as you can.", max_completion_tokens=3).end()
    assert answer.finished.output_tokens <= 3


async def test_the_same_body_has_the_same_answer_on_two_engines(watch: Watch) -> None:
    other = Watch(watch.case)
    await other.start()
    answers = [await one.chat("Why is the sky blue?", max_tokens=24).end() for one in (watch, other)]
    assert answers[0].text() == answers[1].text() != ""
    await other.close()


async def test_characters_beyond_ascii_arrive_whole(watch: Watch) -> None:
    prompts = [f"{number} café 日本 🙂 Привет" for number in range(8)]
    answers = [await watch.chat(prompt, max_tokens=40).end() for prompt in prompts]
    assert any(answer.text() for answer in answers)


@pytest.mark.parametrize("stream", [True, False])
async def test_whether_the_client_streams_makes_no_difference_here(watch: Watch, stream: bool) -> None:
    plain = await watch.chat("Name a colour.", max_tokens=8).end()
    told = await watch.chat("Name a colour.", max_tokens=8, stream=stream).end()
    assert told.text() == plain.text()


async def test_a_stop_string_ends_the_text_exactly_before_it(watch: Watch) -> None:
    if not await watch.offers(Feature.STOP):
        return
    whole = await watch.chat("Tell me about trains.", max_tokens=30).end()
    text = whole.text()
    border = len(whole.deltas[2].text) + len(whole.deltas[1].text) + len(whole.deltas[0].text)
    for start, end in ((border - 1, border + 1), (border - 2, border + 5), (border, border + 1), (0, 1), (3, 9)):
        stop = text[start:end]
        answer = await watch.chat("Tell me about trains.", max_tokens=30, stop=[stop, "never in there"]).end()
        assert answer.text() == text[: text.find(stop)]
        assert answer.finish_reason() is FinishReason.STOP


async def test_a_stop_string_that_only_begins_loses_no_text(watch: Watch) -> None:
    if not await watch.offers(Feature.STOP):
        return
    whole = await watch.chat("Tell me about trains.", max_tokens=20).end()
    stops = [whole.text()[-3:] + "☃", whole.text()[4:8] + "☃"]
    answer = await watch.chat("Tell me about trains.", max_tokens=20, stop=stops).end()
    assert answer.text() == whole.text()
    assert answer.finish_reason() is whole.finish_reason()


async def test_several_choices_are_told_apart(watch: Watch) -> None:
    if not await watch.offers(Feature.CHOICES):
        return
    answer = await watch.chat("Pick a word.", max_tokens=12, n=3, temperature=1.0).end()
    assert {delta.choice for delta in answer.deltas} == {0, 1, 2}
    for choice in range(3):
        assert answer.text(choice)
        assert answer.finish_reason(choice) in (FinishReason.LENGTH, FinishReason.STOP)
    if answer.tells_token_ids:
        assert answer.finished.output_tokens == sum(len(answer.token_ids(choice)) for choice in range(3))


async def test_a_seed_makes_chance_repeat_itself(watch: Watch) -> None:
    if not await watch.offers(Feature.SEED):
        return
    # Nothing that narrows chance down: a small model is sure enough of itself.
    chance = {"max_tokens": 16, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    first = [(await watch.complete("The", **chance, seed=seed).end()).text() for seed in range(1, 5)]
    again = [(await watch.complete("The", **chance, seed=seed).end()).text() for seed in range(1, 5)]
    assert again == first
    assert len(set(first)) > 1


async def test_token_ids_are_a_prompt_too(watch: Watch) -> None:
    if await watch.offers(Feature.TOKEN_PROMPT):
        answer = await watch.complete([5, 6, 7, 8, 9], max_tokens=4).end()
        assert answer.finished.prompt_tokens == 5


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETION])
async def test_log_probabilities_come_with_every_token(watch: Watch, dialect: Dialect) -> None:
    if not await watch.offers(Feature.LOGPROBS):
        return
    if dialect is Dialect.CHAT:
        answer = await watch.chat("Hello", max_tokens=6, logprobs=True, top_logprobs=3).end()
    else:
        answer = await watch.complete("Hello", max_tokens=6, logprobs=3).end()
    logprobs = [logprob for delta in answer.deltas for logprob in delta.logprobs]
    assert len(logprobs) == answer.finished.output_tokens
    for logprob in logprobs:
        assert logprob.logprob <= 0
        assert len(logprob.top) == 3
        assert [top.logprob for top in logprob.top] == sorted((top.logprob for top in logprob.top), reverse=True)
    assert b"".join(logprob.token_bytes for logprob in logprobs).decode(errors="ignore").startswith(answer.text())


async def test_log_probabilities_come_only_when_asked_for(watch: Watch) -> None:
    answer = await watch.chat("Hello", max_tokens=6).end()
    assert not any(delta.logprobs for delta in answer.deltas)


@pytest.mark.parametrize("feature", Feature)
async def test_a_feature_is_offered_or_refused_by_name(watch: Watch, feature: Feature) -> None:
    if await watch.offers(feature):
        assert (await watch.probe(feature).end()).finished


async def test_json_output_is_json(watch: Watch) -> None:
    if not await watch.offers(Feature.JSON_OUTPUT):
        return
    answer = await watch.chat("Answer in JSON.", max_tokens=200, response_format={"type": "json_object"}).end()
    if answer.finish_reason() is FinishReason.STOP:
        assert isinstance(orjson.loads(answer.text()), dict)
    else:
        assert answer.text().lstrip().startswith("{")


async def test_several_prompts_have_their_choices_one_after_the_other(watch: Watch) -> None:
    if not (await watch.offers(Feature.SEVERAL_PROMPTS) and await watch.offers(Feature.CHOICES)):
        return
    prompts = ["The first prompt", "And a second one"]
    alone = [await watch.complete(prompt, max_tokens=6, n=2, seed=3).end() for prompt in prompts]
    together = await watch.complete(prompts, max_tokens=6, n=2, seed=3).end()
    assert together.finished.prompt_tokens == sum(answer.finished.prompt_tokens for answer in alone)
    assert together.finished.output_tokens == sum(answer.finished.output_tokens for answer in alone)
    texts = [answer.text(choice) for answer in alone for choice in range(2)]
    assert [together.text(choice) for choice in range(4)] == texts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "many"),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_tokens", 1.5),
        ("temperature", "hot"),
        ("top_p", []),
        ("n", "two"),
        ("n", 0),
        ("seed", "lucky"),
        ("stop", 5),
        ("stop", [5]),
    ],
)
async def test_a_wrong_value_is_refused_by_the_name_of_its_field(watch: Watch, field: str, value: object) -> None:
    assert_refused(await watch.chat("Hello", **{field: value}).end(), field)
    assert_refused(await watch.complete("Hello", **{field: value}).end(), field)


@pytest.mark.parametrize("messages", [None, [], "Hello", {"role": "user"}])
async def test_messages_that_are_none_are_refused(watch: Watch, messages: object) -> None:
    assert_refused(await watch.submit(Dialect.CHAT, {"model": "m", "messages": messages}).end(), "messages")


@pytest.mark.parametrize("prompt", [None, 5, {"text": "x"}, [], ["a", 1], [-1]])
async def test_a_prompt_that_is_none_is_refused(watch: Watch, prompt: object) -> None:
    assert_refused(await watch.complete(prompt).end(), "prompt")


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe"])
async def test_what_is_no_json_object_is_refused(watch: Watch, body: bytes) -> None:
    for dialect in Dialect:
        answer = await watch.submit(dialect, body).end()
        assert isinstance(answer.error, InvalidRequest)


async def test_too_much_for_the_context_is_refused_with_the_numbers(watch: Watch) -> None:
    limit = watch.info.context_length
    prompt = "A question."
    prompt_tokens = (await watch.chat(prompt, max_tokens=1).end()).finished.prompt_tokens
    answer = await watch.chat(prompt, max_tokens=limit).end()
    assert isinstance(answer.error, ContextLengthExceeded)
    for number in (prompt_tokens, limit):
        assert str(number) in answer.error.message
    too_long = await watch.chat("word " * limit, max_tokens=1).end()
    assert isinstance(too_long.error, ContextLengthExceeded)
    assert str(limit) in too_long.error.message


async def test_a_request_that_just_fits_the_context_is_served(watch: Watch) -> None:
    prompt_tokens = (await watch.chat("A question.", max_tokens=1).end()).finished.prompt_tokens
    answer = watch.chat("A question.", "fits", max_tokens=watch.info.context_length - prompt_tokens)
    await answer.until(lambda answer: len(answer.deltas) >= 2)
    watch.abort("fits")
    await answer.end()
    assert answer.deltas


async def test_a_repeated_prompt_is_found_in_the_cache(watch: Watch) -> None:
    prompt = "The load balancer keeps a table of its workers. " * 6
    first = await watch.chat(prompt, max_tokens=8).end()
    second = await watch.chat(prompt, max_tokens=8).end()
    assert first.finished.cached_tokens == 0
    assert (second.finished.cached_tokens > 0) == watch.case.caches_prefixes
    assert second.text() == first.text()


async def test_a_request_aborted_before_it_starts_is_cancelled(watch: Watch) -> None:
    answer = watch.long(request_id="r")
    watch.abort("r")
    await answer.end()
    assert isinstance(answer.error, Cancelled)
    assert not answer.deltas


async def test_a_request_aborted_in_prefill_is_cancelled(watch: Watch) -> None:
    answer = watch.long("word " * 100, request_id="r")
    await answer.until(lambda answer: bool(answer.events))
    assert isinstance(answer.events[0], Started)
    watch.abort("r")
    await answer.end()
    assert isinstance(answer.error, Cancelled)


async def test_a_request_aborted_in_mid_stream_is_cancelled_and_others_go_on(watch: Watch) -> None:
    answer, other = watch.long(request_id="r"), watch.chat("Hello", max_tokens=30)
    await answer.until(lambda answer: len(answer.deltas) >= 3)
    watch.abort("r")
    watch.abort("r")
    await answer.end()
    assert isinstance(answer.error, Cancelled)
    assert (await other.end()).finished


async def test_aborting_what_is_over_or_unknown_does_nothing(watch: Watch) -> None:
    answer = await watch.chat("Hello", "r", max_tokens=3).end()
    watch.abort("r")
    watch.abort("nobody")
    refused = await watch.chat("Hello", "r", max_tokens="x").end()
    watch.abort("r")
    await watch.chat("Hello", max_tokens=3).end()
    assert answer.finished
    assert isinstance(refused.error, InvalidRequest)


async def test_an_id_can_be_used_again(watch: Watch) -> None:
    for _ in range(3):
        answer = watch.long(request_id="r")
        await answer.until(lambda answer: len(answer.deltas) >= 1)
        watch.abort("r")
        assert isinstance((await answer.end()).error, Cancelled)
    assert (await watch.chat("Hello", "r", max_tokens=3).end()).finished


async def test_whoever_is_told_of_a_token_may_abort_at_once(watch: Watch) -> None:
    answer, other = watch.long("Story one", "r"), watch.long("Story two", "other")

    def abort_both() -> None:
        if len(answer.deltas) == 2:
            watch.abort("r")
            watch.abort("other")

    answer.on_event = abort_both
    for one in (answer, other):
        assert isinstance((await one.end()).error, Cancelled)
    assert len(answer.deltas) == 2


async def test_aborting_a_crowd_ends_each_once(watch: Watch) -> None:
    answers = [watch.long(f"Story {number}", f"r{number}") for number in range(16)]
    await answers[0].until(lambda answer: len(answer.deltas) >= 1)
    for number in range(16):
        watch.abort(f"r{number}")
    for answer in answers:
        assert isinstance((await answer.end()).error, Cancelled)


async def test_a_crowd_is_not_mixed_up(watch: Watch) -> None:
    requests = [(f"Question {number}: what is next?", 4 + number % 13) for number in range(CROWD)]
    alone = [(await watch.chat(prompt, max_tokens=length).end()).text() for prompt, length in requests]
    crowd = [watch.chat(prompt, max_tokens=length) for prompt, length in requests]
    together = [(await answer.end()).text() for answer in crowd]
    assert together == alone


async def test_the_load_returns_to_nothing(watch: Watch) -> None:
    answers = [watch.long(f"Story {number}", f"r{number}") for number in range(8)]
    await answers[0].until(lambda answer: len(answer.deltas) >= 2)
    busy = watch.engine.load()
    assert (busy.kv_used_blocks > 0) == watch.case.tells_kv_blocks
    for number in range(0, 8, 2):
        watch.abort(f"r{number}")
    for answer in answers:
        await answer.end()
    load = watch.engine.load()
    assert load.kv_used_blocks == 0
    assert load.kv_cached_blocks >= 0
    assert load.step_time_ms > 0
    assert load.prefill_tokens_per_s >= 0


async def test_a_healthy_engine_does_not_say_that_it_failed(watch: Watch) -> None:
    failed = asyncio.ensure_future(watch.engine.failed())
    await watch.chat("Hello", max_tokens=5).end()
    assert not failed.done()
    failed.cancel()
    await asyncio.gather(failed, return_exceptions=True)


async def test_closing_ends_everything(watch: Watch) -> None:
    running = watch.long(request_id="running")
    await running.until(lambda answer: len(answer.deltas) >= 1)
    waiting = [watch.long(f"Story {number}") for number in range(8)]
    aborted = watch.long(request_id="aborted")
    watch.abort("aborted")
    refused = watch.chat("Hello", max_tokens="x")
    async with asyncio.timeout(TIMEOUT_S):
        await watch.engine.close()
    for answer in (running, *waiting, aborted, refused):
        assert isinstance(answer.events[-1], Failed)
    late = await watch.chat("Hello").end()
    assert isinstance(late.events[-1], Failed)
    async with asyncio.timeout(TIMEOUT_S):
        await watch.engine.close()


async def test_an_engine_that_was_never_started_can_be_closed(case: EngineCase) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await case.create().close()
