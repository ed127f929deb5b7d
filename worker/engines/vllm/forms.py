"""What vLLM's serving does for each kind of body: one form each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

from lbcore.errors import CannotContinue, InvalidRequest
from lbcore.generation import Continuation, Embedding, Event, Finished, Started
from worker.engines import fields
from worker.engines.begun import is_empty
from worker.engines.vllm.answer import Answer, events
from worker.engines.vllm.continuation import Continued, refuse_request
from worker.engines.vllm.tap import passage

ENGINE = "vLLM"
"""The engine's name in errors."""
_UNSUPPORTED = ("audio", "function_call", "functions", "prediction", "use_beam_search", "web_search_options")
"""Refused by name unless null, false or empty: vLLM would ignore them, or computes them where nobody can count."""
MAX_CHOICES = 1024
"""Choices of one answer, prompts times `n`."""
_GUIDES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
"""Names that vLLM once had for what the output must follow, and would ignore today."""


class Form(ABC):
    """One kind of body."""

    prompt_field: ClassVar[str]
    limits: ClassVar[tuple[str, ...]] = ()
    """What the client's limit on each choice may be called; the first that has a value counts."""

    def __init__(self, serving: Any) -> None:
        """`serving` is vLLM's own object for such requests."""
        self.serving = serving

    @abstractmethod
    def check(self, body: dict[str, Any]) -> None:
        """Looks at what vLLM would misunderstand, and puts the body right. Raises InvalidRequest."""

    @abstractmethod
    def parse(self, body: dict[str, Any]) -> Any:
        """The body as vLLM's own request. Raises pydantic's ValidationError."""

    @abstractmethod
    async def answer(self, asked: Any) -> Any:
        """An iterator over the request's events, or vLLM's error object. Raises what vLLM raises."""

    def merge_equal_choices(self, asked: Any) -> int:
        """How many choices each sequence stands for, after the request was made to ask for so many fewer."""
        return 1

    def continued(self, asked: Any, continuation: Continuation) -> Continued | None:
        """The answer that another engine began, if anything was told of it. Raises CannotContinue."""
        raise CannotContinue("Vectors are not gone on with.")


class _Generation(Form):
    def check(self, body: dict[str, Any]) -> None:
        fields.refuse(body, _UNSUPPORTED, ENGINE)
        fields.stop_strings(body)
        choices = fields.integer(body, "n", 1, MAX_CHOICES) or 1
        if (fields.integer(body, "best_of", 1) or choices) != choices:
            raise fields.unsupported("best_of", ENGINE)
        guides = {new: body.pop(old) for old, new in _GUIDES.items() if body.get(old) is not None}
        if guides and body.get("structured_outputs") is None:
            body["structured_outputs"] = guides
        # The answer always comes in events; whether the client sees them as a stream is the gateway's business.
        body |= {"stream": True, "stream_options": None}

    def merge_equal_choices(self, asked: Any) -> int:
        # Without chance all choices are the same, and vLLM refuses to compute them twice: one stands for all.
        choices, temperature = asked.n or 1, asked.temperature
        if temperature is None:
            temperature = self.serving.default_sampling_params.get("temperature", 1.0)
        if choices == 1 or temperature > 0:
            return 1
        asked.n = 1
        return int(choices)

    def continued(self, asked: Any, continuation: Continuation) -> Continued | None:
        refuse_request(asked)
        return None if is_empty(continuation) else Continued(continuation, self.is_parsed)

    @property
    def is_parsed(self) -> bool:
        """Whether reasoning and tool calls are taken out of what the model says."""
        return False


