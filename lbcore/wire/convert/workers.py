"""Workers: what they are, what they report, how the scheduler shows them."""

from __future__ import annotations

import re

from lbcore.api.v1 import load_pb2, registry_pb2, worker_pb2
from lbcore.errors import InvalidRequest
from lbcore.types import (
    Capacity,
    EndpointState,
    Epoch,
    LoadReport,
    PrefixReport,
    Role,
    ServedModel,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
    WorkerStatus,
)
from lbcore.wire.convert.numbers import MOST_PAIRS, measure

_ROLES = {
    Role.MIXED: worker_pb2.WORKER_ROLE_MIXED,
    Role.PREFILL: worker_pb2.WORKER_ROLE_PREFILL,
    Role.DECODE: worker_pb2.WORKER_ROLE_DECODE,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}
_ASKED = {worker_pb2.WORKER_ROLE_UNSPECIFIED: Role.MIXED, **_ROLES_BACK}
_STATES = {
    EndpointState.READY: worker_pb2.WORKER_STATE_READY,
    EndpointState.DRAINING: worker_pb2.WORKER_STATE_DRAINING,
    EndpointState.SILENT: worker_pb2.WORKER_STATE_SILENT,
    EndpointState.UNREADY: worker_pb2.WORKER_STATE_UNREADY,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}
_PHASES = {
    TicketPhase.ACCEPTED: load_pb2.TICKET_PHASE_ACCEPTED,
    TicketPhase.FINISHED: load_pb2.TICKET_PHASE_FINISHED,
}
_PHASES_BACK = {number: phase for phase, number in _PHASES.items()}
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[\w.:%-]+\]):([0-9]{1,5})", re.ASCII)


def phase_to_proto(phase: Role) -> worker_pb2.WorkerRole:
    return _ROLES[phase]


def phase_from_proto(number: worker_pb2.WorkerRole) -> Role:
    """A phase that is asked for; unspecified means the whole request.

    Raises:
        InvalidRequest: it is none that this version knows.
    """
    phase = _ASKED.get(number)
    if phase is None:
        raise InvalidRequest("phase is not known", param="phase")
    return phase


def spec_to_proto(spec: WorkerSpec) -> worker_pb2.WorkerSpec:
    return worker_pb2.WorkerSpec(
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        address=spec.address,
        models=[
            worker_pb2.ServedModel(
                name=model.name,
                adapters=model.adapters,
                context_length=model.context_length,
                created_unix_s=model.created_unix_s,
            )
            for model in spec.models
        ],
        role=_ROLES[spec.role],
        engine=spec.engine,
        capacity=worker_pb2.Capacity(
            max_sequence_count=spec.capacity.max_sequences,
            max_queued_request_count=spec.capacity.max_queued_requests,
            kv_block_count=spec.capacity.kv_blocks,
            kv_block_size=spec.capacity.kv_block_size,
            adapter_slot_count=spec.capacity.adapter_slots,
        ),
        labels=dict(spec.labels),
        version=spec.version,
        reports_prefixes=spec.reports_prefixes,
    )


def spec_from_proto(message: worker_pb2.WorkerSpec) -> WorkerSpec:
    """A registration as a value.

    Raises:
        InvalidRequest: a name is missing, or the address is no HOST:PORT.
    """
    address = _ADDRESS.fullmatch(message.address)
    if address is None or not 0 < int(address[1]) < 65536:
        raise InvalidRequest("address is not HOST:PORT", param="address")
    if not message.worker_id:
        raise InvalidRequest("worker_id is empty", param="worker_id")
    if not message.epoch:
        raise InvalidRequest("epoch is 0", param="epoch")
    if not message.models or not all(all((model.name, *model.adapters)) for model in message.models):
        raise InvalidRequest("models is empty or holds a model or an adapter without a name", param="models")
    return WorkerSpec(
        worker_id=WorkerId(message.worker_id),
        epoch=Epoch(message.epoch),
        address=message.address,
        models=tuple(
            ServedModel(
                name=model.name,
                adapters=tuple(model.adapters),
                context_length=model.context_length,
                created_unix_s=model.created_unix_s,
            )
            for model in message.models
        ),
        role=_ROLES_BACK.get(message.role, Role.MIXED),
        engine=message.engine,
        capacity=Capacity(
            max_sequences=max(1, message.capacity.max_sequence_count),
            max_queued_requests=message.capacity.max_queued_request_count,
            kv_blocks=message.capacity.kv_block_count,
            kv_block_size=message.capacity.kv_block_size,
            adapter_slots=message.capacity.adapter_slot_count,
        ),
        labels=dict(message.labels),
        version=message.version,
        reports_prefixes=message.reports_prefixes,
    )


