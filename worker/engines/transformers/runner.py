"""The thread that computes: transformers' continuous batching, one step after the other. Needs torch.

The library would run a thread of its own. We drive the same batch processor ourselves, because its thread polls ten
times a second, loses a cancellation that comes at the wrong moment, and says neither when a prompt is taken up nor what
of it was cached. Everything that touches the library's inside is in this file and in sampling.py.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import RequestStatus

from lbcore.clock import Clock
from lbcore.errors import ConfigError
from worker.engines.step_meter import StepMeter
from worker.engines.transformers.model import LoadedModel, first_line
from worker.engines.transformers.options import TransformersOptions
from worker.engines.transformers.sampling import GREEDY, Chooser, TokenChooser, chooser_of
from worker.engines.transformers.trial import MAX_DEVIATION, answer_tokens, deviation, trial_prompts

MIN_PREFILL_TOKENS = 32
"""Prompt tokens in a step from which its length says what more of them would cost."""
MIN_BATCH_TOKENS = 64
"""Fewer prompt tokens in a step would cost more than they save: each step has a price of its own."""
BLOCKED_WAIT_S = 0.01
"""How long to wait when the library has requests and takes up none."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What one sequence gained in a step."""

    key: str
    tokens: Sequence[int]
    """All its tokens so far."""
    is_over: bool
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears of what happens in the thread. Called in it."""

    begun: Callable[[list[tuple[str, int]]], None]
    """A step begins that is the first of these sequences; with the tokens found in the prefix cache."""
    gained: Callable[[list[Gain]], None]
    """Once after each step."""
    died: Callable[[str], None]
    """No step will follow; with the name of the error."""


_NOBODY = Listener(lambda _: None, lambda _: None, lambda _: None)


class Runner:
    """Steps while there is work. Its numbers are those of the last step and may be read in any thread."""

    def __init__(self, loaded: LoadedModel, options: TransformersOptions, clock: Clock, listener: Listener) -> None:
        """Lays out the cache. Raises ConfigError."""
        self.meter = StepMeter()
        self.beat = clock.now()
        """When the last step ended, or the last look for work."""
        self.kv_used_blocks = self.kv_cached_blocks = 0
        self._clock = clock
        self._listener = _NOBODY
        self._model = loaded.model
        self._most_tokens = options.max_batch_tokens
        self._least_tokens = min(options.max_batch_tokens, max(MIN_BATCH_TOKENS, options.max_num_seqs + 16))
        self._budget_ms = options.step_budget_ms
        self._gains: list[Gain] = []
        self._commands: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        try:
            self._library = self._open(loaded, options)
            # It captures and compiles nothing here, but makes the batch processor.
            self._library.warmup()
            self._batch = self._library.batch_processor
            self._try(loaded)
        except ConfigError:
            raise
        except Exception as error:
            kind = type(loaded.model).__name__
            raise ConfigError(
                f"--model: transformers cannot batch {kind}: {type(error).__name__}: {first_line(error)}"
            ) from None
        self._listener = listener
        cache = self._batch.cache
        self.kv_blocks = int(cache.num_blocks)
        self._block_bytes = cache.num_sectors * cache.bytes_per_sector / max(1, cache.num_blocks)

    def start(self) -> None:
        # A step that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="transformers-steps", daemon=True)
        self._thread.start()

    def add(self, key: str, prompt: list[int], max_tokens: int, chooser: Chooser) -> None:
        """Queues a sequence. It may be called in any thread, as `cancel` and `stop`."""
        self._do(lambda: self._submit(key, prompt, max_tokens, chooser))

    def cancel(self, key: str) -> None:
        """Frees a sequence before the next step. None with this key: nothing."""
        self._do(lambda: self._library.cancel_request(key))

    def stop(self, within_s: float) -> None:
        """Ends the thread after the step it is in, and lets go of the model. Blocks."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(within_s)
            if self._thread.is_alive():
                return
        self._library.batch_processor = self._batch = self._model = None
        self._library.destroy()
        gc.collect()

    def deliver(self, output: Any) -> None:
        """Called by the library for a request that failed before its first step."""
        self.deliver_batch([output])

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        """Called by the library at the end of each step."""
        self._gains += [
            Gain(
                output.request_id,
                output.generated_tokens,
                output.status == RequestStatus.FINISHED,
                output.status == RequestStatus.FAILED,
            )
            for output in outputs
        ]

    def _try(self, loaded: LoadedModel) -> None:
        """What a model cannot do, it cannot do here first. Raises ConfigError when it does it wrongly."""
        cache_tokens = self._batch.cache.num_blocks * self._batch.cb_config.page_size
        prompts = trial_prompts(loaded.vocabulary.size, cache_tokens)
        choosers = [Chooser(GREEDY, Random(0), (), top_logprobs=0) for _ in prompts]
        for index, (prompt, chooser) in enumerate(zip(prompts, choosers, strict=True)):
            self._submit(f"trial-{index}", prompt, answer_tokens(cache_tokens), chooser)
        while self._step():
            pass
        batching = self._model.config._attn_implementation
        alone = self._library._original_attn_impl or batching
        self._model.set_attn_implementation(alone)
        found = deviation(self._model, prompts, [chooser.logprobs for chooser in choosers])
        self._model.set_attn_implementation(batching)
        if not found <= MAX_DEVIATION:
            raise ConfigError(
                f"--model: {type(self._model).__name__} says other things in a batch of transformers than alone"
            )
        # Nobody will send these prompts, and first steps are slow. What a step can hold was measured, though.
        self._batch.cache.evict_cached_blocks()
        self._gains = []
        self.meter = StepMeter()

    def _open(self, loaded: LoadedModel, options: TransformersOptions) -> Any:
        wanted = ContinuousBatchingConfig(
            page_size=options.block_size,
            num_blocks=loaded.kv_blocks,
            max_batch_tokens=options.max_batch_tokens,
            max_requests_per_batch=options.max_num_seqs,
            # What the library leaves free when others choose tokens: that takes room for some rows of scores.
            max_memory_percent=0.8,
            # Choosing tokens by rules of each sequence cannot be captured, and has to see one step before the next.
            use_cuda_graph=False,
            use_async_batching=False,
            # Otherwise it might fetch kernels from the hub.
            auto_switch_to_flash=False,
        )
        # The likeliest token, and no end: the chooser decides, and each request brings its own ends.
        library = loaded.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1),
            continuous_batching_config=wanted,
        )
        library.logit_processor = TokenChooser()
        library.output_router = self
        return library

    def _submit(self, key: str, prompt: list[int], max_tokens: int, chooser: Chooser) -> None:
        self._library.add_request(
            prompt,
            request_id=key,
            max_new_tokens=max_tokens,
            streaming=True,
            eos_token_id=[*chooser.ends],
            chooser=chooser,
        )

    def _do(self, command: Callable[[], object]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _run(self) -> None:
        try:
            if self._model.device.type == "cuda":
                # Each thread has a device of its own in mind.
                torch.cuda.set_device(self._model.device)
            while not self._stopping:
                self._wake.clear()
                while self._commands:
                    self._commands.popleft()()
                stepped = self._step()
                self._note()
                # Only now: whoever hears that a sequence is over finds its blocks free.
                self._tell()
                if not stepped and not self._commands:
                    self._wake.wait(BLOCKED_WAIT_S if self._batch.has_pending_requests() else None)
                    self.beat = self._clock.now()
        except BaseException as error:
            self._listener.died(type(error).__name__)

    def _step(self) -> bool:
        """One step, if anything can be computed."""
        batch = self._batch
        began = self._clock.now()
        if not batch.scheduler.active_requests:
            # Set when sequences were preempted, and taken back only by one that ends: not by one that is cancelled.
            batch.scheduler.block_new_requests = False
        if not batch.prepare_next_batch():
            return False
        prefill_tokens, decode_tokens, pairs = self._look()
        batch._generation_step(self._model)
        batch.update_batch()
        self._measure(prefill_tokens, decode_tokens, pairs, (self._clock.now() - began) * 1000)
        return True

    def _look(self) -> tuple[int, int, float]:
        """Tells which sequences are new in the step about to be computed; the prompt tokens in it, the others, and over
        the prompt tokens those that each attends to."""
        begun = []
        prefill_tokens = decode_tokens = 0
        pairs = 0.0
        for request in self._batch.inputs_and_outputs.requests_in_batch:
            state = request.state
            if state.generated_tokens:
                decode_tokens += 1
            else:
                new = request.query_length
                prefill_tokens += new
                # The offset counts the new ones already.
                pairs += new * (state.position_offset - new / 2)
            chooser = chooser_of(state)
            if not chooser.taken_up:
                chooser.taken_up = True
                begun.append((state.request_id, state.position_offset - request.query_length))
        if begun:
            self._listener.begun(begun)
        return prefill_tokens, decode_tokens, pairs

    def _measure(self, prefill_tokens: int, decode_tokens: int, pairs: float, duration_ms: float) -> None:
        self.meter.observe(prefill_tokens, decode_tokens, duration_ms, pairs)
        if prefill_tokens >= MIN_PREFILL_TOKENS:
            affordable = int(prefill_tokens * self._budget_ms / max(duration_ms, 1e-3))
            # Half of what was, lest one slow step make the following ones small.
            budget = (self._batch.max_batch_tokens + affordable) // 2
            self._batch.max_batch_tokens = max(self._least_tokens, min(self._most_tokens, budget))

    def _tell(self) -> None:
        gains, self._gains = self._gains, []
        if gains:
            self._listener.gained(gains)

    def _note(self) -> None:
        cache = self._batch.cache
        free = cache.compute_free_capacity(relative=False)
        cached = sum(
            len(allocator.ledger.cached_blocks) * allocator.bytes_per_block
            for allocator in cache.cache_allocators.values()
        )
        used = cache.num_sectors * cache.bytes_per_sector - free - cached
        self.kv_used_blocks = round(used / self._block_bytes)
        self.kv_cached_blocks = round(cached / self._block_bytes)
        self.beat = self._clock.now()
