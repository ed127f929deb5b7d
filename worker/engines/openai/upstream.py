"""One server: what it is, whether it is well, and how much it has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import aiohttp
import orjson
import structlog

from lbcore.clock import Clock
from lbcore.errors import ConfigError
from worker.engines.openai.answer import Answer
from worker.engines.openai.errors import unreachable
from worker.engines.openai.foreign import Crowd
from worker.engines.openai.kinds import UNKNOWN, Facts, Listing, facts, read_models, recognise
from worker.engines.openai.meter import StreamMeter
from worker.engines.openai.options import DEFAULT_SEQUENCES, Address, UpstreamOptions
from worker.engines.openai.page import Page, read_page
from worker.engines.openai.vectors import Vectors

log = structlog.get_logger()

LOOK_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
"""For questions beside requests. A server that computes may answer late: vLLM's metrics have been seen to take a
second."""
MAX_SLOW_LOOKS = 3
"""Late answers in a row that are forgiven. A refused connection, or an error, counts at once."""
MAX_ANSWER_BYTES = 4 * 2**20
"""What is longer is not read: a vLLM page has about 100 kB, ten models on one server make it a megabyte."""
HEALTH_PATH, MODELS_PATH = "/health", "/v1/models"
OTHERWISE_FACTOR = 10
"""How much more seldom a server is looked at that has no page for its health, as those that sell by the token have
none: it is asked for its models then, and that may be counted or charged."""
UNHEALTHY_STATUS = 500
"""From here on an HTTP status says that the server is not well."""


class Unwell(Exception):
    """The server is not there or not ready; the text says why, for the log."""


class Upstream:
    """A server and our requests at it.

    `run` looks after it until it is cancelled. `changed` is called whenever it became ready or ceased to be.
    """

    def __init__(
        self,
        address: Address,
        model: str,
        options: UpstreamOptions,
        session: aiohttp.ClientSession,
        clock: Clock,
        rng: Random,
        changed: Callable[[], None],
    ) -> None:
        self.address = address
        self.facts = Facts(UNKNOWN)
        self.page = Page()
        self.meter = StreamMeter()
        self.crowd = Crowd(UNKNOWN.page_lag_s)
        self.is_ready = False
        self.was_asked = False
        """Whether the first look at it is over."""
        self.misfit: ConfigError | None = None
        """Why it cannot be used although it answers."""
        self.waiting_for_token = 0
        """Choices of ours whose request it has given no token of yet."""
        self.answers: set[Answer | Vectors] = set()
        """Those of ours that it works on."""
        self._model = model
        self._options = options
        self._session = session
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._health_path = MODELS_PATH
        self._has_page = bool(options.upstream_metrics)
        self._slow_looks = 0

    @property
    def sequences(self) -> int:
        """Choices that it gets at once."""
        return self._options.upstream_max_sequences or self.facts.sequences or DEFAULT_SEQUENCES

    @property
    def load(self) -> int:
        """Choices that it works on or has waiting, ours and others'."""
        return self.crowd.ours + self.crowd.foreign.requests

    @property
    def kv_used_blocks(self) -> int:
        """Blocks of its KV cache in use: what it says, but no less than what we see and nothing for nobody.

        Its word is up to a second old or more. 0 when it does not say how large a block is.
        """
        size = self.page.kv_block_size
        working = [answer for answer in self.answers if not answer.finished]
        if not size or not (working or self.crowd.foreign.requests):
            return 0
        seen = sum(-(-(answer.prompt_tokens + answer.tokens) // size) for answer in working if answer.tokens)
        return max(self.page.kv_used_blocks, seen)

    def has_room(self, sequences: int) -> bool:
        """Whether a request with so many choices may be sent; one with more than fit gets in alone."""
        return not self.crowd.ours or self.crowd.ours + sequences <= self.sequences

    async def run(self) -> None:
        """Looks at the server for ever: whether it is there, what it is, and how much it has to do."""
        while True:
            await self._look()
            self.was_asked = True
            self._changed()
            poll_s = self._options.upstream_poll_s
            if self.is_ready and self._health_path != HEALTH_PATH:
                poll_s *= OTHERWISE_FACTOR
            # Many workers that were started together must not ask together.
            await self._clock.sleep_until(self._clock.now() + poll_s * self._rng.uniform(0.9, 1.1))

    def lost(self, why: str) -> None:
        """It does not answer any more. It is asked again by and by, and gets requests when it answers."""
        if self.is_ready:
            self.is_ready = False
            self.page = Page()
            self.crowd.forget()
            log.warning("upstream_lost", upstream=str(self.address), reason=why)
            self._changed()

    async def ask(self, path: str, body: Mapping[str, object]) -> object:
        """The JSON of its answer to a question about tokens; None where it has none. Raises BadAnswer."""
        trace = SimpleNamespace(reused=False)
        try:
            async with self._session.post(
                self.address.url(path),
                data=orjson.dumps(body),
                headers={"Content-Type": "application/json"},
                timeout=LOOK_TIMEOUT,
                allow_redirects=False,
                trace_request_ctx=trace,
            ) as response:
                answer = await _all(response)
                return _json(answer) if response.status == 200 else None
        except TimeoutError:
            raise unreachable() from None
        except (aiohttp.ClientError, OSError):
            raise unreachable(try_again=trace.reused) from None

    async def _look(self) -> None:
        try:
            if not self.is_ready:
                await self._meet()
            else:
                status, _ = await self._ask(self._health_path)
                if status >= UNHEALTHY_STATUS:
                    raise Unwell(f"status {status}")
                await self._read_page()
            self._slow_looks = 0
        except (Unwell, aiohttp.ClientConnectorError) as error:
            self.lost(_one_line(error))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._slow_looks += 1
            if self._slow_looks >= MAX_SLOW_LOOKS:
                self.lost(_one_line(error))
        except ConfigError as error:
            if self.misfit is None:
                log.error("upstream_unfit", upstream=str(self.address), reason=error.message)
            self.misfit = error
        except Exception:
            # It must not be the last look.
            log.exception("upstream_look_failed", upstream=str(self.address))
            self.lost("it could not be looked at")

    async def _meet(self) -> None:
        """Finds out what the server is. Raises Unwell, ConfigError and what aiohttp raises."""
        status, _ = await self._ask(HEALTH_PATH)
        if status == 503:
            raise Unwell("it is not ready")
        self._health_path = HEALTH_PATH if status == 200 else MODELS_PATH
        status, models = await self._ask(MODELS_PATH)
        if status in (401, 403):
            raise ConfigError(f"--upstream-api-key: {self.address} refuses the key, or wants one")
        if status >= UNHEALTHY_STATUS:
            raise Unwell(f"status {status}")
        listing = Listing((), {}, ())
        if status == 200:
            listing = read_models(_json(models), self._model)
            if listing.names and not listing.card:
                named = ", ".join(listing.names[:20])
                raise ConfigError(f"--model: {self.address} has no model {self._model}; it has {named}")
        page = await self._fetch_page()
        kind = recognise(listing, page)
        props = None
        if kind.name == "llamacpp":
            status, body = await self._ask("/props")
            props = _json(body) if status == 200 else None
        self._became_ready(facts(kind, listing, props), page)

    def _became_ready(self, found: Facts, page: bytes) -> None:
        context_length = self._options.upstream_context_length or found.context_length
        self.facts = replace(found, context_length=context_length)
        self.crowd.lag_s = found.kind.page_lag_s
        # Already here, for the size of the KV cache is on it.
        self._take_page(page)
        self.misfit = None
        self.is_ready = True
        log.info(
            "upstream_ready",
            upstream=str(self.address),
            kind=found.kind.name,
            context_length=context_length,
            has_metrics=self.page.running is not None,
        )

    async def _read_page(self) -> None:
        """Takes in the numbers on its page. One that does not come says nothing of the server's health."""
        if self.facts.kind.page is None or not self._has_page:
            return
        try:
            self._take_page(await self._fetch_page())
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.page = Page()
            self.crowd.forget()

    def _take_page(self, page: bytes) -> None:
        names = self.facts.kind.page
        if names is not None and page:
            self.page = read_page(page, names)
            if self.page.running is not None:
                self.crowd.look(self.page, self.waiting_for_token, self._clock.now())

    async def _fetch_page(self) -> bytes:
        if not self._options.upstream_metrics:
            return b""
        status, page = await self._ask(self._options.upstream_metrics)
        # What is not there now may be there after the server has been restarted with other options.
        self._has_page = status == 200 or status >= UNHEALTHY_STATUS
        return page if status == 200 else b""

    async def _ask(self, path: str) -> tuple[int, bytes]:
        """The status and the body of an answer. Raises what aiohttp raises."""
        async with self._session.get(self.address.url(path), timeout=LOOK_TIMEOUT, allow_redirects=False) as response:
            return response.status, await _all(response)


async def _all(response: aiohttp.ClientResponse) -> bytes:
    """The body; nothing of one that is too long."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            return b""
    return bytes(body)


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
