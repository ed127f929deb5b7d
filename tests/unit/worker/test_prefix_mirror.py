"""What an engine holds, in the scheduler's words: told once, told right, and forgotten with what it hangs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lbcore.generation import Dialect, GenerationRequest
from lbcore.pool import WorkerPool
from lbcore.pool_events import PrefixesMissed, PrefixesReported, Registered
from lbcore.types import PrefixReport, RouteFacts
from tests.fleet import spec
from worker import prefix_mirror
from worker.prefix_mirror import LINGER_S, MAX_TIES, WHOLE_EVERY_S, PrefixMirror

MODELS = ("m", "fancy")
WORKER = spec(models=("m",), adapters=("fancy",))
BLOCK = 16

models = st.sampled_from(MODELS)


def asked(request_id: str, hashes: Sequence[int], prompt_bytes: int, block_bytes: int = 64) -> GenerationRequest:
    return GenerationRequest(
        request_id,
        Dialect.CHAT,
        b"",
        prefix_hashes=tuple(hashes),
        prefix_block_bytes=block_bytes,
        prompt_bytes=prompt_bytes,
    )


def mirror(*stored: int) -> PrefixMirror:
    """Of an engine with blocks of 16 tokens, which holds these."""
    one = PrefixMirror(BLOCK, MODELS)
    one.stored(stored)
    return one


def told(one: PrefixMirror, now: float = 0.0) -> list[PrefixReport]:
    return [*one.changes(now)]


def test_a_byte_block_is_held_with_the_engine_block_that_has_its_end() -> None:
    one = mirror()
    # 80 tokens in 320 bytes: a byte block of 64 bytes has 16 tokens, and so has an engine block.
    one.prompt(asked("r", [1, 2, 3, 4, 5], 320), "m", [10, 20, 30, 40, 50], 80)
    one.stored([10, 20, 30])
    assert told(one) == [PrefixReport(1, "m", True, (1, 2, 3))]
    one.removed(30)
    one.stored([40])
    assert told(one) == [PrefixReport(2, "m", False, (4,), (3,))]


@pytest.mark.parametrize(
    ("tokens", "held"),
    [
        (80, [1, 2, 3]),
        # A token that goes on behind a byte block is not needed for it.
        (81, [1, 2, 3]),
        (79, [1, 2, 3]),
        # But all that end in it are.
        (82, [1, 2]),
        # Few bytes to a token: the first three engine blocks do not reach far.
        (320, []),
        (160, [1]),
        # Many: what is behind the last whole engine block belongs to none.
        (52, [1, 2, 3, 4]),
    ],
)
def test_a_byte_block_ends_with_its_last_whole_token(tokens: int, held: list[int]) -> None:
    one = mirror(10, 20, 30)
    keys = [10, 20, 30, *range(40, 1000, 10)][: tokens // BLOCK]
    one.prompt(asked("r", [1, 2, 3, 4, 5], 320), "m", keys, tokens)
    assert sorted(one.held("m")) == held


def test_blocks_that_grow_end_where_they_end() -> None:
    one = mirror()
    # Blocks of 256 bytes up to 8 KiB, of 512 beyond; a token has four bytes.
    keys = [*range(1000, 1000 + 9216 // 64)]
    one.prompt(asked("r", range(34), 9216, 0), "m", keys, 2304)
    one.stored(keys[: 8192 // 64 + 4])
    assert sorted(one.held("m")) == [*range(32)]
    one.stored(keys[8192 // 64 + 4 : 8192 // 64 + 8])
    assert sorted(one.held("m")) == [*range(33)]


def test_what_was_there_before_the_prompt_came_is_told_with_it() -> None:
    one = mirror(10, 20)
    one.prompt(asked("r", [1, 2, 3], 192), "m", [10, 20, 30], 48)
    assert told(one) == [PrefixReport(1, "m", True, (1, 2))]


def test_what_came_and_went_again_is_nothing_to_tell() -> None:
    one = mirror(10)
    one.prompt(asked("r", [1, 2], 128), "m", [10, 20], 32)
    told(one)
    one.stored([20])
    one.removed(20)
    one.removed(10)
    one.stored([10])
    assert told(one) == []


def test_a_block_that_the_engine_holds_twice_is_held_until_it_goes_twice() -> None:
    one = mirror(10, 10)
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    assert one.removed(10)
    assert one.held("m") == {1}
    assert not one.removed(10)
    assert not one.removed(10)
    assert one.held("m") == frozenset()


def test_prompts_that_put_the_end_of_what_they_share_elsewhere_speak_for_one_another() -> None:
    one = mirror()
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    one.prompt(asked("s", [1, 2], 128), "m", [10, 21], 64)
    one.stored([10, 21])
    one.removed(10)
    assert one.held("m") == {1}
    one.removed(21)
    assert one.held("m") == frozenset()


def test_models_are_told_apart_and_numbered_together() -> None:
    one = mirror(10, 11)
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    one.prompt(asked("s", [1], 64), "fancy", [11], 16)
    one.removed(11)
    assert told(one) == [PrefixReport(1, "m", True, (1,))]
    one.stored([11])
    assert told(one) == [PrefixReport(2, "fancy", True, (1,))]


def test_who_begins_anew_hears_everything_of_all_that_was_told_before() -> None:
    one = mirror(10, 11)
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    one.prompt(asked("s", [1], 64), "fancy", [11], 16)
    told(one)
    one.removed(11)
    one.resend()
    assert told(one) == [PrefixReport(3, "m", True, (1,)), PrefixReport(4, "fancy", True)]


def test_now_and_then_everything_is_said_anew() -> None:
    one = mirror(10)
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    told(one, now=100.0)
    assert told(one, now=100.0 + WHOLE_EVERY_S - 1) == []
    assert told(one, now=100.0 + WHOLE_EVERY_S) == [PrefixReport(2, "m", True, (1,))]
    assert told(one, now=100.0 + WHOLE_EVERY_S + 1) == []


def test_much_is_told_in_several_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_mirror, "MAX_HASHES", 2)
    one = mirror(10, 20, 30)
    one.prompt(asked("r", [1, 2, 3], 192), "m", [10, 20, 30], 48)
    assert told(one) == [PrefixReport(1, "m", True, (1, 2)), PrefixReport(2, "m", False, (3,))]


def test_news_are_told_of_when_they_arise_and_not_again() -> None:
    one, rung = mirror(), []
    one.on_news = lambda: rung.append(one.held("m"))
    one.prompt(asked("r", [1, 2], 128), "m", [10, 20], 32)
    assert rung == []
    one.stored([10, 20, 30])
    assert rung == [{1, 2}]
    one.stored([10])
    one.removed(10)
    one.removed(30)
    assert len(rung) == 1
    told(one)
    one.cleared()
    assert rung == [{1, 2}, frozenset()]


@pytest.mark.parametrize("request_", [asked("r", [], 64), asked("r", [1], 0)], ids=["no hashes", "no length"])
def test_a_prompt_of_which_nothing_is_known_is_passed_over(request_: GenerationRequest) -> None:
    one = mirror(10)
    one.prompt(request_, "m", [10], 16)
    assert told(one) == []


def test_a_model_that_is_not_served_here_is_passed_over() -> None:
    one = mirror(10)
    one.prompt(asked("r", [1], 64), "other", [10], 16)
    assert told(one) == []


def test_hashes_beyond_the_prompt_are_passed_over() -> None:
    one = mirror(10)
    one.prompt(asked("r", [1, 2, 3], 64), "m", [10], 16)
    assert one.held("m") == {1}


def test_the_blocks_of_a_request_are_remembered_a_little_longer_than_it_lasts() -> None:
    one = mirror()
    one.prompt(asked("r", [1], 64), "m", [10], 16)
    one.ended("r", now=5.0)
    one.stored([10])
    assert one.held("m") == {1}
    one.removed(10)
    assert len(one) == 1
    told(one, now=5.0 + LINGER_S)
    assert len(one) == 0
    one.stored([10])
    assert one.held("m") == frozenset()


def test_an_engine_block_stands_for_no_more_than_so_many_byte_blocks() -> None:
    one = mirror(10)
    for number in range(MAX_TIES + 3):
        one.prompt(asked(f"r{number}", [number], 64), "m", [10], 16)
        # Who asks again keeps its place.
        one.prompt(asked(f"again {number}", [0], 64), "m", [10], 16)
    assert one.held("m") == {0, *range(4, MAX_TIES + 3)}


class Engine:
    """What a mirror is to make of what it hears, worked out anew each time from plain sets."""

    def __init__(self) -> None:
        self.copies: Counter[int] = Counter()
        self.ties: set[tuple[int, str, int]] = set()
        self.open: dict[str, list[int]] = {}
        self.ended: list[tuple[float, list[int]]] = []

    def held(self, model: str) -> set[int]:
        return {block_hash for key, name, block_hash in self.ties if name == model and self.copies[key]}

    def forget(self) -> None:
        asked = {key for keys in self.open.values() for key in keys} | {key for _, keys in self.ended for key in keys}
        self.ties = {tie for tie in self.ties if self.copies[tie[0]] or tie[0] in asked}


CHAINS = {name: [100 * number + depth for depth in range(1, 7)] for number, name in enumerate("abc", 1)}
"""Prompts of six byte blocks that differ from the third on; their keys are their hashes, and more."""
for chain in CHAINS.values():
    chain[:2] = [1, 2]


class Believed(RuleBasedStateMachine):
    """A mirror, an engine, and a scheduler's pool that hears of the mirror's reports what is not lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.mirror = PrefixMirror(BLOCK, MODELS)
        self.engine = Engine()
        self.pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        self.pool.handle(Registered(replace(WORKER, reports_prefixes=True), 1), 0.0)
        self.requests = 0

    @rule(chain=st.sampled_from(sorted(CHAINS)), length=st.integers(1, 6), tokens=st.integers(40, 200), model=models)
    def prompt(self, chain: str, length: int, tokens: int, model: str) -> None:
        self.requests += 1
        name, hashes = f"r{self.requests}", CHAINS[chain][:length]
        keys = [block_hash + 1000 for block_hash in CHAINS[chain]][: tokens // BLOCK]
        self.mirror.prompt(asked(name, hashes, 64 * length), model, keys, tokens)
        places = [max(1, (index + 1) * tokens // length) - 1 for index in range(length)]
        ties = {
            (keys[at // BLOCK], model, one) for at, one in zip(places, hashes, strict=True) if at // BLOCK < len(keys)
        }
        self.engine.ties |= ties
        self.engine.open[name] = [key for key, _, _ in ties]

    @rule(keys=st.lists(st.sampled_from([1000 + one for chain in CHAINS.values() for one in chain]), max_size=6))
    def store(self, keys: list[int]) -> None:
        self.mirror.stored(keys)
        self.engine.copies.update(keys)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(+self.engine.copies) or [77]))
        left = max(0, self.engine.copies[key] - 1)
        assert self.mirror.removed(key) == bool(left)
        self.engine.copies[key] = left
        self.engine.forget()

    @rule()
    def clear(self) -> None:
        self.mirror.cleared()
        self.engine.copies.clear()
        self.engine.forget()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.engine.open) or ["nobody"]))
        self.mirror.ended(name, self.now)
        self.engine.ended.append((self.now, self.engine.open.pop(name, [])))

    @rule(seconds=st.sampled_from([0.3, 1.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(lost=st.sampled_from([False, False, True]))
    def tell(self, lost: bool) -> None:
        reports = [*self.mirror.changes(self.now)]
        for report in () if lost else reports:
            self._hear(report)

    @rule()
    def begin_anew(self) -> None:
        self.mirror.resend()

    @invariant()
    def the_mirror_holds_what_the_engine_holds(self) -> None:
        self.mirror.ended("nobody", self.now)
        self.engine.ended = [(when, keys) for when, keys in self.engine.ended if self.now - when < LINGER_S]
        self.engine.forget()
        for model in MODELS:
            assert self.mirror.held(model) == self.engine.held(model)

    def teardown(self) -> None:
        # Whatever was lost: when the next reports come, and those that are asked for because of them, all is well.
        self.now += WHOLE_EVERY_S
        for _ in range(2):
            for report in self.mirror.changes(self.now):
                self._hear(report)
        for model in MODELS:
            assert self._believed(model) == self.engine.held(model)
        self.mirror.cleared()
        for name in self.engine.open:
            self.mirror.ended(name, self.now)
        self.mirror.ended("nobody", self.now + LINGER_S)
        assert len(self.mirror) == 0
        assert [self.mirror.held(model) for model in MODELS] == [frozenset(), frozenset()]

    def _hear(self, report: PrefixReport) -> None:
        effects = self.pool.handle(PrefixesReported(WORKER.worker_id, WORKER.epoch, report), self.now)
        if any(isinstance(effect, PrefixesMissed) for effect in effects):
            self.mirror.resend()

    def _believed(self, model: str) -> set[int]:
        known = {block_hash for chain in CHAINS.values() for block_hash in chain}
        facts = RouteFacts("r", model, 64, prefix_block_bytes=64)
        return {one for one in known if self.pool.pick_request(facts._replace(prefix_hashes=(one,))).hit_tokens}


TestBelieved = Believed.TestCase
TestBelieved.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
