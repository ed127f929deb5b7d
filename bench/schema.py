"""What it costs to read a body: the median of microseconds of parse(), and of orjson alone for comparison.

python bench/schema.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from statistics import median
from time import thread_time_ns

import orjson

from gateway.schema import parse
from lbcore.generation import Dialect

SAMPLES = 200
SAMPLE_NS = 500_000
"""How long one sample should take, so that reading the clock does not count."""

SENTENCE = 'The gateway said "no" to nobody,\nbut it asked twice. '
UMLAUTS = 'Das Gateway sagte "nein" für niemanden,\nfragte aber zwölfmal. '
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": SENTENCE,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for number in range(10)
]


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def filling(text: str, size: int) -> str:
    return (text * (size // len(text) + 1))[:size]


BODIES: dict[str, tuple[Dialect, dict[str, object]]] = {
    "chat, small": (
        Dialect.CHAT,
        {
            "messages": [{"role": "system", "content": "You are helpful."}, user("Who are you?")],
            "stream": True,
            "max_tokens": 64,
            "temperature": 0.7,
        },
    ),
    "chat, 20 messages, 10 tools": (
        Dialect.CHAT,
        {"messages": [user(SENTENCE * 4)] * 20, "tools": TOOLS, "tool_choice": "auto", "stream": True},
    ),
    "chat, 200 messages": (Dialect.CHAT, {"messages": [user(SENTENCE * 4)] * 200}),
    "chat, 200 kB of ASCII": (Dialect.CHAT, {"messages": [user(filling(SENTENCE, 200_000))]}),
    "chat, 200 kB with umlauts": (Dialect.CHAT, {"messages": [user(filling(UMLAUTS, 200_000))]}),
    "chat, a picture of 1 MB": (
        Dialect.CHAT,
        {"messages": [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}])]},
    ),
    "completion, small": (Dialect.COMPLETION, {"prompt": "Once upon a time", "max_tokens": 64, "stream": True}),
    "completion, 10,000 tokens": (Dialect.COMPLETION, {"prompt": list(range(10_000))}),
    "embedding, small": (Dialect.EMBEDDING, {"input": "Once upon a time", "encoding_format": "base64"}),
    "embedding, 2,048 inputs": (Dialect.EMBEDDING, {"input": [SENTENCE * 4] * 2048}),
}


def microseconds(call: Callable[[], object]) -> float:
    """The median time of one call."""
    start = thread_time_ns()
    call()
    repeats = max(1, SAMPLE_NS // max(1, thread_time_ns() - start))
    times = []
    for _ in range(SAMPLES):
        start = thread_time_ns()
        for _ in range(repeats):
            call()
        times.append((thread_time_ns() - start) / repeats)
    return median(times) / 1000


def main() -> None:
    gc.disable()
    print(f"{'body':30} {'bytes':>10} {'parse us':>10} {'orjson us':>10}")
    for name, (dialect, fields) in BODIES.items():
        body = orjson.dumps({"model": "demo", **fields})
        whole = microseconds(partial(parse, dialect, body))
        alone = microseconds(partial(orjson.loads, body))
        print(f"{name:30} {len(body):10,} {whole:10.1f} {alone:10.1f}")


if __name__ == "__main__":
    main()
