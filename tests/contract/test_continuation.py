"""Going on with what another engine began, for every engine that can: as if the answer had never been cut."""

from __future__ import annotations

from itertools import accumulate

import pytest

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation, Delta, Dialect, FinishReason
from tests.contract.engines import Answer, EngineCase, Feature, Watch
from worker import demo


def is_about(case: EngineCase) -> bool:
    return case.continues


QUESTIONS = [entry.question for entry in demo.load_faq()[:4]]
DIALECTS = [Dialect.CHAT, Dialect.COMPLETION]


def body_of(dialect: Dialect, question: str, **more: object) -> dict[str, object]:
    body: dict[str, object] = {"model": "m", "temperature": 0, "max_tokens": 60, **more}
    if dialect is Dialect.CHAT:
        return {**body, "messages": [{"role": "user", "content": question}]}
    return {**body, "prompt": f"Q: {question}\nA:"}


def begun(deltas: list[Delta]) -> Continuation:
    """What a caller has who got these."""
    text = "".join(delta.text for delta in deltas)
    return Continuation(text, "", tuple(token for delta in deltas for token in delta.token_ids))


def cuts(answer: Answer) -> list[int]:
    """Numbers of deltas after which to cut, first and last among them."""
    count = len(answer.deltas)
    return sorted({1, 2, count // 4, count // 2, count - 3, count - 2, count - 1} & set(range(1, count)))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_that_was_cut_anywhere_ends_as_if_it_was_not(watch: Watch, dialect: Dialect) -> None:
    for question in QUESTIONS:
        body = body_of(dialect, question)
        whole = await watch.submit(dialect, body).end()
        parts = [begun(whole.deltas[:cut]) for cut in cuts(whole)]
        rests = [watch.submit(dialect, body, continuation=part) for part in parts]
        for part, rest in zip(parts, rests, strict=True):
            assert part.text + (await rest.end()).text() == whole.text()
            assert rest.finish_reason() is whole.finish_reason()
            assert rest.finished.prompt_tokens == whole.finished.prompt_tokens
            if watch.case.tells_token_ids:
                assert [*part.token_ids, *rest.token_ids()] == whole.token_ids()
                assert rest.finished.output_tokens == whole.finished.output_tokens


async def test_without_token_ids_the_text_is_enough(watch: Watch) -> None:
    body = body_of(Dialect.CHAT, QUESTIONS[0])
    whole = await watch.submit(Dialect.CHAT, body).end()
    for cut in cuts(whole):
        part = begun(whole.deltas[:cut])._replace(token_ids=())
        rest = await watch.submit(Dialect.CHAT, body, continuation=part).end()
        assert part.text + rest.text() == whole.text()


async def test_an_answer_of_which_nothing_was_told_is_given_whole(watch: Watch) -> None:
    body = body_of(Dialect.CHAT, QUESTIONS[0])
    whole = await watch.submit(Dialect.CHAT, body).end()
    again = await watch.submit(Dialect.CHAT, body, continuation=Continuation()).end()
    assert again.text() == whole.text()
    assert again.finished.output_tokens == whole.finished.output_tokens


async def test_both_parts_have_one_limit(watch: Watch) -> None:
    body = body_of(Dialect.CHAT, QUESTIONS[0], max_tokens=12)
    whole = await watch.submit(Dialect.CHAT, body).end()
    assert whole.finish_reason() is FinishReason.LENGTH
    for cut in (1, len(whole.deltas) - 2):
        part = begun(whole.deltas[:cut])
        rest = await watch.submit(Dialect.CHAT, body, continuation=part).end()
        assert part.text + rest.text() == whole.text()
        assert rest.finish_reason() is FinishReason.LENGTH
        assert rest.finished.output_tokens == 12


async def test_with_nothing_left_of_the_limit_it_is_at_its_end(watch: Watch) -> None:
    body = body_of(Dialect.CHAT, QUESTIONS[0], max_tokens=12)
    whole = await watch.submit(Dialect.CHAT, body).end()
    rest = await watch.submit(Dialect.CHAT, body, continuation=begun(whole.deltas)).end()
    assert (rest.text(), rest.finish_reason()) == ("", FinishReason.LENGTH)
    assert rest.finished.output_tokens == 12


async def test_a_stop_string_across_the_cut_ends_the_answer(watch: Watch) -> None:
    if not await watch.offers(Feature.STOP):
        return
    plain = await watch.submit(Dialect.CHAT, body_of(Dialect.CHAT, QUESTIONS[1])).end()
    text = plain.text()
    ends = [*accumulate(len(delta.text) for delta in plain.deltas)]
    border = ends[len(ends) // 2]
    stop = text[border - 2 : border + 3]
    body = body_of(Dialect.CHAT, QUESTIONS[1], stop=[stop, "never in there"])
    whole = await watch.submit(Dialect.CHAT, body).end()
    assert whole.text() == text[: text.find(stop)]
    for cut in range(1, len(whole.deltas)):
        part = begun(whole.deltas[:cut])
        rest = await watch.submit(Dialect.CHAT, body, continuation=part).end()
        assert part.text + rest.text() == whole.text()
        assert rest.finish_reason() is FinishReason.STOP


async def test_log_probabilities_go_on_too(watch: Watch) -> None:
    if not await watch.offers(Feature.LOGPROBS):
        return
    body = body_of(Dialect.CHAT, QUESTIONS[2], logprobs=True, top_logprobs=1)
    whole = await watch.submit(Dialect.CHAT, body).end()
    cut = len(whole.deltas) // 2
    rest = await watch.submit(Dialect.CHAT, body, continuation=begun(whole.deltas[:cut])).end()
    told = [entry.token for delta in whole.deltas[cut:] for entry in delta.logprobs]
    assert [entry.token for delta in rest.deltas for entry in delta.logprobs] == told


async def test_one_of_several_choices_is_not_gone_on_with(watch: Watch) -> None:
    if not await watch.offers(Feature.CHOICES):
        return
    body = body_of(Dialect.CHAT, QUESTIONS[0], n=2)
    rest = await watch.submit(Dialect.CHAT, body, continuation=Continuation("Y")).end()
    assert isinstance(rest.error, CannotContinue)
