"""What an engine's prefix cache holds of the prompts that came here, in the scheduler's words. Pure.

The scheduler knows a prompt by the hashes of its byte blocks (`lbcore.prefix`), the engine by blocks of tokens. A
worker sees both of each request, and ties every byte block to the engine block that has its last whole token. Engine
blocks go by keys here, chained numbers that are equal for equal beginnings; how they are made is the engine's business.

Where a byte block ends among the tokens is an estimate: the tokens of a prompt are taken to be of one length. Prompts
that differ later on put the end of what they share in different places; it counts as held when any of them is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lbcore.generation import GenerationRequest
from lbcore.prefix import bytes_of
from lbcore.types import PrefixReport

LINGER_S = 1.0
"""How long a prompt is remembered after its request ended: an engine may tell of its blocks a little later than of its
last token."""

WHOLE_EVERY_S = 300.0
"""How often everything is said anew, so that nothing that ever went wrong stays wrong: for 10,000 blocks 80 KB."""

MAX_TIES = 32
"""Byte blocks that one engine block stands for; the one asked for least recently is given up for one more. Of blocks of
256 bytes one or two end in an engine block of 16 to 128 tokens; more do only where prompts put them differently."""

MAX_HASHES = 65_536
"""Hashes in one report: half a megabyte, or a millisecond of somebody's event loop."""

_Tie = tuple[str, int]
"""A model and the hash of a byte block of a prompt for it."""


def _nobody() -> None:
    """Hears of news that interest nobody."""


class _Block:
    """An engine block that the engine holds, or that a request may make it hold."""

    __slots__ = ("asked", "copies", "ties")

    def __init__(self) -> None:
        self.copies = 0
        """How often the engine holds it."""
        self.asked = 0
        """Byte blocks of remembered requests that are tied to it."""
        # Least recently asked for first. Most blocks end no byte block, and have none.
        self.ties: dict[_Tie, None] | None = None


class _Model:
    """What the scheduler is to believe of one model's prompts."""

    __slots__ = ("held", "news", "told", "whole_at", "whole_due")

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        """Hashes of byte blocks that are held, with the number of held engine blocks that each is tied to."""
        self.news: dict[int, bool] = {}
        """Those that are held, or are not, other than was told."""
        self.told = False
        """Whether a report has named the model."""
        self.whole_due = True
        self.whole_at = 0.0

    def hold(self, block_hash: int) -> bool:
        """One more; True when that is news."""
        count = self.held.get(block_hash, 0)
        self.held[block_hash] = count + 1
        return not count and self._note(block_hash, True)

    def release(self, block_hash: int) -> bool:
        """One less; True when that is news."""
        count = self.held[block_hash] - 1
        if count:
            self.held[block_hash] = count
            return False
        del self.held[block_hash]
        return self._note(block_hash, False)

    def _note(self, block_hash: int, is_held: bool) -> bool:
        if self.news.pop(block_hash, None) is None:
            self.news[block_hash] = is_held
            return True
        return False


