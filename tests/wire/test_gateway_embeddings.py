"""POST /v1/embeddings, driven by a real client over a dispatcher that answers as it is told."""

from __future__ import annotations

import struct

import orjson
import pytest
from aiohttp import ClientPayloadError, ClientResponse
from structlog.testing import capture_logs

from gateway import exchange
from gateway.handlers import _AiohttpPeer
from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, Embedding, Finished, Started
from tests.wire.conftest import soon
from tests.wire.gateway_host import Gateway, Step, error_of

BODY = {"model": "m", "input": ["Hi", "ho"]}
VECTORS: list[Step] = [
    [Started(3), Embedding(0, struct.pack("<2f", 0.5, -1.0))],
    [Embedding(1, struct.pack("<2f", 0.25, 2.0)), Finished(3, 0, 0)],
]


@pytest.fixture(autouse=True)
def vectors(gateway: Gateway) -> None:
    gateway.dispatcher.steps = VECTORS


async def embed(gateway: Gateway, **fields: object) -> ClientResponse:
    return await soon(gateway.client.post("/v1/embeddings", json={**BODY, **fields}))


async def test_an_embedding_is_a_list_of_vectors(gateway: Gateway) -> None:
    response = await embed(gateway)
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-ID"]
    assert orjson.loads(await response.read()) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [0.25, 2.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


async def test_many_vectors_are_one_answer(gateway: Gateway) -> None:
    vectors = [struct.pack("<1024f", *[index / 7] * 1024) for index in range(100)]
    gateway.dispatcher.steps = [[*(Embedding(index, one) for index, one in enumerate(vectors)), Finished(900, 0, 0)]]
    response = await soon(gateway.client.post("/v1/embeddings", json={"model": "m", "input": ["a"] * 100}))
    data = orjson.loads(await response.read())["data"]
    assert [struct.pack("<1024f", *one["embedding"]) for one in data] == vectors


async def test_a_client_that_goes_away_in_mid_body_is_no_crash(gateway: Gateway) -> None:
    vectors = [Embedding(index, bytes(4 * 250_000)) for index in range(20)]
    gateway.dispatcher.steps = [[*vectors, Finished(9, 0, 0)]]
    with capture_logs() as logs:
        response = await embed(gateway, input=["a"] * 20, encoding_format="base64")
        assert int(response.headers["Content-Length"]) > 20 * 4 * 250_000
        await soon(response.content.readany())
        response.close()
        gateway.dispatcher.steps = VECTORS
        assert (await embed(gateway)).status == 200
    assert [line["event"] for line in logs] == ["request", "request"]


async def test_an_answer_that_cannot_be_sent_to_its_end_ends_with_its_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(peer: object, go_on: object) -> None:
        raise OSError

    monkeypatch.setattr(_AiohttpPeer, "when_drained", broken)
    vectors = [Embedding(index, bytes(4 * 250_000)) for index in range(20)]
    gateway.dispatcher.steps = [[*vectors, Finished(9, 0, 0)]]
    with capture_logs() as logs:
        response = await embed(gateway, input=["a"] * 20, encoding_format="base64")
        with pytest.raises(ClientPayloadError):
            await soon(response.read())
    assert [line["event"] for line in logs] == ["request_crashed", "request"]
    assert gateway.exchanges.in_flight == 0


async def test_a_head_that_cannot_be_made_is_an_error_of_the_server(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "JSON", {"X": "\u20ac"})
    response = await embed(gateway)
    assert response.status == 500
    assert (await error_of(response))["code"] == "internal_error"
    assert gateway.exchanges.in_flight == 0


async def test_the_dispatcher_learns_the_size_of_what_is_embedded_and_no_prefix(gateway: Gateway) -> None:
    body = b'{"input":["%s", "y"], "model":"m",\n "input_type":"query"}' % (b"x" * 1000)
    await soon(gateway.client.post("/v1/embeddings", data=body))
    facts, request = gateway.dispatcher.asked[0]
    assert (request.dialect, request.body) == (Dialect.EMBEDDING, body)
    assert (facts.prompt_bytes, facts.prefix_hashes, facts.max_output_tokens) == (1002, (), 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": []}, "input"), ({"input": ["a", ""]}, "input[1]"), ({"stream": True}, "stream")],
)
async def test_what_cannot_be_embedded_is_refused_and_goes_nowhere(
    gateway: Gateway, fields: dict[str, object], param: str
) -> None:
    response = await embed(gateway, **fields)
    assert response.status == 400
    assert (await error_of(response))["param"] == param
    assert gateway.dispatcher.asked == []


async def test_a_model_that_makes_no_embeddings_says_so(gateway: Gateway) -> None:
    gateway.dispatcher.steps = [InvalidRequest("This model makes no embeddings.", param="model")]
    response = await embed(gateway)
    assert response.status == 400
    assert (await error_of(response))["param"] == "model"
    assert await gateway.counted(400, route="embedding")


async def test_a_vector_that_is_missing_is_the_engine_s_failure(gateway: Gateway) -> None:
    response = await embed(gateway, input=["one", "two", "three"])
    assert response.status == 500
    assert (await error_of(response))["code"] == "engine_failed"


async def test_an_embedding_leaves_its_marks_but_no_time_to_a_token(gateway: Gateway) -> None:
    with capture_logs() as logs:
        await embed(gateway, input=["my secret", "ho"])
    [line] = logs
    assert (line["route"], line["code"], line["prompt_tokens"], line["output_tokens"]) == ("embedding", 200, 3, 0)
    assert line["ttft_ms"] is None
    assert "my secret" not in repr(logs)
    page = await gateway.metrics()
    assert 'lb_gateway_requests_total{code="200",model="m",route="embedding"} 1.0' in page
    assert 'lb_gateway_prompt_tokens_total{model="m"} 3.0' in page
    assert "lb_gateway_ttft_seconds_count" not in page
