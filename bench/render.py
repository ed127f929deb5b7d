"""What it costs to render: medians of microseconds per chunk, and per answer for what is made once.

python bench/render.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from statistics import median
from struct import pack
from time import thread_time_ns

import orjson

from gateway.render import Chunks, answer_for, chunks_for
from gateway.schema import OpenAIRequest, parse
from lbcore.generation import (
    Delta,
    Dialect,
    Embedding,
    Event,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)

SAMPLES = 200
REPEATS = 1000
TOKENS = 100
INPUTS, NUMBERS = 100, 1024
GENERATED = (Dialect.CHAT, Dialect.COMPLETION)

TOP = tuple(TopLogprob(f"t{number}", -1.5 * number, b"t") for number in range(5))
KINDS = {
    "ASCII": Delta(text=" hello"),
    "with escapes": Delta(text='"\n\\'),
    "not ASCII": Delta(text="für 日本"),
    "reasoning": Delta(reasoning=" hello"),
    "tool call": Delta(tool_calls=(ToolCallDelta(0, arguments='{"ci'),)),
    "5 logprobs": Delta(text=" hello", logprobs=(TokenLogprob(" hello", -0.5, b" hello", TOP),)),
}
FINISHED = Finished(prompt_tokens=10, cached_tokens=0, output_tokens=TOKENS)


def microseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of one call."""
    times = []
    for _ in range(SAMPLES):
        start = thread_time_ns()
        for _ in range(repeats):
            call()
        times.append((thread_time_ns() - start) / repeats)
    return median(times) / 1000


def request(dialect: Dialect) -> OpenAIRequest:
    fields = {"messages": [{"role": "user", "content": "Hi"}]} if dialect is Dialect.CHAT else {"prompt": "Hi"}
    return parse(dialect, orjson.dumps({"model": "demo", "stream": True, **fields}))


def begun(dialect: Dialect) -> Chunks:
    chunks = chunks_for(request(dialect), "0" * 32, 1_700_000_000)
    chunks.render([Delta(text="x")])
    return chunks


def stream(parsed: OpenAIRequest, batches: Iterable[list[Event]]) -> None:
    chunks = chunks_for(parsed, "0" * 32, 1_700_000_000)
    for batch in batches:
        chunks.render(batch)


def whole(parsed: OpenAIRequest, events: list[Event]) -> None:
    answer_for(parsed, "0" * 32, 1_700_000_000).add(events)


def embeddings() -> list[Event]:
    """The vectors of a hundred inputs, as a model would give them: of length 1, and every bit of use."""
    chance = Random(0)
    vectors = [[chance.gauss(0, NUMBERS**-0.5) for _ in range(NUMBERS)] for _ in range(INPUTS)]
    events = [Embedding(index, pack(f"<{NUMBERS}f", *vector)) for index, vector in enumerate(vectors)]
    return [*events, FINISHED]


def main() -> None:
    gc.disable()
    print(f"{'us per chunk':24} {'alone':>8} {'16 a batch':>12}")
    for dialect in GENERATED:
        for name, delta in KINDS.items():
            chunks = begun(dialect)
            alone = microseconds(partial(chunks.render, [delta]))
            batched = microseconds(partial(chunks.render, [delta] * 16), REPEATS // 10) / 16
            print(f"{dialect + ', ' + name:24} {alone:8.2f} {batched:12.2f}")
    print(f"\n{'us per answer':24} {'1 token':>8} {f'{TOKENS} tokens':>12}")
    end: list[Event] = [Delta(finish_reason=FinishReason.STOP), FINISHED]
    token: Event = Delta(text=" hello")
    for dialect in GENERATED:
        parsed = request(dialect)
        one = microseconds(partial(stream, parsed, [[token], end]))
        many = microseconds(partial(stream, parsed, [[token]] * TOKENS + [end]), REPEATS // 10)
        print(f"{dialect + ', streamed':24} {one:8.2f} {many:12.2f}")
        one = microseconds(partial(whole, parsed, [token, *end]))
        many = microseconds(partial(whole, parsed, [token] * TOKENS + end), REPEATS // 10)
        print(f"{dialect + ', whole':24} {one:8.2f} {many:12.2f}")
    print(f"\n{f'us per {INPUTS} x {NUMBERS}':24} {'time':>8} {'bytes':>12}")
    events = embeddings()
    for encoding_format in ("float", "base64"):
        body = {"model": "demo", "input": ["x"] * INPUTS, "encoding_format": encoding_format}
        parsed = parse(Dialect.EMBEDDING, orjson.dumps(body))
        pieces = answer_for(parsed, "0" * 32, 1_700_000_000).add(events)
        size = sum(map(len, pieces)) if isinstance(pieces, list) else 0
        print(f"{'embedding, ' + encoding_format:24} {microseconds(partial(whole, parsed, events), 1):8.0f} {size:12,}")


if __name__ == "__main__":
    main()
