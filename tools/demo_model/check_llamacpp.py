"""Asks the demo model through llama.cpp, embedded in this process."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xllamacpp

from tools.demo_model.cases import Case, Messages

_CONTEXT = 2048


class LlamaCpp:
    """The GGUF form of the model, with a number of slots that share each step."""

    def __init__(self, path: Path, slots: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        # The context is divided among the slots.
        params.n_ctx = _CONTEXT * slots
        params.n_parallel = slots
        params.cpuparams.n_threads = 2
        params.port = 0
        self._slots = slots
        self._server = xllamacpp.Server(params)

    def ask(self, cases: list[Case], rendered: list[str | list[int]]) -> list[str]:
        """The answers, `said` left out, from as many threads at once as there are slots.

        A chat goes through the server's own template; a continued chat goes in rendered, as text or token ids.
        """
        with ThreadPoolExecutor(self._slots) as threads:
            return list(threads.map(self._ask, cases, rendered))

    def _ask(self, case: Case, rendered: str | list[int]) -> str:
        if case.messages is None or case.said:
            return self._complete(rendered)
        return self._chat(case.messages)

    def _complete(self, prompt: str | list[int]) -> str:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 700}
        return str(self._server.handle_completions(body)["choices"][0]["text"])

    def _chat(self, messages: Messages) -> str:
        body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": 700}
        return str(self._server.handle_chat_completions(body)["choices"][0]["message"]["content"])

    def continue_chat(self, case: Case) -> str:
        """The whole answer where the last message is the beginning of the assistant's, as in `case.said`."""
        return self._chat([*(case.messages or []), {"role": "assistant", "content": case.said}])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised."""
        return [int(token) for token in self._post("/tokenize", {"content": text, "parse_special": True})["tokens"]]

    def render(self, messages: Messages) -> str:
        """The prompt that the server's template engine makes of a chat."""
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return dict(json.load(response))
