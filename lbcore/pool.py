"""The worker pool as a state machine: events and the time in, effects out. The only memory of routing.

It opens no connection, reads no clock and picks nobody. Its time never runs backwards: no event comes with a `now`
before the last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import takewhile

from lbcore.cost import DEFAULT_ATTENTION_RATIO, DEFAULT_PREFILL_MS_PER_TOKEN, prefill_ms, saved_ms
from lbcore.credit import Booking, Ledger
from lbcore.pool_events import (
    CreditReleased,
    Deregistered,
    Disconnected,
    Dispatched,
    DrainNoticed,
    PoolEffect,
    PoolEvent,
    PrefixesMissed,
    PrefixesReported,
    Registered,
    Released,
    Reported,
    ReportRejected,
    Ticked,
    TicketsExpired,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerReturned,
    WorkerSilent,
    WorkerUnready,
)
from lbcore.pool_records import PRIOR_TOKENS_PER_BYTE, ModelRecord, WorkerRecord
from lbcore.prefix import bytes_of
from lbcore.sessions import Turn, goes_on
from lbcore.speeds import IDLE_S, Speeds
from lbcore.types import (
    NO_HITS,
    NO_LOADING,
    Endpoint,
    Epoch,
    LoadReport,
    PickRequest,
    Role,
    RouteFacts,
    Snapshot,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)


class WorkerPool:
    """All workers, what they said last, what was sent to them since, and what they are believed to hold.

    A worker is in `_workers` under its id, and in `_models` under each of its model names, or in neither.
    """

    def __init__(self, *, lease_ttl_s: float, ticket_ttl_s: float) -> None:
        """A worker is lost `lease_ttl_s` after its last report, credit is taken back `ticket_ttl_s` after dispatch."""
        self._lease_ttl_s = lease_ttl_s
        self._ticket_ttl_s = ticket_ttl_s
        # Soonest lease first: one ttl for all, and whoever renews moves to the end.
        self._workers: OrderedDict[WorkerId, WorkerRecord] = OrderedDict()
        self._models: dict[str, ModelRecord] = {}
        self._ledger = Ledger()
        # `WorkerRecord.trust` of each, as of its last report.
        self._trust_ratios: dict[WorkerId, float] = {}
        self._speeds = Speeds()
        self._now = 0.0

    def handle(self, event: PoolEvent, now: float) -> list[PoolEffect]:
        """Let `event` happen at `now`, in monotonic seconds, and say what follows."""
        self._now = now
        match event:
            case Reported():
                return self._reported(event, now)
            case Dispatched():
                return self._dispatched(event, now)
            case Released():
                return [CreditReleased(self._take_back(self._ledger.release(event.tickets)))]
            case PrefixesReported():
                return self._prefixes_reported(event)
            case Ticked():
                return self._ticked(now)
            case Registered():
                return self._registered(event, now)
            case Disconnected():
                return self._disconnected(event)
            case DrainNoticed():
                return self._drain_noticed(event)
            case Deregistered():
                return self._deregistered(event)

    def snapshot(self, model: str, now: float, phase: Role = Role.MIXED) -> Snapshot:
        """All endpoints that serve `model`, whatever their state and role; none for a model that nobody serves. Who
        waits is counted where the phase is taken."""
        served = self._models.get(model)
        if served is None:
            return Snapshot(now, 0, ())
        return served.snapshot(now, phase)

    def pick_request(self, facts: RouteFacts) -> PickRequest:
        """The facts in tokens, with what each worker is believed to hold of the prompt."""
        served = self._models.get(facts.model)
        tokens_per_byte, hit_tokens, loading = PRIOR_TOKENS_PER_BYTE, NO_HITS, NO_LOADING
        if served is not None:
            tokens_per_byte = served.tokens_per_byte.read(self._now)
            hit_tokens = served.hit_tokens(facts, tokens_per_byte, self._trust_ratios)
            loading = served.loading(self._now)
            if facts.session_id:
                hit_tokens = self._with_session(served, facts, round(facts.prompt_bytes * tokens_per_byte), hit_tokens)
        return PickRequest(
            facts.model,
            round(facts.prompt_bytes * tokens_per_byte),
            hit_tokens,
            facts.max_output_tokens,
            facts.priority,
            facts.session_id,
            facts.tried,
            facts.prefix_hashes[0] if facts.prefix_hashes else 0,
            NO_HITS,
            facts.phase,
            loading,
            facts.ttft_slo_ms,
            facts.tpot_slo_ms,
        )

    def _with_session(
        self, served: ModelRecord, facts: RouteFacts, prompt_tokens: int, hit_tokens: Mapping[WorkerId, float]
    ) -> Mapping[WorkerId, float]:
        """The hits, with what the worker of the session's last turn holds of a prompt that goes on from there."""
        turn = served.sessions.last(facts.session_id)
        if turn is None:
            return hit_tokens
        worker_id = turn.account.worker_id
        worker = self._workers.get(worker_id)
        if worker is None or worker.account is not turn.account:
            return hit_tokens
        held = hit_tokens.get(worker_id, 0.0)
        # What an engine tells is not weighed, and nothing is learned of it: neither is its session.
        trust = 1.0 if worker.spec.reports_prefixes else self._trust_ratios[worker_id]
        by_hash = held / max(trust, 1e-6)
        if not goes_on(turn, prompt_tokens, by_hash if facts.prefix_hashes else None):
            return hit_tokens
        tokens = min(prompt_tokens, turn.tokens) * trust
        return {**hit_tokens, worker_id: tokens} if tokens > held else hit_tokens

    def next_deadline(self) -> float | None:
        """When `Ticked` next has something to do; None while there is nothing to wait for."""
        lease = next((worker.lease_until for worker in self._workers.values()), None)
        ticket = self._ledger.next_expiry()
        return min((deadline for deadline in (lease, ticket) if deadline is not None), default=None)

    def models(self) -> tuple[str, ...]:
        """Every name that a client may ask for, sorted."""
        return tuple(sorted(self._models))

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every worker, ordered by id."""
        return tuple(self._workers[worker_id].endpoint for worker_id in sorted(self._workers))

    def _registered(self, event: Registered, now: float) -> list[PoolEffect]:
        spec = event.spec
        worker = self._workers.get(spec.worker_id)
        if worker is not None and worker.spec.epoch == spec.epoch:
            worker.connection = event.connection
            worker.connected = True
            # What was asked on the stream before may never have arrived.
            worker.told_anew = False
            self._renew(worker, now)
            worker.describe(now)
            return [WorkerReturned(worker.spec)]
        effects: list[PoolEffect] = []
        if worker is not None:
            self._remove(worker)
            effects.append(WorkerLost(worker.spec, "replaced"))
        self._join(WorkerRecord(spec, event.connection, lease_until=now + self._lease_ttl_s, reported_at=now))
        return [*effects, WorkerJoined(spec)]

    def _reported(self, event: Reported, now: float) -> list[PoolEffect]:
        worker = self._known(event.worker_id, event.epoch)
        if worker is None:
            return [ReportRejected(event.worker_id, event.epoch)]
        report = event.report
        if report.sequence <= worker.load.sequence:
            return []
        self._renew(worker, now)
        turned = report.unready != worker.load.unready
        if report.ticket_updates:
            for update in report.ticket_updates:
                self._settle(worker, update, now)
            for served, _ in worker.seats:
                served.bound_prefixes(worker, now)
        self._trust_ratios[event.worker_id] = worker.trust.read(now)
        self._measure(worker, report)
        worker.reported(report, now)
        worker.describe(now)
        return [WorkerUnready(worker.spec, report.unready)] if turned else []

    def _prefixes_reported(self, event: PrefixesReported) -> list[PoolEffect]:
        worker, report = self._known(event.worker_id, event.epoch), event.report
        if worker is None or not worker.spec.reports_prefixes or report.sequence <= worker.prefix_sequence:
            return []
        if not worker.told(report):
            for served, _ in worker.seats:
                served.told.replaced(event.worker_id, ())
        if report.model not in worker.model_names:
            return []
        if report.model in worker.told_models:
            told = self._models[report.model].told
            if report.whole:
                told.replaced(event.worker_id, report.stored)
            else:
                told.removed(event.worker_id, report.removed)
                told.stored(event.worker_id, report.stored)
            return []
        if worker.told_anew:
            return []
        worker.told_anew = True
        return [PrefixesMissed(worker.spec)]

    def _disconnected(self, event: Disconnected) -> list[PoolEffect]:
        worker = self._known(event.worker_id, event.epoch)
        if worker is None or worker.connection != event.connection or not worker.connected:
            return []
        worker.connected = False
        worker.describe(self._now)
        return [WorkerSilent(worker.spec)]

    def _drain_noticed(self, event: DrainNoticed) -> list[PoolEffect]:
        worker = self._known(event.worker_id, event.epoch)
        if worker is None or worker.draining:
            return []
        worker.draining = True
        worker.describe(self._now)
        return [WorkerDraining(worker.spec)]

    def _deregistered(self, event: Deregistered) -> list[PoolEffect]:
        worker = self._known(event.worker_id, event.epoch)
        if worker is None:
            return []
        self._remove(worker)
        return [WorkerLeft(worker.spec)]

    def _dispatched(self, event: Dispatched, now: float) -> list[PoolEffect]:
        worker = self._workers.get(event.worker_id)
        if worker is None:
            return []
        ticket, worker_id, request, facts = event
        hashes = facts.prefix_hashes
        held_ratio = 0.0
        if facts.model in worker.model_names:
            served = self._models[facts.model]
            served.pick_count += 1
            if hashes and worker.spec.reports_prefixes:
                served.told.expect(worker_id, ticket, hashes)
                worker.took_up(ticket, served)
            elif hashes:
                block_bytes = facts.prefix_block_bytes
                held = served.prefixes.add(worker_id, hashes, block_bytes, ticket)
                worker.took_up(ticket, served)
                if held and facts.prompt_bytes:
                    held_ratio = min(1.0, bytes_of(held, block_bytes) / facts.prompt_bytes)
        hit_tokens = request.hit_tokens.get(worker_id, 0.0)
        if facts.session_id and hit_tokens and not worker.spec.reports_prefixes:
            believed = hit_tokens / max(self._trust_ratios[worker_id], 1e-6)
            held_ratio = min(1.0, max(held_ratio, believed / max(1, request.prompt_tokens)))
        uncached_tokens = max(0, round(request.prompt_tokens - hit_tokens))
        work_ms = prefill_ms(worker.token_ms, worker.attention_ratio, request.prompt_tokens, hit_tokens)
        if facts.phase is Role.DECODE:
            # Its prompt is computed elsewhere.
            uncached_tokens, work_ms = 0, 0.0
        loaded_ttft_ms = -1.0
        loading = request.loading.get(worker_id)
        if loading is not None:
            loaded_ttft_ms = worker.endpoint.wait_ms(now) + work_ms + worker.load.step_time_ms
            work_ms += loading.own_ms
        if facts.model in worker.adapter_names:
            worker.adapters.use(facts.model)
        expires_at = now + self._ticket_ttl_s
        self._ledger.book(
            ticket,
            Booking(
                worker.account,
                now,
                expires_at,
                uncached_tokens,
                work_ms,
                facts.model,
                facts.prompt_bytes,
                held_ratio,
                ticket,
                loaded_ttft_ms,
                facts.session_id,
            ),
        )
        worker.given(work_ms, now, saved_ms(request, worker.endpoint))
        worker.describe(now)
        return []

    def _ticked(self, now: float) -> list[PoolEffect]:
        lost = list(takewhile(lambda worker: worker.lease_until <= now, self._workers.values()))
        effects: list[PoolEffect] = []
        for worker in lost:
            self._remove(worker)
            effects.append(WorkerLost(worker.spec, "lease expired"))
        expired = self._take_back(self._ledger.expire(now))
        return [*effects, TicketsExpired(expired)] if expired else effects

    def _known(self, worker_id: WorkerId, epoch: Epoch) -> WorkerRecord | None:
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.spec.epoch == epoch else None

    def _join(self, worker: WorkerRecord) -> None:
        self._workers[worker.spec.worker_id] = worker
        self._trust_ratios[worker.spec.worker_id] = 1.0
        for name in worker.model_names:
            self._models.setdefault(name, ModelRecord(name)).join(worker, self._now)
        peers = {peer for served, _ in worker.seats for peer in served.workers if peer is not worker}
        worker.joins(peers, self._now)
        self._measure(worker, worker.load)
        worker.describe(self._now)

    def _remove(self, worker: WorkerRecord) -> None:
        worker_id = worker.spec.worker_id
        del self._workers[worker_id], self._trust_ratios[worker_id]
        self._speeds.forget(worker_id)
        self._ledger.close(worker.account)
        for name in worker.model_names:
            served = self._models[name]
            served.leave(worker)
            if not served.workers:
                del self._models[name]
                self._speeds.forget_model(name)

    def _renew(self, worker: WorkerRecord, now: float) -> None:
        worker.lease_until = now + self._lease_ttl_s
        self._workers.move_to_end(worker.spec.worker_id)

    def _take_back(self, bookings: Sequence[Booking]) -> int:
        for booking in bookings:
            worker = self._workers[booking.account.worker_id]
            worker.taken_back(booking.prefill_ms, self._now)
            worker.over(booking.ticket, computed=False)
        for worker_id in {booking.account.worker_id for booking in bookings}:
            self._workers[worker_id].describe(self._now)
        return len(bookings)

    def _settle(self, worker: WorkerRecord, update: TicketUpdate, now: float) -> None:
        """News of one ticket: its credit is taken back if it still stands, and what it says teaches."""
        if update.duration_ms > 0 and update.output_tokens:
            worker.answered(update)
        if update.phase is TicketPhase.ACCEPTED:
            booking = self._ledger.accept(update.ticket, worker.account)
        else:
            booking = self._ledger.finish(update.ticket, worker.account)
            # Without output the prompt may never have been computed.
            worker.over(update.ticket, computed=update.output_tokens > 0)
        if booking is None:
            return
        if update.phase is TicketPhase.ACCEPTED:
            worker.heard_after(now - booking.at)
        served = self._models.get(booking.model)
        if update.prompt_tokens and booking.prompt_bytes and served is not None:
            served.learn_length(update.prompt_tokens, booking.prompt_bytes, now)
        if update.phase is TicketPhase.ACCEPTED:
            if not update.prompt_tokens:
                self._ledger.keep(update.ticket, booking)
            elif booking.held_ratio or booking.loaded_ttft_ms >= 0 or booking.session_id:
                self._ledger.keep(update.ticket, booking._replace(prompt_bytes=0))
            return
        if booking.loaded_ttft_ms >= 0 and update.ttft_ms:
            worker.adapters.took(update.ttft_ms - booking.loaded_ttft_ms, now)
        if not update.prompt_tokens or not update.output_tokens:
            return
        if booking.session_id and served is not None:
            turn = Turn(worker.account, update.prompt_tokens, update.prompt_tokens + update.output_tokens)
            served.sessions.answered(booking.session_id, turn)
        if booking.held_ratio:
            # Without output the prompt may never have been computed, and 0 cached tokens mean nothing.
            cached_ratio = update.cached_tokens / update.prompt_tokens
            worker.trust.observe(min(1.0, cached_ratio / booking.held_ratio), now)

    def _measure(self, worker: WorkerRecord, report: LoadReport) -> None:
        """Take the worker's own prefill speed if it has one, else that of its peers in the middle, else the default."""
        ratio = report.attention_ratio
        worker.attention_ratio = ratio if 0.0 < ratio < 1.0 else DEFAULT_ATTENTION_RATIO
        speeds, worker_id = self._speeds, worker.spec.worker_id
        speeds.measured(worker_id, report.prefill_tokens_per_s)
        own = speeds.of(worker_id)
        if report.queued_requests or report.running_requests or worker.account.open:
            worker.busy_at = self._now
        idle_s = self._now - worker.busy_at
        if own is None:
            names = [name for name in worker.model_names if name in self._models]
            typical = speeds.middle(peer for name in names for peer in self._models[name].worker_ids)
            worker.is_measured = typical is not None
            worker.token_ms = typical or DEFAULT_PREFILL_MS_PER_TOKEN
            return
        worker.is_measured = True
        if idle_s > IDLE_S and worker.spec.models:
            name = worker.spec.models[0].name
            worker.token_ms = speeds.rested(worker_id, idle_s, name, self._models[name].worker_ids, self._now)
        else:
            worker.token_ms = own
