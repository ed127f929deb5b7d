from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TicketPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TICKET_PHASE_UNSPECIFIED: _ClassVar[TicketPhase]
    TICKET_PHASE_ACCEPTED: _ClassVar[TicketPhase]
    TICKET_PHASE_FINISHED: _ClassVar[TicketPhase]
TICKET_PHASE_UNSPECIFIED: TicketPhase
TICKET_PHASE_ACCEPTED: TicketPhase
TICKET_PHASE_FINISHED: TicketPhase

class LoadReport(_message.Message):
    __slots__ = ("sequence", "queued_request_count", "running_request_count", "queued_prompt_token_count", "tokens_in_flight_count", "kv_used_block_count", "kv_cached_block_count", "prefill_tokens_per_s", "step_time_ms", "ticket_updates", "cached_prompt_token_total", "prompt_token_total", "output_token_total", "unready", "queued_prompt_pair_count", "attention_ratio")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PROMPT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_IN_FLIGHT_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_USED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_CACHED_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    TICKET_UPDATES_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKEN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNREADY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PROMPT_PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_RATIO_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    queued_request_count: int
    running_request_count: int
    queued_prompt_token_count: int
    tokens_in_flight_count: int
    kv_used_block_count: int
    kv_cached_block_count: int
    prefill_tokens_per_s: float
    step_time_ms: float
    ticket_updates: _containers.RepeatedCompositeFieldContainer[TicketUpdate]
    cached_prompt_token_total: int
    prompt_token_total: int
    output_token_total: int
    unready: bool
    queued_prompt_pair_count: float
    attention_ratio: float
    def __init__(self, sequence: _Optional[int] = ..., queued_request_count: _Optional[int] = ..., running_request_count: _Optional[int] = ..., queued_prompt_token_count: _Optional[int] = ..., tokens_in_flight_count: _Optional[int] = ..., kv_used_block_count: _Optional[int] = ..., kv_cached_block_count: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., step_time_ms: _Optional[float] = ..., ticket_updates: _Optional[_Iterable[_Union[TicketUpdate, _Mapping]]] = ..., cached_prompt_token_total: _Optional[int] = ..., prompt_token_total: _Optional[int] = ..., output_token_total: _Optional[int] = ..., unready: bool = ..., queued_prompt_pair_count: _Optional[float] = ..., attention_ratio: _Optional[float] = ...) -> None: ...

class TicketUpdate(_message.Message):
    __slots__ = ("ticket", "phase", "prompt_token_count", "cached_token_count", "output_token_count", "ttft_ms", "duration_ms")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    phase: TicketPhase
    prompt_token_count: int
    cached_token_count: int
    output_token_count: int
    ttft_ms: float
    duration_ms: float
    def __init__(self, ticket: _Optional[int] = ..., phase: _Optional[_Union[TicketPhase, str]] = ..., prompt_token_count: _Optional[int] = ..., cached_token_count: _Optional[int] = ..., output_token_count: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., duration_ms: _Optional[float] = ...) -> None: ...
