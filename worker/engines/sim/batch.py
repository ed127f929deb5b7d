"""The simulated engine's step logic: continuous batching over finite KV blocks. No clock, no event loop, no text.

It works as vLLM does: sequences wait in order of arrival; a step gives one token to every decoding sequence and spends
the rest of its token budget on prompts, cut into chunks where they do not fit; prompts find their cached prefix; when
decoding runs out of blocks the youngest sequence is preempted and later recomputed.

All decoding sequences advance together, so a step touches only those that begin, end or need a block: its cost does not
grow with the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from lbcore.types import LoadReport
from worker.engines.sim.blocks import BlockPool
from worker.engines.sim.sequence import SimSequence
from worker.engines.sim.step_time import StepTime
from worker.engines.step_meter import StepMeter

K = TypeVar("K", bound=Hashable)

WATERMARK_RATIO = 0.01
"""The fraction of blocks that admission leaves to the sequences that already decode, as vLLM's watermark did: without
it a full cache admits a prompt and preempts it a step later."""


class StepOutcome(NamedTuple, Generic[K]):
    """What one step did. Every sequence in `decoding` and in `finished` gained exactly one token, no other any; those
    without output gain none, and finish with their prompt."""

    duration_ms: float = 0.0
    started: Sequence[tuple[K, int]] = ()
    """Sequences whose prompt was taken up, with the tokens found in the prefix cache. Once per sequence."""
    first: Sequence[K] = ()
    """Sequences that gained their first token; they are in `decoding` or in `finished` too."""
    finished: Sequence[K] = ()
    """Sequences that gained all they were to have and have left."""
    preempted: Sequence[K] = ()
    """Sequences that lost their blocks and wait again."""
    decoding: Collection[K] = ()
    """Sequences that gained a token and go on. A view: it is true until the next `step` or `abort`."""
    prefill_tokens: int = 0
    decode_tokens: int = 0


class BatchState(NamedTuple):
    """What a load report says of a batch, in numbers that are cheap to take down with every step."""

    queued_requests: int
    running_requests: int
    queued_prompt_tokens: int
    queued_prompt_squares: int
    """Twice the pairs of attention still to come."""
    tokens_in_flight: int
    kv_used_blocks: int
    kv_cached_blocks: int
    prefill_tokens_per_s: float
    attention_ratio: float
    step_time_ms: float


class SimBatch(Generic[K]):
    """Sequences, their blocks and their progress, one step at a time.

    `step_time` says how long the next step lasts; it may be replaced between steps, as when a machine slows down.
    """

    def __init__(
        self,
        *,
        step_time: StepTime,
        kv_blocks: int,
        block_size: int,
        max_num_seqs: int,
        token_budget: int,
    ) -> None:
        self.blocks = BlockPool(kv_blocks)
        self.meter = StepMeter()
        self.step_time = step_time
        self._block_size = block_size
        # A decoding sequence costs one token of the budget in every step.
        self._max_num_seqs = min(max_num_seqs, token_budget)
        self._token_budget = token_budget
        self._watermark = int(kv_blocks * WATERMARK_RATIO)

        self._step = 0
        self._sequences: dict[K, SimSequence[K]] = {}
        self._waiting: OrderedDict[K, SimSequence[K]] = OrderedDict()
        self._running: dict[K, SimSequence[K]] = {}
        """In order of admission; the last is the one to preempt."""
        self._chunked: SimSequence[K] | None = None
        """The running sequence in prefill. There is at most one, since a chunk is cut only when the budget is spent."""
        self._decoding: dict[K, SimSequence[K]] = {}
        self._ends: dict[int, dict[K, SimSequence[K]]] = {}
        """Decoding sequences by the step that samples their last token."""
        self._growth: list[dict[K, SimSequence[K]]] = [{} for _ in range(block_size)]
        """Decoding sequences by the steps, modulo block size, in which they need a new block."""
        self._head_blocked = False
        """The first waiting sequence did not fit, and nothing was released since."""
        self._unprefilled_tokens = 0
        self._unprefilled_squares = 0
        """Tokens to compute, squared, less those computed, squared: twice the pairs of attention still to come."""
        self._tokens_in_flight = 0
        self._context_tokens = 0
        """Over decoding sequences: what the next step attends to, but for the tokens that it makes itself."""
        self._pairs = 0.0
        """Of the step in work: for each new prompt token the tokens it attends to."""

    def add(self, key: K, prompt_tokens: int, output_tokens: int, block_hashes: Sequence[int] = ()) -> None:
        """Queues a sequence that will produce exactly `output_tokens` tokens; with 0 its prompt alone is computed.

        `block_hashes` are chained hashes of its whole blocks, first block first. They may go on beyond the prompt into
        the answer; those blocks become reusable as decoding fills them.

        Raises:
            ValueError: the key is in use, a count is too small, or the sequence alone would not fit the cache.
        """
        if key in self._sequences:
            raise ValueError(f"sequence {key!r} is already there")
        if prompt_tokens < 1 or output_tokens < 0:
            raise ValueError("a sequence has at least one prompt token, and no less than no output token")
        if prompt_tokens + output_tokens > self.blocks.total * self._block_size:
            raise ValueError(f"{prompt_tokens} + {output_tokens} tokens do not fit the KV cache")
        sequence = SimSequence(key, prompt_tokens, output_tokens, block_hashes, target=prompt_tokens)
        self._sequences[key] = sequence
        self._waiting[key] = sequence
        self._unprefilled_tokens += prompt_tokens
        self._unprefilled_squares += prompt_tokens**2
        self._tokens_in_flight += prompt_tokens

    def abort(self, key: K) -> bool:
        """Removes a sequence and frees its blocks at once; False when it is not there (any more)."""
        sequence = self._sequences.get(key)
        if sequence is None:
            return False
        if key in self._waiting:
            del self._waiting[key]
            self._head_blocked = False
        else:
            self._stop(sequence)
        self._leave(sequence)
        return True

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def prefilling(self) -> tuple[K, int] | None:
        """The sequence whose prompt is computed in part, and how many tokens of it are, cached ones among them."""
        sequence = self._chunked
        return None if sequence is None else (sequence.key, sequence.computed)

    def load(self) -> LoadReport:
        """The load as of the end of the last step; sequence number and tickets are the caller's business."""
        state = self.state()
        return LoadReport(
            queued_requests=state.queued_requests,
            running_requests=state.running_requests,
            queued_prompt_tokens=state.queued_prompt_tokens,
            queued_prompt_pairs=state.queued_prompt_squares / 2,
            tokens_in_flight=state.tokens_in_flight,
            kv_used_blocks=state.kv_used_blocks,
            kv_cached_blocks=state.kv_cached_blocks,
            prefill_tokens_per_s=state.prefill_tokens_per_s,
            attention_ratio=state.attention_ratio,
            step_time_ms=state.step_time_ms,
        )

    def state(self) -> BatchState:
        """As of the end of the last step."""
        blocks, meter = self.blocks, self.meter
        return BatchState(
            len(self._waiting),
            len(self._running),
            self._unprefilled_tokens,
            self._unprefilled_squares,
            self._tokens_in_flight,
            blocks.used,
            blocks.cached,
            meter.prefill_tokens_per_s,
            meter.attention_ratio,
            meter.step_time_ms,
        )

    def step(self) -> StepOutcome[K]:
        """One step of the engine, as of its end; a step without work takes no time."""
        if not self._sequences:
            return StepOutcome()
        preempted = self._grow()
        self._step += 1
        decode_tokens = len(self._decoding)
        started: list[tuple[K, int]] = []
        first: list[K] = []
        finished: list[K] = []
        prefill_tokens = 0
        pairs = 0.0
        context_tokens = self._context_tokens
        if self._waiting or self._chunked is not None:
            self._pairs = 0.0
            prefill_tokens = self._prefill(self._token_budget - decode_tokens, started, first)
            pairs = self._pairs
        self._tokens_in_flight += decode_tokens
        self._context_tokens += decode_tokens
        ending = self._ends.pop(self._step, None)
        if ending is not None:
            for key, sequence in ending.items():
                finished.append(key)
                self._stop(sequence)
                self._leave(sequence)
        duration_ms = self.step_time.of(prefill_tokens, pairs, decode_tokens, context_tokens)
        self.meter.observe(prefill_tokens, decode_tokens, duration_ms, pairs)
        return StepOutcome(
            duration_ms, started, first, finished, preempted, self._decoding.keys(), prefill_tokens, decode_tokens
        )

    def quiet_steps(self) -> int:
        """How many of the next steps do nothing but give each decoding sequence a token, unless something is added or
        aborted: nobody begins, ends, or needs a block."""
        if self._chunked is not None or not self._decoding:
            return 0
        if self._waiting and not self._head_blocked and len(self._running) < self._max_num_seqs:
            return 0
        following = self._step + 1
        block_size = self._block_size
        grows = min([(sequence.growth_phase - following) % block_size for sequence in self._decoding.values()])
        return min(grows, min(self._ends) - following)

    def coast(self, steps: int, begin_s: float, end_s: float) -> tuple[int, float]:
        """Of the next `steps`, the first of which begins at `begin_s`, those that end by `end_s`: how many, and when
        the last of them ended.

        They must be quiet ones. What each does is what `step` does, for a tenth of its cost.
        """
        decoding, context_tokens = len(self._decoding), self._context_tokens
        duration_of, observe = self.step_time.of, self.meter.observe
        taken, at_s = 0, begin_s
        while taken < steps:
            duration_ms = duration_of(0, 0.0, decoding, context_tokens)
            ends_s = at_s + duration_ms / 1000
            if ends_s > end_s:
                break
            at_s = ends_s
            taken += 1
            context_tokens += decoding
            observe(0, decoding, duration_ms)
        self._step += taken
        self._context_tokens = context_tokens
        self._tokens_in_flight += taken * decoding
        return taken, at_s

    def _grow(self) -> list[K]:
        """Before a step: a block for each decoding sequence whose last one is full; names who was preempted for it.

        Nobody returns in the same step: the last to be preempted is the first to wait, and a block it needs is taken.
        """
        preempted: list[K] = []
        growing = self._growth[(self._step + 1) % self._block_size]
        if not growing:
            return preempted
        for sequence in list(growing.values()):
            while sequence.joined_step >= 0 and not self.blocks.take(1):
                preempted.append(self._preempt_youngest())
            if sequence.joined_step >= 0:
                sequence.anonymous += 1
                self._share_full_blocks(sequence)
        return preempted

    def _preempt_youngest(self) -> K:
        victim = self._running[next(reversed(self._running))]
        self._stop(victim)
        target = victim.prompt_tokens + victim.sampled
        self._unprefilled_tokens += target - (victim.target - victim.computed)
        self._unprefilled_squares += target**2 - (victim.target**2 - victim.computed**2)
        victim.target = target
        victim.computed = 0
        self._waiting[victim.key] = victim
        self._waiting.move_to_end(victim.key, last=False)
        return victim.key

    def _prefill(self, budget: int, started: list[tuple[K, int]], first: list[K]) -> int:
        """Spends the budget on prompts in order of arrival and returns what it spent."""
        left = budget
        sequence, self._chunked = self._chunked, None
        while left > 0:
            if sequence is None:
                sequence = self._admit()
                if sequence is None:
                    break
                if not sequence.started:
                    sequence.started = True
                    started.append((sequence.key, sequence.computed))
            chunk = sequence.target - sequence.computed
            if chunk > left:
                chunk = left
            left -= chunk
            squares = chunk * (2 * sequence.computed + chunk)
            self._pairs += squares / 2
            self._unprefilled_squares -= squares
            sequence.computed += chunk
            self._unprefilled_tokens -= chunk
            if sequence.hashes:
                self._share_full_blocks(sequence)
            if sequence.computed < sequence.target:
                break
            self._sample_after_prefill(sequence, first)
            sequence = None
        self._chunked = sequence
        return budget - left

    def _admit(self) -> SimSequence[K] | None:
        """Moves the first waiting sequence to the running ones with all blocks of its prompt, if it fits."""
        if self._head_blocked or not self._waiting or len(self._running) >= self._max_num_seqs:
            return None
        sequence = next(iter(self._waiting.values()))
        blocks, block_size = self.blocks, self._block_size
        hit = idle_hit = 0
        if sequence.hashes:
            # The last token is always computed: its logits give the next one.
            hit, idle_hit = blocks.hits(sequence.hashes, (sequence.target - 1) // block_size)
        needed = -(-sequence.target // block_size) - hit
        watermark = self._watermark if self._running else 0
        if needed + idle_hit + watermark > blocks.available:
            self._head_blocked = True
            return None
        if hit:
            blocks.hold(sequence.hashes, hit)
            sequence.shared = hit
            sequence.computed = hit * block_size
            self._unprefilled_tokens -= sequence.computed
            self._unprefilled_squares -= sequence.computed**2
        blocks.take(needed)
        sequence.anonymous = needed
        self._waiting.popitem(last=False)
        self._running[sequence.key] = sequence
        return sequence

    def _sample_after_prefill(self, sequence: SimSequence[K], first: list[K]) -> None:
        """The token that a finished prefill yields, if any, and the start of decoding unless it is the last."""
        key, step = sequence.key, self._step
        if sequence.output_tokens:
            if not sequence.sampled:
                first.append(key)
            sequence.sampled += 1
            self._tokens_in_flight += 1
        end_step = sequence.end_step = step + sequence.output_tokens - sequence.sampled
        ending = self._ends.get(end_step)
        if ending is None:
            ending = self._ends[end_step] = {}
        ending[key] = sequence
        if end_step == step:
            return
        sequence.joined_step = step
        self._context_tokens += sequence.target
        # Step `step + k` computes position `target + k - 1`, which begins a block when it is a multiple of block size.
        sequence.growth_phase = (step + 1 - sequence.target) % self._block_size
        self._decoding[key] = sequence
        self._growth[sequence.growth_phase][key] = sequence

    def _share_full_blocks(self, sequence: SimSequence[K]) -> None:
        """Makes the blocks that are full by now findable by their hash."""
        computed = sequence.computed
        if sequence.joined_step >= 0:
            computed += self._step - sequence.joined_step
        full = min(computed // self._block_size, len(sequence.hashes))
        if full <= sequence.shared:
            return
        self.blocks.share(sequence.hashes, sequence.shared, full)
        sequence.anonymous -= full - sequence.shared
        sequence.shared = full

    def _stop(self, sequence: SimSequence[K]) -> None:
        """Takes a running sequence out of the batch; what it computed stays in the prefix cache."""
        key = sequence.key
        del self._running[key]
        if sequence.joined_step >= 0:
            self._share_full_blocks(sequence)
            decoded = self._step - sequence.joined_step
            self._context_tokens -= sequence.target + decoded
            sequence.sampled += decoded
            sequence.joined_step = -1
            del self._decoding[key]
            del self._growth[sequence.growth_phase][key]
            # The bucket of the present step is gone already when its sequences are stopped.
            if sequence.end_step != self._step:
                del self._ends[sequence.end_step][key]
        elif sequence is self._chunked:
            self._chunked = None
        self.blocks.drop(sequence.hashes, sequence.shared, sequence.anonymous)
        sequence.shared = sequence.anonymous = 0
        self._head_blocked = False

    def _leave(self, sequence: SimSequence[K]) -> None:
        """Forgets a sequence that is neither waiting nor running any more."""
        del self._sequences[sequence.key]
        self._unprefilled_tokens -= sequence.target - sequence.computed
        self._unprefilled_squares -= sequence.target**2 - sequence.computed**2
        self._tokens_in_flight -= sequence.prompt_tokens + sequence.sampled
