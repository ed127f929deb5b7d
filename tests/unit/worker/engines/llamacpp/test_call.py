"""One request's connection: however it goes wrong, there is one end, and the engine is told after it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from lbcore.errors import EngineFailed
from lbcore.generation import Event, Failed
from worker.engines.llamacpp import call as call_module
from worker.engines.llamacpp.body import Ask
from worker.engines.llamacpp.call import Call

ASK = Ask("/v1/chat/completions", b"{}", "messages", ("",), 1, None, False, 0, ())
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED = b"HTTP/1.1 500 Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Line(asyncio.Transport):
    """A connection that notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.done.append("write")

    def write_eof(self) -> None:
        self.done.append("write_eof")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return False


class Talk:
    def __init__(self, api_key: str = "key") -> None:
        self.events: list[Event | str] = []
        self.line = Line()
        self.call = Call("r", ASK, self.events.append, 512, lambda call: None, lambda call: self.events.append("over"))
        self.call.api_key = api_key
        self.call.connection_made(self.line)

    def assert_failed(self) -> None:
        self.call.connection_lost(None)
        failed, over = self.events
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, EngineFailed)
        assert over == "over"


@pytest.mark.parametrize(
    "chunk",
    [
        7,
        "choices",
        {"choices": 7},
        {"choices": [{}]},
        {"choices": [{"index": 5, "finish_reason": None, "text": "x"}]},
        {"choices": [{"index": 0, "finish_reason": None, "delta": {"tool_calls": [{"index": 0, "function": "x"}]}}]},
        {"choices": [{"index": 0, "finish_reason": None, "text": "x", "logprobs": {"content": [{"token": "x"}]}}]},
        {"choices": [], "prompt_progress": {}},
        {"choices": [], "usage": {}},
        {"choices": [], "usage": "x"},
    ],
)
def test_a_chunk_that_lacks_something_fails_its_request(chunk: object) -> None:
    talk = Talk()
    data = b"data: " + orjson.dumps(chunk) + b"\n\n"
    talk.call.data_received(STREAM + b"%x\r\n%s\r\n" % (len(data), data))
    assert talk.line.done == ["write", "write_eof"]
    talk.assert_failed()


def test_a_request_that_cannot_be_sent_hangs_up() -> None:
    talk = Talk(api_key="é")
    assert talk.line.done == ["abort"]
    talk.assert_failed()


def test_a_refusal_that_cannot_be_read_is_an_end_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: bytes, status: int, ask: Ask) -> None:
        raise RuntimeError(body)

    monkeypatch.setattr(call_module, "error_from_body", broken)
    talk = Talk()
    talk.call.data_received(REFUSED)
    talk.assert_failed()