class PrefixMirror:
    """The blocks of prompts that an engine holds, for every model by the name that clients ask for.

    `stored` and `removed` follow the engine: a key is held once more for each time that it is stored. `prompt` comes
    before or after that, `ended` after `prompt`. All times are seconds of one monotonic clock.

    Memory: an engine block is known as long as the engine holds it, or a request whose prompt has it is under way or
    ended less than `LINGER_S` ago; byte blocks as long as the engine block they are tied to, at most `MAX_TIES` of
    them. After `cleared`, with all requests ended, nothing is left but the names of models.
    """

    def __init__(self, block_size: int, models: Iterable[str]) -> None:
        """`block_size` is that of the engine's blocks in tokens; prompts for other models are passed over."""
        self.block_size = block_size
        self.on_news: Callable[[], None] = _nobody
        """Called when there is something to tell, other than the time that has passed."""
        self._models: Mapping[str, _Model] = {name: _Model() for name in models}
        self._blocks: dict[int, _Block] = {}
        self._open: dict[str, list[int]] = {}
        self._ended: deque[tuple[float, list[int]]] = deque()
        self._sequence = 0

    def prompt(self, request: GenerationRequest, model: str, keys: Sequence[int], tokens: int) -> None:
        """A request's prompt of so many tokens goes into the engine; `keys` are those of its whole engine blocks.

        Only the first prompt of a request counts, and only if the request brought its hashes.
        """
        state, prompt_bytes = self._models.get(model), request.prompt_bytes
        if state is None or not request.prefix_hashes or prompt_bytes <= 0 or request.request_id in self._open:
            return
        asked: list[int] = []
        size, block_bytes = self.block_size, request.prefix_block_bytes
        has_news = False
        for index, block_hash in enumerate(request.prefix_hashes):
            # Up to the last token that ends in the block: one that goes on behind it is not of what prompts share.
            whole = bytes_of(index + 1, block_bytes) * tokens // prompt_bytes
            last = max(0, whole - 1) // size
            if last >= len(keys):
                # What does not fill an engine block is never found again.
                break
            key = keys[last]
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = _Block()
            block.asked += 1
            asked.append(key)
            has_news |= self._tie(block, (model, block_hash))
        self._open[request.request_id] = asked
        if has_news:
            self.on_news()

    def ended(self, request_id: str, now: float) -> None:
        """A request has left the engine. One that was not told of is passed over."""
        keys = self._open.pop(request_id, None)
        if keys:
            self._ended.append((now, keys))
        self._forget(now)

    def stored(self, keys: Iterable[int]) -> None:
        """The engine holds these blocks once more."""
        has_news = False
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = _Block()
            block.copies += 1
            if block.copies == 1 and block.ties:
                has_news |= self._hold(block)
        if has_news:
            self.on_news()

    def removed(self, key: int) -> bool:
        """The engine holds this block once less; True while it holds it still. An unknown one is passed over."""
        block = self._blocks.get(key)
        if block is None or not block.copies:
            return False
        block.copies -= 1
        if block.copies:
            return True
        if block.ties and self._release(block):
            self.on_news()
        if not block.asked:
            del self._blocks[key]
        return False

    def cleared(self) -> None:
        """The engine holds nothing, or nobody knows what it holds."""
        has_news = False
        for block in self._blocks.values():
            if block.copies:
                block.copies = 0
                if block.ties:
                    has_news |= self._release(block)
        self._blocks = {key: block for key, block in self._blocks.items() if block.asked}
        if has_news:
            self.on_news()

    def resend(self) -> None:
        """Whoever is told has forgotten all, or is new: the next report of each model is whole."""
        for model in self._models.values():
            model.whole_due = True
        self.on_news()

    def changes(self, now: float) -> Iterator[PrefixReport]:
        """What is to be told, each report as it is sent; what was handed out counts as told."""
        self._forget(now)
        for name, model in self._models.items():
            if model.told and now - model.whole_at >= WHOLE_EVERY_S:
                model.whole_due = True
            if model.whole_due:
                if model.held or model.told:
                    stored = [*model.held]
                    model.news.clear()
                    model.told, model.whole_due, model.whole_at = True, False, now
                    yield from self._reports(name, True, stored, [])
            elif model.news:
                news, model.news = model.news, {}
                stored = [block_hash for block_hash, is_held in news.items() if is_held]
                removed = [block_hash for block_hash, is_held in news.items() if not is_held]
                yield from self._reports(name, False, stored, removed)

    def held(self, model: str) -> frozenset[int]:
        """The hashes of byte blocks that the engine holds."""
        return frozenset(self._models[model].held)

    def __len__(self) -> int:
        """Engine blocks that are remembered."""
        return len(self._blocks)

    def _reports(self, model: str, whole: bool, stored: list[int], removed: list[int]) -> Iterator[PrefixReport]:
        """In as many reports as it takes."""
        for begin in range(0, max(1, len(stored), len(removed)), MAX_HASHES):
            self._sequence += 1
            part = slice(begin, begin + MAX_HASHES)
            yield PrefixReport(self._sequence, model, whole and not begin, tuple(stored[part]), tuple(removed[part]))

    def _tie(self, block: _Block, tie: _Tie) -> bool:
        """True when that is news."""
        if block.ties is None:
            block.ties = {}
        elif tie in block.ties:
            del block.ties[tie]
            block.ties[tie] = None
            return False
        block.ties[tie] = None
        has_news = bool(block.copies) and self._models[tie[0]].hold(tie[1])
        if len(block.ties) > MAX_TIES:
            oldest = next(iter(block.ties))
            del block.ties[oldest]
            has_news |= bool(block.copies) and self._models[oldest[0]].release(oldest[1])
        return has_news

    def _hold(self, block: _Block) -> bool:
        has_news = False
        for model, block_hash in block.ties or ():
            has_news |= self._models[model].hold(block_hash)
        return has_news

    def _release(self, block: _Block) -> bool:
        has_news = False
        for model, block_hash in block.ties or ():
            has_news |= self._models[model].release(block_hash)
        return has_news

    def _forget(self, now: float) -> None:
        """Drops what only requests that ended long enough ago had asked for."""
        ended, blocks = self._ended, self._blocks
        while ended and now - ended[0][0] >= LINGER_S:
            for key in ended.popleft()[1]:
                block = blocks[key]
                block.asked -= 1
                if not block.asked and not block.copies:
                    del blocks[key]