class Chat(_Generation):
    """POST /v1/chat/completions"""

    prompt_field = "messages"
    limits = ("max_completion_tokens", "max_tokens")

    def __init__(self, serving: Any) -> None:
        super().__init__(serving)
        # The instance is vLLM's; only what it hands on is ours.
        serving.chat_completion_stream_generator = partial(_chat_events, serving)

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        fields.messages(body)

    def parse(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        return ChatCompletionRequest.model_validate(body)

    async def answer(self, asked: Any) -> Any:
        return await self.serving.create_chat_completion(asked)

    @property
    def is_parsed(self) -> bool:
        return self.serving.parser_cls is not None


class Completion(_Generation):
    """POST /v1/completions"""

    prompt_field = "prompt"
    limits = ("max_tokens",)

    def __init__(self, serving: Any) -> None:
        super().__init__(serving)
        serving.completion_stream_generator = partial(_completion_events, serving)

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        if body.get("prompt") is not None or not body.get("prompt_embeds"):
            prompts = fields.prompts(body)
            if len(prompts) * (body.get("n") or 1) > MAX_CHOICES:
                raise InvalidRequest(f"prompt and n make more than {MAX_CHOICES} choices.", param="prompt")

    def parse(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        return CompletionRequest.model_validate(body)

    async def answer(self, asked: Any) -> Any:
        return await self.serving.create_completion(asked)


class Embeddings(Form):
    """POST /v1/embeddings"""

    prompt_field = "input"

    def __init__(self, serving: Any) -> None:
        super().__init__(serving)
        serving._build_response = lambda context: context

    def check(self, body: dict[str, Any]) -> None:
        fields.encoding_format(body)
        fields.integer(body, "dimensions", 1)
        if not body.get("messages"):
            fields.inputs(body)

    def parse(self, body: dict[str, Any]) -> Any:
        from pydantic import TypeAdapter
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest

        return TypeAdapter(EmbeddingRequest).validate_python(body)

    async def answer(self, asked: Any) -> Any:
        context = await self.serving(asked)
        return _embedding_events(context.final_res_batch)


def _chat_events(
    serving: Any,
    request: Any,
    result_generator: AsyncGenerator[Any, None],
    request_id: str,
    model_name: str,
    conversation: Any,
    tokenizer: Any,
    *_: object,
    chat_template_kwargs: Any = None,
    **__: object,
) -> AsyncIterator[Event]:
    """Stands for vLLM's `chat_completion_stream_generator`, with its parameters."""
    choices = request.n or 1
    parsers: list[Any] = [None] * choices
    if serving.parser_cls is not None:
        parsers = [serving._make_parser(request, tokenizer, chat_template_kwargs) for _ in range(choices)]
    role = serving.get_chat_request_role(request)
    echo = _last_message(conversation, role) if request.echo else ""
    return _events(request, parsers, _numbered(result_generator), [echo] if echo else [])


def _completion_events(
    serving: Any,
    request: Any,
    engine_inputs: Any,
    result_generator: AsyncGenerator[tuple[int, Any], None],
    *_: object,
    **__: object,
) -> AsyncIterator[Event]:
    """Stands for vLLM's `completion_stream_generator`, with its parameters."""
    parsers = [None] * (len(engine_inputs) * (request.n or 1))
    echoes = [serving._extract_prompt_text(one) or "" for one in engine_inputs] if request.echo else []
    return _events(request, parsers, result_generator, echoes)


async def _embedding_events(outputs: Sequence[Any]) -> AsyncIterator[Event]:
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    cached_tokens = min(sum(output.num_cached_tokens or 0 for output in outputs), prompt_tokens - 1)
    yield Started(prompt_tokens, cached_tokens)
    for index, output in enumerate(outputs):
        passage.get().left()
        yield Embedding(index, output.outputs.data.float().cpu().contiguous().numpy().astype("<f4").tobytes())
    yield Finished(prompt_tokens, cached_tokens, 0)


def _events(
    asked: Any, parsers: Sequence[Any], outputs: AsyncGenerator[tuple[int, Any], None], echoes: Sequence[str]
) -> AsyncIterator[Event]:
    request = passage.get()
    continued = request.continued
    begun_tokens, told = (0, None) if continued is None else (continued.tokens, continued.told)
    answer = Answer(asked, parsers, request.copies, request.prefilled, request.left, begun_tokens)
    return events(answer, outputs, echoes, told)


async def _numbered(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[tuple[int, Any], None]:
    async with aclosing(outputs):
        async for output in outputs:
            yield 0, output


def _last_message(conversation: Any, role: str) -> str:
    """The text of the last message, if it is one that the answer goes on with."""
    last = conversation[-1] if conversation else {}
    content = "" if last.get("role") != role else last.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
