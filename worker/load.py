"""What a worker counts of itself, exactly: requests, tokens and tickets. Pure; the engine adds what it alone knows.

A request is *queued* from `accepted` to `started`, *running* from there to `finished`. Its tokens in flight are its
prompt tokens plus the tokens generated so far; before the engine has counted the prompt, bytes stand in for tokens.
Times are monotonic seconds.
"""

from __future__ import annotations

from lbcore.types import NO_TICKET, LoadReport, Ticket, TicketPhase, TicketUpdate
from worker.engine import EngineLoad

BYTES_PER_TOKEN = 4
"""Stands in until the engine has counted: about right for English text and common tokenizers."""

MAX_NEWS = 10_000
"""Unacknowledged ticket updates kept while no scheduler listens; one that comes back later has aged them out."""


class InFlight:
    """What is known of one request. `LoadTracker` alone changes it."""

    __slots__ = (
        "accepted_at",
        "cached_tokens",
        "counted",
        "output_tokens",
        "prefilled",
        "prompt_tokens",
        "started",
        "started_at",
        "ticket",
        "ttft_ms",
    )

    def __init__(self, ticket: Ticket, prompt_tokens: int, now: float) -> None:
        self.ticket = ticket
        self.accepted_at = now
        self.ttft_ms = 0.0
        """0 while it has no first token."""
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.output_tokens = 0
        self.started = False
        self.started_at = now
        self.counted = False
        """Whether `prompt_tokens` is the engine's count, and not an estimate from bytes."""
        self.prefilled = False
        """Whether its first token, or its first vector, is there."""

    @property
    def squares(self) -> int:
        """Twice the pairs of tokens that attend to one another in what of its prompt is not cached."""
        return self.prompt_tokens**2 - self.cached_tokens**2


