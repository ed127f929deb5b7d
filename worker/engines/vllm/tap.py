"""The engine as vLLM's serving sees it: tells whose prompts go into the engine core, and how long they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from worker.engines.vllm.answer import Prefilled
from worker.engines.vllm.continuation import Continued
from worker.engines.vllm.errors import too_long

Entered = Callable[[int, int], None]
"""Called when a prompt is handed to the engine core, with its tokens and its sequences."""

Prompted = Callable[[Sequence[int], str], None]
"""Called with the tokens of a prompt that is handed to the engine core, and the adapter's name or nothing."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What of a request cannot travel through vLLM's serving."""

    entered: Entered
    left: Callable[[], None]
    """Called when a sequence has left the engine core."""
    prefilled: Prefilled
    prompt_field: str
    copies: int = 1
    """Choices that each sequence stands for."""
    max_tokens: int | None = None
    """The client's own limit on each choice."""
    prompted: Prompted | None = None
    """Called with the prompt, of a request that has one alone."""
    continued: Continued | None = None
    """The answer, when another engine began it."""


passage: ContextVar[Passage] = ContextVar("passage")
"""That of the request that the running task serves."""


class Tap:
    """Stands for AsyncLLM in front of vLLM's serving."""

    def __init__(self, engine: Any) -> None:
        from vllm.renderers.inputs.preprocess import extract_prompt_components, extract_prompt_len

        self._engine = engine
        self._prompt_length = extract_prompt_len
        self._prompt_parts = extract_prompt_components

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, prompt: Any, params: Any, request_id: str, **rest: Any) -> Any:
        """As AsyncLLM's.

        Raises:
            ContextLengthExceeded: the prompt leaves less room than was asked for.
            CannotContinue: another engine has begun the answer, and vLLM cannot take it up.
        """
        config, request = self._engine.model_config, passage.get()
        tokens = self._prompt_length(config, prompt)
        if request.max_tokens is not None and tokens + request.max_tokens > config.max_model_len:
            # vLLM would make the answer shorter than asked for, and nobody would know why.
            raise too_long(tokens, request.max_tokens, config.max_model_len, request.prompt_field)
        given, continued = prompt, request.continued
        if continued is not None:
            prompt = continued.lengthen(self._engine, given, params)
            tokens += continued.tokens
        request.entered(tokens, params.n)
        if request.prompted is not None:
            token_ids = self._prompt_parts(config, given).token_ids
            if token_ids is not None:
                adapter = rest.get("lora_request")
                request.prompted(token_ids, "" if adapter is None else adapter.lora_name)
            if params.extra_args:
                # With it vLLM would tell of blocks it holds as if it held them once more.
                params.extra_args.pop("kv_cache_report_mode", None)
        if continued is not None and continued.is_at_its_end:
            return continued.end()
        outputs = self._engine.generate(prompt, params, request_id, **rest)
        return outputs if continued is None else continued.outputs(outputs)

    def encode(self, prompt: Any, **rest: Any) -> Any:
        """As AsyncLLM's."""
        passage.get().entered(self._prompt_length(self._engine.model_config, prompt), 1)
        return self._engine.encode(prompt=prompt, **rest)
