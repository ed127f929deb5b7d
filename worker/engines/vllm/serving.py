"""vLLM's own OpenAI serving, without its HTTP: bodies in, events out.

Chat templates, tool and reasoning parsers, structured output, LoRA, images and sampling defaults are vLLM's. Taken out
is only the last step, where its server makes JSON of every token: there `answer.py` stands.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from lbcore.errors import LoadBalancerError
from lbcore.generation import Dialect, Event, GenerationRequest
from worker.engines import fields
from worker.engines.vllm.answer import Answer, Prefilled, events
from worker.engines.vllm.errors import error_from_response, error_from_validation, too_long

_UNSUPPORTED = ("audio", "function_call", "functions", "prediction", "web_search_options")
"""Refused by name unless null, false or empty: vLLM would ignore them."""
_GUIDES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
"""Names that vLLM once had for what the output must follow, and would ignore today."""
_LIMITS = {Dialect.CHAT: ("max_completion_tokens", "max_tokens"), Dialect.COMPLETION: ("max_tokens",)}
_PROMPT_FIELDS = {Dialect.CHAT: "messages", Dialect.COMPLETION: "prompt"}

Entered = Callable[[int, int], None]
"""Called when a prompt is handed to the engine core, with its tokens and its sequences."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What of a request cannot travel through vLLM's serving."""

    entered: Entered
    prefilled: Prefilled
    copies: int
    """Choices that each sequence stands for."""
    max_tokens: int | None
    """The client's own limit on each choice."""
    prompt_field: str


_request: ContextVar[_Request] = ContextVar("request")


class _Tap:
    """The engine as vLLM's serving sees it; tells whose prompt goes in, and how long it is."""

    def __init__(self, engine: Any) -> None:
        from vllm.renderers.inputs.preprocess import extract_prompt_len

        self._engine = engine
        self._prompt_length = extract_prompt_len

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, engine_input: Any, params: Any, request_id: str, **rest: Any) -> Any:
        config, request = self._engine.model_config, _request.get()
        tokens = self._prompt_length(config, engine_input)
        if request.max_tokens is not None and tokens + request.max_tokens > config.max_model_len:
            # vLLM would make the answer shorter than asked for, and nobody would know why.
            raise too_long(tokens, request.max_tokens, config.max_model_len, request.prompt_field)
        request.entered(tokens, params.n)
        return self._engine.generate(engine_input, params, request_id, **rest)


