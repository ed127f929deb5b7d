from lbcore.api.v1 import load_pb2 as _load_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_MIXED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_READY: _ClassVar[WorkerState]
    WORKER_STATE_DRAINING: _ClassVar[WorkerState]
    WORKER_STATE_SILENT: _ClassVar[WorkerState]
    WORKER_STATE_UNREADY: _ClassVar[WorkerState]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_MIXED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_READY: WorkerState
WORKER_STATE_DRAINING: WorkerState
WORKER_STATE_SILENT: WorkerState
WORKER_STATE_UNREADY: WorkerState

class WorkerSpec(_message.Message):
    __slots__ = ("worker_id", "epoch", "address", "models", "role", "engine", "capacity", "labels", "version", "reports_prefixes")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPORTS_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    role: WorkerRole
    engine: str
    capacity: Capacity
    labels: _containers.ScalarMap[str, str]
    version: str
    reports_prefixes: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., engine: _Optional[str] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., version: _Optional[str] = ..., reports_prefixes: bool = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "adapters", "context_length", "created_unix_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    adapters: _containers.RepeatedScalarFieldContainer[str]
    context_length: int
    created_unix_s: int
    def __init__(self, name: _Optional[str] = ..., adapters: _Optional[_Iterable[str]] = ..., context_length: _Optional[int] = ..., created_unix_s: _Optional[int] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("max_sequence_count", "max_queued_request_count", "kv_block_count", "kv_block_size", "adapter_slot_count")
    MAX_SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    max_sequence_count: int
    max_queued_request_count: int
    kv_block_count: int
    kv_block_size: int
    adapter_slot_count: int
    def __init__(self, max_sequence_count: _Optional[int] = ..., max_queued_request_count: _Optional[int] = ..., kv_block_count: _Optional[int] = ..., kv_block_size: _Optional[int] = ..., adapter_slot_count: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("spec", "state", "load", "report_age_ms", "credit_request_count", "credit_token_count")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REPORT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_REQUEST_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    spec: WorkerSpec
    state: WorkerState
    load: _load_pb2.LoadReport
    report_age_ms: float
    credit_request_count: int
    credit_token_count: int
    def __init__(self, spec: _Optional[_Union[WorkerSpec, _Mapping]] = ..., state: _Optional[_Union[WorkerState, str]] = ..., load: _Optional[_Union[_load_pb2.LoadReport, _Mapping]] = ..., report_age_ms: _Optional[float] = ..., credit_request_count: _Optional[int] = ..., credit_token_count: _Optional[int] = ...) -> None: ...