def load_to_proto(report: LoadReport) -> load_pb2.LoadReport:
    message = load_pb2.LoadReport(
        sequence=report.sequence,
        queued_request_count=report.queued_requests,
        running_request_count=report.running_requests,
        queued_prompt_token_count=report.queued_prompt_tokens,
        tokens_in_flight_count=report.tokens_in_flight,
        kv_used_block_count=report.kv_used_blocks,
        kv_cached_block_count=report.kv_cached_blocks,
        prefill_tokens_per_s=report.prefill_tokens_per_s,
        step_time_ms=report.step_time_ms,
        cached_prompt_token_total=report.cached_prompt_token_total,
        prompt_token_total=report.prompt_token_total,
        output_token_total=report.output_token_total,
        unready=report.unready,
        queued_prompt_pair_count=report.queued_prompt_pairs,
        attention_ratio=report.attention_ratio,
    )
    add = message.ticket_updates.add
    for ticket, phase, prompt_tokens, cached_tokens, output_tokens, ttft_ms, duration_ms in report.ticket_updates:
        # Every request makes some: setting the fields that say something costs the least.
        update = add()
        update.ticket = ticket
        update.phase = _PHASES[phase]
        if prompt_tokens:
            update.prompt_token_count = prompt_tokens
        if cached_tokens:
            update.cached_token_count = cached_tokens
        if output_tokens:
            update.output_token_count = output_tokens
        if ttft_ms:
            update.ttft_ms = ttft_ms
        if duration_ms:
            update.duration_ms = duration_ms
    return message


def load_from_proto(message: load_pb2.LoadReport) -> LoadReport:
    """A report as a value; updates with a phase this version does not know are left out."""
    return LoadReport(
        sequence=message.sequence,
        queued_requests=message.queued_request_count,
        running_requests=message.running_request_count,
        queued_prompt_tokens=message.queued_prompt_token_count,
        queued_prompt_pairs=measure(message.queued_prompt_pair_count, MOST_PAIRS),
        tokens_in_flight=message.tokens_in_flight_count,
        kv_used_blocks=message.kv_used_block_count,
        kv_cached_blocks=message.kv_cached_block_count,
        prefill_tokens_per_s=measure(message.prefill_tokens_per_s),
        attention_ratio=measure(message.attention_ratio),
        step_time_ms=measure(message.step_time_ms),
        ticket_updates=tuple(
            TicketUpdate(
                Ticket(update.ticket),
                _PHASES_BACK[update.phase],
                update.prompt_token_count,
                update.cached_token_count,
                update.output_token_count,
                measure(update.ttft_ms),
                measure(update.duration_ms),
            )
            for update in message.ticket_updates
            if update.phase in _PHASES_BACK
        ),
        cached_prompt_token_total=message.cached_prompt_token_total,
        prompt_token_total=message.prompt_token_total,
        output_token_total=message.output_token_total,
        unready=message.unready,
    )


def prefixes_to_proto(report: PrefixReport) -> registry_pb2.PrefixReport:
    return registry_pb2.PrefixReport(
        sequence=report.sequence,
        model=report.model,
        whole=report.whole,
        stored_hashes=report.stored,
        removed_hashes=report.removed,
    )


def prefixes_from_proto(message: registry_pb2.PrefixReport) -> PrefixReport:
    return PrefixReport(
        message.sequence,
        message.model,
        message.whole,
        tuple(message.stored_hashes),
        tuple(message.removed_hashes),
    )


def worker_status_to_proto(status: WorkerStatus) -> worker_pb2.WorkerStatus:
    return worker_pb2.WorkerStatus(
        spec=spec_to_proto(status.spec),
        state=_STATES[status.state],
        load=load_to_proto(status.load),
        report_age_ms=status.report_age_ms,
        credit_request_count=status.credit_requests,
        credit_token_count=status.credit_tokens,
    )


def worker_status_from_proto(message: worker_pb2.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        spec=spec_from_proto(message.spec),
        state=_STATES_BACK.get(message.state, EndpointState.SILENT),
        load=load_from_proto(message.load),
        report_age_ms=measure(message.report_age_ms),
        credit_requests=message.credit_request_count,
        credit_tokens=message.credit_token_count,
    )
