from lbcore.api.v1 import failure_pb2 as _failure_pb2
from lbcore.api.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt_byte_count", "prefix_hashes", "prefix_block_byte_count", "max_output_token_count", "timeout_ms", "priority", "session_id", "tried_worker_ids", "abandoned_tickets", "tenant", "ttft_slo_ms", "tpot_slo_ms", "phase", "explain")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASHES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BLOCK_BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TRIED_WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_TICKETS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_SLO_MS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_byte_count: int
    prefix_hashes: _containers.RepeatedScalarFieldContainer[int]
    prefix_block_byte_count: int
    max_output_token_count: int
    timeout_ms: int
    priority: int
    session_id: str
    tried_worker_ids: _containers.RepeatedScalarFieldContainer[str]
    abandoned_tickets: _containers.RepeatedScalarFieldContainer[int]
    tenant: str
    ttft_slo_ms: int
    tpot_slo_ms: int
    phase: _worker_pb2.WorkerRole
    explain: bool
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_byte_count: _Optional[int] = ..., prefix_hashes: _Optional[_Iterable[int]] = ..., prefix_block_byte_count: _Optional[int] = ..., max_output_token_count: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., priority: _Optional[int] = ..., session_id: _Optional[str] = ..., tried_worker_ids: _Optional[_Iterable[str]] = ..., abandoned_tickets: _Optional[_Iterable[int]] = ..., tenant: _Optional[str] = ..., ttft_slo_ms: _Optional[int] = ..., tpot_slo_ms: _Optional[int] = ..., phase: _Optional[_Union[_worker_pb2.WorkerRole, str]] = ..., explain: bool = ...) -> None: ...

class WorkerTarget(_message.Message):
    __slots__ = ("worker_id", "epoch", "address", "wants_prefix_hashes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WANTS_PREFIX_HASHES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    wants_prefix_hashes: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., wants_prefix_hashes: bool = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("worker", "ticket", "fallbacks", "predicted_ttft_ms", "explanation")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerTarget
    ticket: int
    fallbacks: _containers.RepeatedCompositeFieldContainer[WorkerTarget]
    predicted_ttft_ms: float
    explanation: Explanation
    def __init__(self, worker: _Optional[_Union[WorkerTarget, _Mapping]] = ..., ticket: _Optional[int] = ..., fallbacks: _Optional[_Iterable[_Union[WorkerTarget, _Mapping]]] = ..., predicted_ttft_ms: _Optional[float] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("policy", "prompt_token_count", "waited_ms", "reason", "candidates")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    policy: str
    prompt_token_count: int
    waited_ms: float
    reason: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, policy: _Optional[str] = ..., prompt_token_count: _Optional[int] = ..., waited_ms: _Optional[float] = ..., reason: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("worker_id", "cost", "cached_token_count", "terms", "excluded_by")
    class TermsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_BY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    cost: float
    cached_token_count: float
    terms: _containers.ScalarMap[str, float]
    excluded_by: str
    def __init__(self, worker_id: _Optional[str] = ..., cost: _Optional[float] = ..., cached_token_count: _Optional[float] = ..., terms: _Optional[_Mapping[str, float]] = ..., excluded_by: _Optional[str] = ...) -> None: ...

class RouteStreamRequest(_message.Message):
    __slots__ = ("calls", "abandoned_tickets", "withdrawn_call_ids")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_TICKETS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_CALL_IDS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[RouteCall]
    abandoned_tickets: _containers.RepeatedScalarFieldContainer[int]
    withdrawn_call_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, calls: _Optional[_Iterable[_Union[RouteCall, _Mapping]]] = ..., abandoned_tickets: _Optional[_Iterable[int]] = ..., withdrawn_call_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RouteCall(_message.Message):
    __slots__ = ("call_id", "request")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    request: RouteRequest
    def __init__(self, call_id: _Optional[int] = ..., request: _Optional[_Union[RouteRequest, _Mapping]] = ...) -> None: ...

class RouteStreamResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RouteResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RouteResult, _Mapping]]] = ...) -> None: ...

class RouteResult(_message.Message):
    __slots__ = ("call_id", "response", "failure", "waiting")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    response: RouteResponse
    failure: _failure_pb2.Failure
    waiting: RouteWaiting
    def __init__(self, call_id: _Optional[int] = ..., response: _Optional[_Union[RouteResponse, _Mapping]] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ..., waiting: _Optional[_Union[RouteWaiting, _Mapping]] = ...) -> None: ...

class RouteWaiting(_message.Message):
    __slots__ = ("waiting_request_count",)
    WAITING_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    waiting_request_count: int
    def __init__(self, waiting_request_count: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("tickets",)
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    tickets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tickets: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("released_count",)
    RELEASED_COUNT_FIELD_NUMBER: _ClassVar[int]
    released_count: int
    def __init__(self, released_count: _Optional[int] = ...) -> None: ...

class WatchWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchWorkersResponse(_message.Message):
    __slots__ = ("snapshot", "workers", "removed_worker_ids")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    snapshot: bool
    workers: _containers.RepeatedCompositeFieldContainer[_worker_pb2.WorkerStatus]
    removed_worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, snapshot: bool = ..., workers: _Optional[_Iterable[_Union[_worker_pb2.WorkerStatus, _Mapping]]] = ..., removed_worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...
