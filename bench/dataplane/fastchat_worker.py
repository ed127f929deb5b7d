"""A simulated worker that speaks FastChat's worker protocol, as cheap as `http_worker` and at the same pace.

python -m bench.dataplane.fastchat_worker --controller http://127.0.0.1:21001 [options of http_worker]

It registers with the controller as soon as that answers, and tells it its queue every 45 seconds, as FastChat's own
workers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping

import aiohttp

from bench.dataplane.http_worker import (
    CONTEXT_LENGTH,
    ROUTES,
    Answer,
    Connection,
    Engine,
    Handler,
    add_arguments,
    chunk,
    fixed,
    max_tokens,
    serve,
    stream_head,
)
from bench.dataplane.system import MODEL

HEART_BEAT_S = 45.0
START_TIMEOUT_S = 60.0
PROMPT_TOKENS = 8

_CONVERSATION = {
    "name": "one_shot",
    "system_template": "{system_message}",
    "system_message": "",
    "roles": ["Human", "Assistant"],
    "messages": [],
    "offset": 0,
    "sep_style": 1,
    "sep": "\n### ",
    "sep2": None,
    "stop_str": None,
    "stop_token_ids": None,
}


def _frame(text: str, tokens: int, finish_reason: str | None) -> bytes:
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
    frame = {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish_reason, "logprobs": None}
    return json.dumps(frame).encode()


class Frames(Answer):
    """A stream of JSON objects, each ended by a NUL, each with all of the text up to now."""

    def __init__(self, connection: Connection, tokens: int) -> None:
        super().__init__(connection, tokens)
        self._text = ""
        self._tokens = 0

    def begin(self) -> None:
        self.connection.write(stream_head(b"application/octet-stream"))

    def emit(self, text: str) -> None:
        self._text += text
        self._tokens += 1
        data = chunk(_frame(self._text, self._tokens, None) + b"\0")
        if self.left:
            self.connection.write(data)
            return
        # The end is said twice: the server wants a frame without new text for it.
        end = chunk(_frame(self._text, self._tokens, "length") + b"\0")
        self.connection.write(data + end + b"0\r\n\r\n")
        self.connection.end()


class LastFrame(Answer):
    """The last of those frames alone."""

    def __init__(self, connection: Connection, tokens: int) -> None:
        super().__init__(connection, tokens)
        self._texts: list[str] = []

    def emit(self, text: str) -> None:
        self._texts.append(text)
        if not self.left:
            self.connection.send_json(_frame("".join(self._texts), len(self._texts), "length"))


def generate_stream(connection: Connection, body: bytes) -> None:
    """POST /worker_generate_stream."""
    connection.submit(Frames(connection, max_tokens(body)))


def generate(connection: Connection, body: bytes) -> None:
    """POST /worker_generate."""
    tokens = max_tokens(body)
    engine = connection.engine
    if engine.pace.step_ms > 0:
        connection.submit(LastFrame(connection, tokens))
    else:
        engine.requests += 1
        connection.send_json(_frame(engine.text() * tokens, tokens, "length"))


def _status(engine: Engine) -> dict[str, object]:
    return {"model_names": [MODEL], "speed": 1, "queue_length": engine.unfinished}


def status(connection: Connection, body: bytes) -> None:
    """POST /worker_get_status."""
    connection.send_json(json.dumps(_status(connection.engine)).encode())


WORKER_ROUTES: Mapping[bytes, Handler] = {
    **ROUTES,
    b"/worker_generate_stream": generate_stream,
    b"/worker_generate": generate,
    b"/worker_get_status": status,
    b"/worker_get_conv_template": fixed({"conv": _CONVERSATION}),
    b"/model_details": fixed({"context_length": CONTEXT_LENGTH}),
    b"/count_token": fixed({"count": PROMPT_TOKENS, "error_code": 0}),
}


class Registration:
    """What the controller is told."""

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self._beating: asyncio.Task[None] | None = None

    async def begin(self, engine: Engine, url: str) -> None:
        """Registers, and beats from then on. Raises TimeoutError when there is no controller."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._register(engine, url):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        self._beating = asyncio.create_task(self._beat(engine, url))

    async def _register(self, engine: Engine, url: str) -> bool:
        try:
            body = {"worker_name": url, "check_heart_beat": True, "worker_status": _status(engine), "multimodal": False}
            await self._tell("/register_worker", body)
        except aiohttp.ClientError:
            return False
        return True

    async def _beat(self, engine: Engine, url: str) -> None:
        while True:
            await asyncio.sleep(HEART_BEAT_S)
            await self._tell("/receive_heart_beat", {"worker_name": url, "queue_length": engine.unfinished})

    async def _tell(self, path: str, body: object) -> None:
        async with aiohttp.ClientSession() as session, session.post(self._controller + path, json=body) as response:
            response.raise_for_status()
            await response.read()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="A simulated worker that speaks FastChat's worker protocol.")
    add_arguments(parser)
    parser.add_argument("--controller", required=True, metavar="URL", help="FastChat's controller")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments, WORKER_ROUTES, Registration(arguments.controller).begin))


if __name__ == "__main__":
    main()
