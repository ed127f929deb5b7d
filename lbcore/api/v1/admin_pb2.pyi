from lbcore.api.v1 import routing_pb2 as _routing_pb2
from lbcore.api.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[_worker_pb2.WorkerStatus]
    def __init__(self, workers: _Optional[_Iterable[_Union[_worker_pb2.WorkerStatus, _Mapping]]] = ...) -> None: ...

class DrainWorkerRequest(_message.Message):
    __slots__ = ("worker_id", "deadline_ms")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    deadline_ms: int
    def __init__(self, worker_id: _Optional[str] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class DrainWorkerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("assignments",)
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    assignments: _containers.RepeatedCompositeFieldContainer[PolicyAssignment]
    def __init__(self, assignments: _Optional[_Iterable[_Union[PolicyAssignment, _Mapping]]] = ...) -> None: ...

class PolicyAssignment(_message.Message):
    __slots__ = ("model", "phase", "policy")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    model: str
    phase: _worker_pb2.WorkerRole
    policy: str
    def __init__(self, model: _Optional[str] = ..., phase: _Optional[_Union[_worker_pb2.WorkerRole, str]] = ..., policy: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("assignment",)
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    assignment: PolicyAssignment
    def __init__(self, assignment: _Optional[_Union[PolicyAssignment, _Mapping]] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainRouteRequest(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: _routing_pb2.RouteRequest
    def __init__(self, route: _Optional[_Union[_routing_pb2.RouteRequest, _Mapping]] = ...) -> None: ...

class ExplainRouteResponse(_message.Message):
    __slots__ = ("worker", "explanation")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    worker: _routing_pb2.WorkerTarget
    explanation: _routing_pb2.Explanation
    def __init__(self, worker: _Optional[_Union[_routing_pb2.WorkerTarget, _Mapping]] = ..., explanation: _Optional[_Union[_routing_pb2.Explanation, _Mapping]] = ...) -> None: ...
