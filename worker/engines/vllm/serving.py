"""vLLM's own OpenAI serving, without its HTTP: bodies in, events out.

Chat templates, tool and reasoning parsers, structured output, LoRA, images, pooling and sampling defaults are vLLM's.
Taken out is only the last step, where its server makes JSON of every token: there `answer.py` stands.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lbcore.errors import InvalidRequest, LoadBalancerError
from lbcore.generation import Dialect, Event, GenerationRequest
from worker.engines import fields
from worker.engines.vllm.answer import Prefilled
from worker.engines.vllm.errors import error_from_response, error_from_validation
from worker.engines.vllm.forms import Chat, Completion, Embeddings, Form
from worker.engines.vllm.tap import Entered, Passage, Tap, passage

_FORMS: dict[Dialect, tuple[type[Form], str]] = {
    Dialect.CHAT: (Chat, "openai_serving_chat"),
    Dialect.COMPLETION: (Completion, "openai_serving_completion"),
    Dialect.EMBEDDING: (Embeddings, "serving_embedding"),
}
"""For each kind of body, its form and what vLLM calls its own serving of it; vLLM has none where the model does not go
with it."""


class Serving:
    """What vLLM serves of one engine."""

    def __init__(self, state: Any, keeps_priority: bool, prefilled: Prefilled) -> None:
        self._forms = {
            dialect: form(serving)
            for dialect, (form, name) in _FORMS.items()
            if (serving := getattr(state, name, None)) is not None
        }
        self.keeps_priority = keeps_priority
        """Whether what is urgent goes first, and not only what came first."""
        self._prefilled = prefilled
        self.generates = any(dialect is not Dialect.EMBEDDING for dialect in self._forms)
        """Whether the model makes text."""
        self.adapters: tuple[str, ...] = tuple(state.openai_serving_models.lora_requests)

    @classmethod
    async def build(cls, engine: Any, arguments: Namespace, prefilled: Prefilled) -> Serving:
        """Raises whatever vLLM raises when its arguments do not go together."""
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        state = State()
        tasks = await engine.get_supported_tasks()
        await init_app_state(Tap(engine), state, arguments, tasks)
        return cls(state, engine.vllm_config.scheduler_config.policy == "priority", prefilled)

    async def events(
        self,
        request: GenerationRequest,
        entered: Entered,
        left: Callable[[], None],
        prompted: Callable[[str, Sequence[int], str], None] | None = None,
    ) -> AsyncIterator[Event]:
        """The request's events; `left` is called for each of its sequences that has ended. Raises LoadBalancerError.

        `prompted` is called with the model's name, the tokens and the adapter of a prompt that is a request's only one.
        """
        form = self._forms.get(request.dialect)
        if form is None:
            if request.dialect is Dialect.EMBEDDING:
                raise fields.no_embeddings()
            raise InvalidRequest("This model makes embeddings and no text.", param="model")
        body = fields.json_object(request.body)
        limit = fields.output_limit(body, form.limits)
        form.check(body)
        body["request_id"] = request.request_id
        if self.keeps_priority and request.priority:
            # vLLM runs the lowest number first.
            body["priority"] = -request.priority
        try:
            asked = form.parse(body)
            continuation = request.continuation
            continued = None if continuation is None else form.continued(asked, continuation)
            copies = form.merge_equal_choices(asked)
            told = partial(prompted, asked.model or "") if prompted is not None and _is_alone(body) else None
            passage.set(Passage(entered, left, self._prefilled, form.prompt_field, copies, limit, told, continued))
            answer = await form.answer(asked)
            if not hasattr(answer, "__aiter__"):
                raise error_from_response(answer.error, form.prompt_field)
            async for event in answer:
                yield event
        except Exception as error:
            raise _mapped(error, form) from None


def _is_alone(body: Mapping[str, Any]) -> bool:
    """Whether a body that was checked has one prompt."""
    prompt = body.get("prompt")
    return not isinstance(prompt, list) or len(prompt) == 1 or isinstance(prompt[0], int)


def _mapped(error: Exception, form: Form) -> LoadBalancerError:
    """What an exception means."""
    from pydantic import ValidationError

    if isinstance(error, LoadBalancerError):
        return error
    if isinstance(error, ValidationError):
        return error_from_validation(error.errors(include_url=False, include_input=False))
    return error_from_response(form.serving.create_error_response(error).error, form.prompt_field)
