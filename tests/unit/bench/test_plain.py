from __future__ import annotations

import json

import pytest

from bench.dataplane.bodies import Template, template
from bench.dataplane.plain import Failed, parse

SAID = (
    '{"duration_s": 2.000000, "requests": 1010, "bytes": 630000, "connect": 0, "read": 0, "write": 0, "status": %d, '
    '"timeout": 0, "p50_ms": 1.500, "p90_ms": 2.000, "p99_ms": 9.000, "max_ms": 12.000, "mean_ms": 1.700}'
)


def output(status: int) -> str:
    """What wrk prints, and behind it what our script does."""
    return f"Running 2s test @ http://127.0.0.1:1\n  1 threads and 8 connections\n\nfigures {SAID % status}\n"


def test_the_line_of_figures_is_read() -> None:
    figures = parse(output(0))
    assert figures["requests"] == 1010
    assert figures["requests_per_s"] == 505
    assert figures["latency_ms"] == {"p50": 1.5, "p90": 2, "p99": 9, "max": 12, "mean": 1.7}
    assert figures["errors"] == {}


def test_answers_that_are_no_success_are_errors_and_do_not_count() -> None:
    figures = parse(output(10))
    assert (figures["requests"], figures["errors"]) == (1000, {"status": 10})


def test_without_figures_wrk_has_failed() -> None:
    with pytest.raises(Failed, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def body(parts: Template, number: int) -> dict[str, object]:
    head, _, content = parts.request(number).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(content)}".encode() in head.split(b"\r\n")
    return dict(json.loads(content))


@pytest.mark.parametrize("characters", [300, 200_000])
def test_prompts_are_of_their_length_and_differ_from_the_beginning(characters: int) -> None:
    parts = template("http://host:1/base/", "run", 16, stream=True, characters=characters)
    assert parts.head.startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: host:1\r\n")
    prompts = [body(parts, number)["messages"][0]["content"] for number in (1, 2)]  # type: ignore[index]
    assert [len(prompt) for prompt in prompts] == [characters] * 2
    assert prompts[0][:14] == "0000000001 run"
    assert prompts[1][:14] == "0000000002 run"
    assert (body(parts, 1)["max_tokens"], body(parts, 1)["stream"]) == (16, True)
