"""orjson against msgspec on what the gateway does with JSON: reading bodies, and escaping the text of a token.

python -m bench.json_libraries (needs msgspec, which nothing else here does)

CPU microseconds per operation, the best of several rounds that take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import orjson

ROUNDS = 15
WORDS = 'The quick brown fox asks: "why?" \u00e9\n'


class _Message(msgspec.Struct):
    role: str
    content: str


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    stream: bool = False


def body(characters: int) -> bytes:
    """A chat request with a prompt of about so many characters."""
    text = (WORDS * (characters // len(WORDS) + 1))[:characters]
    request = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 100, "stream": True}
    return orjson.dumps(request)


def best_us(operations: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """CPU microseconds of each operation."""
    best = dict.fromkeys(operations, float("inf"))
    for _ in range(ROUNDS):
        for name, operation in operations.items():
            began = time.process_time()
            for _ in range(count):
                operation()
            best[name] = min(best[name], (time.process_time() - began) / count * 1e6)
    return best


def main() -> None:
    generic = msgspec.json.Decoder()
    typed = msgspec.json.Decoder(_Chat)
    encoder = msgspec.json.Encoder()
    for label, characters, count in (("300 characters", 300, 3000), ("200 kB", 200_000, 60)):
        data = body(characters)
        figures = best_us(
            {
                "orjson": lambda data=data: orjson.loads(data),
                "msgspec": lambda data=data: generic.decode(data),
                "msgspec, four fields declared": lambda data=data: typed.decode(data),
            },
            count,
        )
        for name, cost_us in figures.items():
            print(f"read {label:15} {name:30} {cost_us:8.2f} us")
    for label, text in (("a token", " the"), ("a token with umlauts and quotes", ' "schön"\n')):
        figures = best_us(
            {"orjson": lambda text=text: orjson.dumps(text), "msgspec": lambda text=text: encoder.encode(text)}, 10_000
        )
        for name, cost_us in figures.items():
            print(f"escape {label:31} {name:12} {cost_us:8.3f} us")


if __name__ == "__main__":
    main()
