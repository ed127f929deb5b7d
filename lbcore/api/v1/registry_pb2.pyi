from lbcore.api.v1 import load_pb2 as _load_pb2
from lbcore.api.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("registration", "load_report", "drain_notice", "deregistration", "prefix_report")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_REPORT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_NOTICE_FIELD_NUMBER: _ClassVar[int]
    DEREGISTRATION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_REPORT_FIELD_NUMBER: _ClassVar[int]
    registration: _worker_pb2.WorkerSpec
    load_report: _load_pb2.LoadReport
    drain_notice: DrainNotice
    deregistration: Deregistration
    prefix_report: PrefixReport
    def __init__(self, registration: _Optional[_Union[_worker_pb2.WorkerSpec, _Mapping]] = ..., load_report: _Optional[_Union[_load_pb2.LoadReport, _Mapping]] = ..., drain_notice: _Optional[_Union[DrainNotice, _Mapping]] = ..., deregistration: _Optional[_Union[Deregistration, _Mapping]] = ..., prefix_report: _Optional[_Union[PrefixReport, _Mapping]] = ...) -> None: ...

class PrefixReport(_message.Message):
    __slots__ = ("sequence", "model", "whole", "stored_hashes", "removed_hashes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    STORED_HASHES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_HASHES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    model: str
    whole: bool
    stored_hashes: _containers.RepeatedScalarFieldContainer[int]
    removed_hashes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., model: _Optional[str] = ..., whole: bool = ..., stored_hashes: _Optional[_Iterable[int]] = ..., removed_hashes: _Optional[_Iterable[int]] = ...) -> None: ...

class DrainNotice(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Deregistration(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("lease", "report_ack", "command")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REPORT_ACK_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    report_ack: ReportAck
    command: Command
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., report_ack: _Optional[_Union[ReportAck, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("ttl_ms", "report_interval_ms", "scheduler_epoch")
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ttl_ms: int
    report_interval_ms: int
    scheduler_epoch: int
    def __init__(self, ttl_ms: _Optional[int] = ..., report_interval_ms: _Optional[int] = ..., scheduler_epoch: _Optional[int] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ("sequence", "report_pause_ms")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPORT_PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    report_pause_ms: int
    def __init__(self, sequence: _Optional[int] = ..., report_pause_ms: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("drain", "abort", "resend_prefixes")
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    RESEND_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    drain: DrainCommand
    abort: AbortCommand
    resend_prefixes: ResendPrefixesCommand
    def __init__(self, drain: _Optional[_Union[DrainCommand, _Mapping]] = ..., abort: _Optional[_Union[AbortCommand, _Mapping]] = ..., resend_prefixes: _Optional[_Union[ResendPrefixesCommand, _Mapping]] = ...) -> None: ...

class ResendPrefixesCommand(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainCommand(_message.Message):
    __slots__ = ("deadline_ms",)
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    deadline_ms: int
    def __init__(self, deadline_ms: _Optional[int] = ...) -> None: ...

class AbortCommand(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...
