"""A worker in virtual time: the simulated engine's batch, its step clock and its reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lbcore.simulator.workload import Call
from lbcore.types import (
    NO_TICKET,
    Capacity,
    Epoch,
    LoadReport,
    PrefixReport,
    ServedModel,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)
from worker.engines.sim.batch import BatchState, SimBatch, StepOutcome
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

    def fits(self, call: Call, block_tokens: int) -> bool:
        """Whether the KV cache could hold the call if it were empty; engines refuse those of which that is not so."""
        return call.input_tokens + call.output_tokens <= self.kv_tokens // block_tokens * block_tokens


@dataclass(slots=True, eq=False)
class Flight:
    """A call on its way through the fleet; times in seconds, -1 until they come."""

    number: int
    call: Call
    asked_at: float
    first_at: float = -1.0
    finished_at: float = -1.0
    sent_at: float = -1.0
    """When the scheduler sent it to `worker`; for one that was tried again, the last time."""
    worker: str = ""
    ticket: Ticket = NO_TICKET
    cached_tokens: int = 0
    refused: str = ""
    tried: frozenset[WorkerId] = frozenset()


@dataclass(slots=True, eq=False)
class SimWorker:
    """One epoch of one worker. The replay tells it what time it is.

    Steps that only decode and end nothing are quiet: nobody need hear of them, so they are taken many at once when
    somebody asks (`catch_up`). So are reports that tell of nothing new: what they say is worked out when it is wanted.
    """

    name: str
    engine: EngineSpec
    block_tokens: int
    epoch: int
    reports_prefixes: bool = False
    flights: dict[Ticket, Flight] = field(default_factory=dict)
    is_stepping: bool = False
    coasts: bool = True
    """Whether quiet steps may be taken many at once."""
    watch: int = 0
    """Which of the replay's looks at it is the one that counts."""
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
    _before: BatchState = field(init=False)
    """As it was when the present step began."""
    _outcome: StepOutcome[Ticket] = field(default_factory=StepOutcome)
    """Of the present step."""
    _began: float = 0.0
    _lasts_s: float = 0.0
    _quiet_steps: int = 0
    """How many quiet steps come behind the present one, which is quiet too; 0 where it is not, or where none does."""
    _due_at: float = -1.0
    """When the last report was due, if it was put off; -1 otherwise."""
    _due: LoadReport | None = None
    """It, once the worker has gone on since."""
    _asked: set[int] = field(default_factory=set)
    """Blocks of all prompts that came: by no other names can a worker tell what its cache holds."""
    _found: list[int] = field(default_factory=list)
    """Blocks that the cache held when the first prompt came that has them: the answer to the one before."""
    _prefix_sequence: int = 0

    def __post_init__(self) -> None:
        self.batch = SimBatch(
            step_time=self.engine.step_time,
            kv_blocks=max(1, self.engine.kv_tokens // self.block_tokens),
            block_size=self.block_tokens,
            max_num_seqs=self.engine.max_num_seqs,
            token_budget=self.engine.token_budget,
        )
        self._before = self.batch.state()
        if self.reports_prefixes:
            self.batch.blocks.watch()

    @property
    def spec(self) -> WorkerSpec:
        """What it registers as."""
        engine = self.engine
        capacity = Capacity(
            engine.max_num_seqs, engine.max_queued_requests, engine.kv_tokens // self.block_tokens, self.block_tokens
        )
        name = WorkerId(self.name)
        return WorkerSpec(
            name,
            Epoch(self.epoch),
            f"{self.name}:1",
            (ServedModel(MODEL),),
            capacity=capacity,
            reports_prefixes=self.reports_prefixes,
        )

    @property
    def has_measured(self) -> bool:
        """Whether it knows its own speed; a pool that is not told takes that of the others, as they are just then."""
        return self.batch.meter.prefill_tokens_per_s > 0

    @property
    def ends_at(self) -> float:
        """When the present step ends."""
        return self._began + self._lasts_s

    @property
    def quiet_until(self) -> float:
        """When the first step can end of which there is something to tell: never later than it does, since quiet steps
        do not become shorter."""
        return self._began + (1 + self._quiet_steps) * self._lasts_s

    def catch_up(self, now: float) -> None:
        """Takes the quiet steps that are over by now."""
        if 0 <= self._due_at < now and self._due is None:
            self._advance(self._due_at)
            self._due = self._load(self._due_at)
        self._advance(now)

    def _advance(self, now: float) -> None:
        quiet = self._quiet_steps
        if not quiet or self.ends_at > now:
            return
        taken, at = self.batch.coast(quiet, self.ends_at, now)
        self.busy_s += at - self.ends_at
        self._begin(at)
        self._quiet_steps = max(0, quiet - taken - 1)

    def disturb(self) -> bool:
        """The end of the present step matters after all; whether it did not before."""
        was_quiet = self._quiet_steps > 0
        self._quiet_steps = 0
        return was_quiet

    def receive(self, flight: Flight) -> bool:
        """A request arrives, with the worker caught up; the engine takes it up with its next step, or refuses it at
        once."""
        if not self.engine.fits(flight.call, self.block_tokens):
            self._updates.append(TicketUpdate(flight.ticket, TicketPhase.FINISHED))
            return False
        self.flights[flight.ticket] = flight
        prompt = flight.call.input_tokens
        if self.reports_prefixes:
            new = [one for one in flight.call.blocks[: prompt // self.block_tokens] if one not in self._asked]
            self._asked.update(new)
            self._found += [one for one in new if one in self.batch.blocks]
        self._incoming.append((flight, TicketUpdate(flight.ticket, TicketPhase.ACCEPTED, prompt)))
        return True

    def step(self, now: float) -> bool:
        """Begins a step; False without work."""
        for flight, update in self._incoming:
            call = flight.call
            prompt = call.input_tokens
            self.batch.add(flight.ticket, prompt, call.output_tokens, call.blocks)
            self._updates.append(update)
        self._incoming.clear()
        self.is_stepping = self.batch.has_work
        if self.is_stepping:
            outcome = self._begin(now)
            quiet = self.coasts and not outcome.prefill_tokens and not outcome.finished
            self._quiet_steps = self.batch.quiet_steps() if quiet else 0
        return self.is_stepping

    def _begin(self, now: float) -> StepOutcome[Ticket]:
        self._before = self.batch.state()
        outcome = self._outcome = self.batch.step()
        self._began, self._lasts_s = now, outcome.duration_ms / 1000
        self.busy_s += self._lasts_s
        return outcome

    def end_step(self, now: float) -> list[Flight]:
        """What the present step did has happened: those who are complete."""
        flights, outcome = self.flights, self._outcome
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
        self.catch_up(now)
        self.sequence += 1
        self._due_at = -1.0
        load = self._load(now)
        updates, self._updates = self._updates, []
        if not updates and not self._incoming:
            return replace(load, sequence=self.sequence)
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
            queued_prompt_tokens=load.queued_prompt_tokens + prompt_tokens,
            queued_prompt_pairs=load.queued_prompt_pairs + pairs,
            tokens_in_flight=load.tokens_in_flight + prompt_tokens,
            ticket_updates=tuple(update for update in updates if update.ticket),
        )

    def put_off_report(self, now: float) -> bool:
        """A report is due. If it would tell of nothing but figures it waits until somebody wants it, or the next is
        due, of which nobody can tell the difference; False if it would tell of more."""
        news = self._updates or self._incoming or self.reports_prefixes
        if news or not self.has_measured:
            return False
        self._due_at, self._due = now, None
        return True

    def report_put_off(self) -> tuple[float, LoadReport] | None:
        """The report that was put off last and not asked for yet, and when it was due."""
        due_at = self._due_at
        if due_at < 0:
            return None
        if self._due is None:
            self._advance(due_at)
            self._due = self._load(due_at)
        self._due_at = -1.0
        self.sequence += 1
        return due_at, replace(self._due, sequence=self.sequence)

    def _load(self, now: float) -> LoadReport:
        after = self.batch.state()
        before, left = after, 0.0
        if self.is_stepping:
            before = self._before
            left = max(0.0, 1.0 - (now - self._began) / self._lasts_s) if self._lasts_s else 0.0
        return LoadReport(
            queued_requests=before.queued_requests,
            running_requests=before.running_requests,
            queued_prompt_tokens=round(_between(after.queued_prompt_tokens, before.queued_prompt_tokens, left)),
            queued_prompt_pairs=_between(after.queued_prompt_squares / 2, before.queued_prompt_squares / 2, left),
            tokens_in_flight=before.tokens_in_flight,
            kv_used_blocks=before.kv_used_blocks,
            kv_cached_blocks=before.kv_cached_blocks,
            prefill_tokens_per_s=before.prefill_tokens_per_s,
            attention_ratio=before.attention_ratio,
            step_time_ms=before.step_time_ms,
        )

    def prefix_report(self) -> PrefixReport | None:
        """What changed in the prefix cache since the last one; None when nothing did."""
        stored, removed = self.batch.blocks.changes()
        held, asked = self.batch.blocks, self._asked
        stored = [one for one in dict.fromkeys([*stored, *self._found]) if one in asked and one in held]
        removed = [one for one in removed if one in asked]
        self._found.clear()
        if self._prefix_sequence and not stored and not removed:
            return None
        self._prefix_sequence += 1
        return PrefixReport(self._prefix_sequence, MODEL, self._prefix_sequence == 1, tuple(stored), tuple(removed))


def _between(end: float, begin: float, left: float) -> float:
    return end + (begin - end) * left