class LoadTracker:
    """The load of one worker epoch.

    `accepted`, `started`, `prefilled`, `generated` and `finished` are told in this order for each request, those in the
    middle as far as it comes; `counted` anywhere between the first and the last; `finished` for a request that is not
    in flight does nothing. Every report lists the ticket updates that the scheduler has not acknowledged.
    """

    def __init__(self) -> None:
        self._in_flight: dict[str, InFlight] = {}
        self._queued = 0
        self._queued_prompt_tokens = 0
        self._queued_squares = 0
        self._tokens_in_flight = 0
        self._prompt_total = 0
        self._cached_total = 0
        self._output_total = 0
        self._sequence = 0
        #: Those whose prompt the engine has begun with and not ended, in the order in which it began.
        self._computing: dict[str, InFlight] = {}
        self._computed_at = 0.0
        """When the last prompt was complete."""
        #: The last unacknowledged update of each ticket, oldest first, with the number of the report that first carries
        #: it: numbers never fall along the dict.
        self._news: dict[Ticket, tuple[int, TicketUpdate]] = {}

    @property
    def requests(self) -> int:
        """Accepted, unfinished requests."""
        return len(self._in_flight)

    @property
    def queued_requests(self) -> int:
        """Those of them whose prefill has not begun."""
        return self._queued

    def accepted(self, key: str, ticket: Ticket, body_bytes: int, now: float) -> InFlight:
        """A request was handed to the engine. `key` is unique among requests in flight."""
        estimate = body_bytes // BYTES_PER_TOKEN
        request = self._in_flight[key] = InFlight(ticket, estimate, now)
        self._queued += 1
        self._queued_prompt_tokens += estimate
        self._queued_squares += estimate**2
        self._tokens_in_flight += estimate
        if ticket != NO_TICKET:
            self._tell(ticket, TicketUpdate(ticket, TicketPhase.ACCEPTED))
        return request

    def started(self, key: str, prompt_tokens: int, cached_tokens: int, now: float) -> None:
        """The engine has begun with the prompt; it may have counted it (0 for not yet)."""
        self._queued -= 1
        request = self._computing[key] = self._in_flight[key]
        request.started, request.started_at = True, now
        if prompt_tokens:
            self.counted(key, prompt_tokens, cached_tokens)

    def counted(self, key: str, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine has counted the prompt, or counted it again and better."""
        request = self._in_flight[key]
        more_prompt_tokens = prompt_tokens - request.prompt_tokens
        self._tokens_in_flight += more_prompt_tokens
        squares = request.squares
        if not request.prefilled:
            self._queued_prompt_tokens += more_prompt_tokens - (cached_tokens - request.cached_tokens)
        known = request.prompt_tokens if request.counted else 0
        self._prompt_total += prompt_tokens - known
        self._cached_total += cached_tokens - request.cached_tokens
        request.prompt_tokens, request.cached_tokens, request.counted = prompt_tokens, cached_tokens, True
        if not request.prefilled:
            self._queued_squares += request.squares - squares

    def prefilled(self, key: str, now: float) -> None:
        """The prompt is computed: the first token is there, or the first vector."""
        request = self._in_flight[key]
        request.ttft_ms = (now - request.accepted_at) * 1000
        self._computing.pop(key, None)
        self._computed_at = now
        self._end_prefill(request)

    def generated(self, key: str, tokens: int) -> None:
        """The engine has generated this many more tokens."""
        request = self._in_flight[key]
        request.output_tokens += tokens
        self._tokens_in_flight += tokens
        self._output_total += tokens

    def finished(self, key: str, now: float) -> None:
        """The request has left the engine, for whatever reason."""
        request = self._in_flight.pop(key, None)
        if request is None:
            return
        self._computing.pop(key, None)
        if not request.prefilled:
            self._end_prefill(request)
        if not request.started:
            self._queued -= 1
        output_tokens, ticket = request.output_tokens, request.ticket
        self._tokens_in_flight -= request.prompt_tokens + output_tokens
        if ticket != NO_TICKET:
            prompt_tokens = request.prompt_tokens if request.counted else 0
            duration_ms = (now - request.accepted_at) * 1000
            update = TicketUpdate(
                ticket,
                TicketPhase.FINISHED,
                prompt_tokens,
                request.cached_tokens,
                output_tokens,
                request.ttft_ms,
                duration_ms,
            )
            self._tell(ticket, update)

    def refused(self, ticket: Ticket) -> None:
        """A request was refused before it reached the engine; its dispatch is over."""
        if ticket != NO_TICKET:
            self._tell(ticket, TicketUpdate(ticket, TicketPhase.FINISHED))

    def report(self, engine: EngineLoad, now: float) -> LoadReport:
        """The next report, with every ticket update that is not acknowledged yet."""
        self._sequence += 1
        return self.look(engine, now)

    def look(self, engine: EngineLoad, now: float) -> LoadReport:
        """The load now, for those who only look: no report is counted."""
        # What the engine has computed of prompts that count here until they are complete.
        prefilled_tokens, prefilled_pairs = engine.prefilled_tokens, engine.prefilled_pairs
        if prefilled_tokens is None:
            prefilled_tokens, prefilled_pairs = self._guess_prefilled(engine.prefill_tokens_per_s, now)
        own_prompt_tokens = max(0, self._queued_prompt_tokens - prefilled_tokens)
        return LoadReport(
            sequence=self._sequence,
            queued_requests=self._queued + engine.other_queued_requests,
            running_requests=len(self._in_flight) - self._queued + engine.other_running_requests,
            queued_prompt_tokens=own_prompt_tokens + engine.other_queued_prompt_tokens,
            queued_prompt_pairs=max(0.0, self._queued_squares / 2 - prefilled_pairs),
            tokens_in_flight=self._tokens_in_flight + engine.other_tokens_in_flight,
            kv_used_blocks=engine.kv_used_blocks,
            kv_cached_blocks=engine.kv_cached_blocks,
            prefill_tokens_per_s=engine.prefill_tokens_per_s,
            attention_ratio=engine.attention_ratio,
            step_time_ms=engine.step_time_ms,
            ticket_updates=tuple(update for _, update in self._news.values()),
            cached_prompt_token_total=self._cached_total,
            prompt_token_total=self._prompt_total,
            output_token_total=self._output_total,
            unready=engine.unready,
        )

    def acknowledged(self, sequence: int) -> None:
        """The scheduler has taken in the report with this number, and so everything that older reports said."""
        # Nothing can be heard before it is told.
        sequence = min(sequence, self._sequence)
        told = []
        for ticket, (number, _) in self._news.items():
            if number > sequence:
                break
            told.append(ticket)
        for ticket in told:
            del self._news[ticket]

    def _tell(self, ticket: Ticket, update: TicketUpdate) -> None:
        news = self._news
        # What finished needs no word of having been accepted; deleting first keeps the dict in the order of reports.
        news.pop(ticket, None)
        news[ticket] = (self._sequence + 1, update)
        if len(news) > MAX_NEWS:
            del news[next(iter(news))]

    def _guess_prefilled(self, tokens_per_s: float, now: float) -> tuple[int, float]:
        """What an engine that does not say has probably computed of the prompt it is at, by its speed: tokens and
        pairs. Prompts are computed one after another, so it is that of the one it began with first."""
        request = next(iter(self._computing.values()), None)
        if request is None:
            return 0, 0.0
        seconds = now - max(request.started_at, self._computed_at)
        cached = request.cached_tokens
        tokens = max(0, min(request.prompt_tokens - cached, int(seconds * tokens_per_s)))
        return tokens, ((cached + tokens) ** 2 - cached**2) / 2

    def _end_prefill(self, request: InFlight) -> None:
        request.prefilled = True
        self._queued_prompt_tokens -= request.prompt_tokens - request.cached_tokens
        self._queued_squares -= request.squares
