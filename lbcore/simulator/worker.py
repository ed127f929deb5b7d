"""A worker in virtual time: the simulated engine's batch, its step clock and its reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lbcore.simulator.workload import Call
from lbcore.types import (
    NO_TICKET,
    Capacity,
    Epoch,
    LoadReport,
    ServedModel,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)
from worker.engines.sim.batch import SimBatch, StepOutcome
from worker.engines.sim.step_time import LLAMA_70B_H100, StepTime

MODEL = "model"
"""What every simulated worker serves."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What kind of engine a simulated worker hosts."""

    step_time: StepTime = LLAMA_70B_H100
    kv_tokens: int = 1_000_000
    max_num_seqs: int = 256
    token_budget: int = 8192
    max_queued_requests: int = 1024


@dataclass(slots=True, eq=False)
class Flight:
    """A call on its way through the fleet; times in seconds, -1 until they come."""

    number: int
    call: Call
    asked_at: float
    first_at: float = -1.0
    finished_at: float = -1.0
    worker: str = ""
    ticket: Ticket = NO_TICKET
    cached_tokens: int = 0
    refused: str = ""
    tried: frozenset[WorkerId] = frozenset()


@dataclass(slots=True, eq=False)
class SimWorker:
    """One epoch of one worker. The replay tells it what time it is."""

    name: str
    engine: EngineSpec
    block_tokens: int
    epoch: int
    flights: dict[Ticket, Flight] = field(default_factory=dict)
    is_stepping: bool = False
    reports: bool = False
    """Whether its next report is on the replay's list."""
    reported_at: float = 0.0
    sequence: int = 0
    prefilled_tokens: int = 0
    """New prompt tokens that it computed."""
    busy_s: float = 0.0
    batch: SimBatch[Ticket] = field(init=False)
    _incoming: list[tuple[Flight, TicketUpdate]] = field(default_factory=list)
    _updates: list[TicketUpdate] = field(default_factory=list)
    _load: LoadReport = field(default_factory=LoadReport)
    _began: float = 0.0
    _lasts_s: float = 0.0

    def __post_init__(self) -> None:
        self.batch = SimBatch(
            step_time=self.engine.step_time,
            kv_blocks=max(1, self.engine.kv_tokens // self.block_tokens),
            block_size=self.block_tokens,
            max_num_seqs=self.engine.max_num_seqs,
            token_budget=self.engine.token_budget,
        )

    @property
    def spec(self) -> WorkerSpec:
        """What it registers as."""
        engine = self.engine
        capacity = Capacity(
            engine.max_num_seqs, engine.max_queued_requests, engine.kv_tokens // self.block_tokens, self.block_tokens
        )
        name = WorkerId(self.name)
        return WorkerSpec(name, Epoch(self.epoch), f"{self.name}:1", (ServedModel(MODEL),), capacity=capacity)

    def receive(self, flight: Flight) -> None:
        """A request arrives; the engine takes it up with its next step."""
        self.flights[flight.ticket] = flight
        prompt = flight.call.input_tokens
        self._incoming.append((flight, TicketUpdate(flight.ticket, TicketPhase.ACCEPTED, prompt)))

    def step(self, now: float) -> StepOutcome[Ticket] | None:
        """Begins a step and says what it will have done at its end; None without work."""
        for flight, update in self._incoming:
            call = flight.call
            prompt = call.input_tokens
            self.batch.add(flight.ticket, prompt, call.output_tokens, call.blocks)
            self._updates.append(update)
        self._incoming.clear()
        self._load = self.batch.load()
        if not self.batch.has_work:
            self.is_stepping = False
            return None
        self.is_stepping = True
        outcome = self.batch.step()
        self._began, self._lasts_s = now, outcome.duration_ms / 1000
        self.busy_s += outcome.duration_ms / 1000
        return outcome

    def end_step(self, outcome: StepOutcome[Ticket], now: float) -> list[Flight]:
        """What the step did has happened: those who are complete."""
        flights = self.flights
        self.prefilled_tokens += outcome.prefill_tokens
        for ticket, cached in outcome.started:
            if ticket in flights:
                flights[ticket].cached_tokens = cached
        for ticket in outcome.first:
            if ticket in flights and flights[ticket].first_at < 0:
                flights[ticket].first_at = now
        complete = []
        for ticket in outcome.finished:
            flight = flights.pop(ticket, None)
            if flight is not None:
                call = flight.call
                flight.finished_at = now
                prompt = call.input_tokens
                self._updates.append(
                    TicketUpdate(
                        ticket,
                        TicketPhase.FINISHED,
                        prompt,
                        flight.cached_tokens,
                        call.output_tokens,
                        (flight.first_at - flight.asked_at) * 1000,
                        (now - flight.asked_at) * 1000,
                    )
                )
                complete.append(flight)
        return complete

    def report(self, now: float) -> LoadReport:
        """As of the beginning of the present step, with what has come since; of the prompts that the step computes as
        much is left as the time says."""
        self.sequence += 1
        load = after = self.batch.load()
        left = 0.0
        if self.is_stepping:
            load = self._load
            left = max(0.0, 1.0 - (now - self._began) / self._lasts_s) if self._lasts_s else 0.0
        updates, self._updates = self._updates, []
        queued = prompt_tokens = 0
        pairs = 0.0
        for flight, update in self._incoming:
            queued += 1
            tokens = flight.call.input_tokens
            prompt_tokens += tokens
            pairs += tokens * tokens / 2
            updates.append(update)
        # Said once: what is told of here is not told of again when the engine takes it up.
        self._incoming = [(flight, update._replace(ticket=NO_TICKET)) for flight, update in self._incoming]
        return replace(
            load,
            sequence=self.sequence,
            queued_requests=load.queued_requests + queued,
            queued_prompt_tokens=prompt_tokens
            + round(_between(after.queued_prompt_tokens, load.queued_prompt_tokens, left)),
            queued_prompt_pairs=pairs + _between(after.queued_prompt_pairs, load.queued_prompt_pairs, left),
            tokens_in_flight=load.tokens_in_flight + prompt_tokens,
            ticket_updates=tuple(update for update in updates if update.ticket),
        )


def _between(end: float, begin: float, left: float) -> float:
    return end + (begin - end) * left