class Serving:
    """What vLLM serves of one engine."""

    def __init__(self, state: Any, keeps_priority: bool, prefilled: Prefilled) -> None:
        self._prefilled = prefilled
        self._chat = state.openai_serving_chat
        self._completion = state.openai_serving_completion
        self._keeps_priority = keeps_priority
        self.adapters: tuple[str, ...] = tuple(state.openai_serving_models.lora_requests)
        # The instances are vLLM's; only what they hand on is ours.
        self._chat.chat_completion_stream_generator = partial(_chat_events, self._chat)
        self._completion.completion_stream_generator = partial(_completion_events, self._completion)

    @classmethod
    async def build(cls, engine: Any, arguments: Namespace, prefilled: Prefilled) -> Serving:
        """Raises whatever vLLM raises when its arguments do not go together."""
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        state = State()
        tasks = await engine.get_supported_tasks()
        await init_app_state(_Tap(engine), state, arguments, tasks)
        return cls(state, engine.vllm_config.scheduler_config.policy == "priority", prefilled)

    async def events(self, request: GenerationRequest, entered: Entered) -> AsyncIterator[Event]:
        """Raises LoadBalancerError, and whatever vLLM raises while it generates."""
        prompt_field = _PROMPT_FIELDS[request.dialect]
        asked, limit = self._read(request)
        copies = self._merge_equal_choices(asked)
        _request.set(_Request(entered, self._prefilled, copies, limit, prompt_field))
        try:
            if request.dialect is Dialect.CHAT:
                stream = await self._chat.create_chat_completion(asked)
            else:
                stream = await self._completion.create_completion(asked)
        except Exception as error:
            raise self._mapped(error, prompt_field) from None
        if not hasattr(stream, "__aiter__"):
            raise error_from_response(stream.error, prompt_field)
        try:
            async for event in stream:
                yield event
        except Exception as error:
            raise self._mapped(error, prompt_field) from None

    def _read(self, request: GenerationRequest) -> tuple[Any, int | None]:
        """The body as vLLM's own request, and the client's limit on each choice. Raises InvalidRequest."""
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        chat = request.dialect is Dialect.CHAT
        body = fields.json_object(request.body)
        fields.refuse(body, _UNSUPPORTED, "vLLM")
        limit = fields.output_limit(body, _LIMITS[request.dialect])
        fields.stop_strings(body)
        if chat:
            fields.messages(body)
        elif body.get("prompt") is not None or not body.get("prompt_embeds"):
            fields.prompts(body)
        choices = fields.integer(body, "n", 1) or 1
        if (fields.integer(body, "best_of", 1) or choices) != choices:
            raise fields.unsupported("best_of", "vLLM")
        guides = {new: body.pop(old) for old, new in _GUIDES.items() if body.get(old) is not None}
        if guides and body.get("structured_outputs") is None:
            body["structured_outputs"] = guides
        # The answer always comes in events; whether the client sees them as a stream is the gateway's business.
        body |= {"stream": True, "stream_options": None, "request_id": request.request_id}
        if self._keeps_priority and request.priority:
            # vLLM runs the lowest number first.
            body["priority"] = -request.priority
        try:
            return (ChatCompletionRequest if chat else CompletionRequest).model_validate(body), limit
        except ValidationError as error:
            raise error_from_validation(error.errors(include_url=False, include_input=False)) from None
        except ValueError as error:
            raise self._mapped(error, _PROMPT_FIELDS[request.dialect]) from None

    def _merge_equal_choices(self, asked: Any) -> int:
        """Without chance all choices are the same, and vLLM refuses to compute them twice: one stands for all."""
        choices = asked.n or 1
        temperature = asked.temperature
        if temperature is None:
            temperature = self._chat.default_sampling_params.get("temperature", 1.0)
        if choices == 1 or temperature > 0 or asked.use_beam_search:
            return 1
        asked.n = 1
        return int(choices)

    def _mapped(self, error: Exception, prompt_field: str) -> Exception:
        """What an exception of vLLM's means; LoadBalancerErrors pass."""
        if isinstance(error, LoadBalancerError):
            return error
        return error_from_response(self._chat.create_error_response(error).error, prompt_field)


def _chat_events(
    serving: Any,
    request: Any,
    result_generator: AsyncIterator[Any],
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
    return events(_answer(request, parsers), _numbered(result_generator), [echo] if echo else [])


def _completion_events(
    serving: Any,
    request: Any,
    engine_inputs: Any,
    result_generator: AsyncIterator[tuple[int, Any]],
    *_: object,
    **__: object,
) -> AsyncIterator[Event]:
    """Stands for vLLM's `completion_stream_generator`, with its parameters."""
    parsers = [None] * (len(engine_inputs) * (request.n or 1))
    echoes = [serving._extract_prompt_text(one) or "" for one in engine_inputs] if request.echo else []
    return events(_answer(request, parsers), result_generator, echoes)


def _answer(asked: Any, parsers: Sequence[Any]) -> Answer:
    request = _request.get()
    return Answer(asked, parsers, request.copies, request.prefilled)


async def _numbered(outputs: AsyncIterator[Any]) -> AsyncIterator[tuple[int, Any]]:
    async for output in outputs:
        yield 0, output


def _last_message(conversation: Any, role: str) -> str:
    """The text of the last message, if it is one that the answer goes on with."""
    last = conversation[-1] if conversation else {}
    content = "" if last.get("role") != role else last.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
