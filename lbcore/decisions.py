"""Decisions as lines of a log, and from such lines the same decisions again. Pure: no file, no clock, no chance.

A line says everything that a pick was made of. Of the workers it describes those that are new or have changed since the
line before it for the same model; now and then, and first of all, it describes all of them (`"whole": true`), and a
reader can begin there. What cannot matter to a pick is not in it: tickets, and where workers can be reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from random import Random
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from lbcore.pick import pick
from lbcore.policies.base import Policy
from lbcore.policies.registry import build_policy
from lbcore.types import Decision, Endpoint, PickRequest, RefusalReason, Refused, Snapshot, WorkerId, WorkerSpec

R = TypeVar("R")

WHOLE_EVERY = 1000
"""Lines for one model after which all workers are described again: a log cut in pieces loses fewer than so many."""

_LEFT_OUT = frozenset({"terms", "spec", "endpoints", "ticket_updates", "address", "epoch", "models", "version"})
"""Fields that are told elsewhere in a line, or that no policy reads."""

_OUTCOME = ("picked", "fallbacks", "costs", "predicted_ttft_ms", "refused")


class Decided(NamedTuple):
    """One pick with all that it was made of, and what became of it."""

    request_id: str
    request: PickRequest
    snapshot: Snapshot
    policy: Policy
    chance: int
    """The seed of the chance that it was made with."""
    decision: Decision
    waited_ms: float = 0.0
    """How long the request had waited in the scheduler."""
    refused: RefusalReason | None = None
    """Why it was refused in spite of the pick: it would have had to wait, and might not."""


class Told(NamedTuple):
    """A line as it was read: what to pick from, with what chance, and what came out then."""

    request_id: str
    request: PickRequest
    snapshot: Snapshot
    policy: str
    """As `build_policy` reads it."""
    chance: int
    outcome: Mapping[str, Any]
    """As `outcome` has it."""


class Recorder:
    """Makes the lines of one log. It remembers of each model what the last line said of its workers."""

    def __init__(self) -> None:
        self._models: dict[str, _Memory] = {}

    def line(self, decided: Decided) -> dict[str, Any]:
        """The next line, as JSON has it."""
        request, snapshot, decision = decided.request, decided.snapshot, decided.decision
        line: dict[str, Any] = {
            "request_id": decided.request_id,
            "policy": decided.policy.name,
            "chance": decided.chance,
            "request": _plain(request),
            "snapshot": _plain(snapshot),
        }
        if decided.waited_ms:
            line["waited_ms"] = decided.waited_ms
        if snapshot.endpoints:
            memory = self._models.get(request.model)
            if memory is None or memory.lines >= WHOLE_EVERY:
                memory = self._models[request.model] = _Memory()
                line["whole"] = True
            memory.tell(snapshot.endpoints, line)
        else:
            # Names that nobody serves are anybody's, and must not pile up here.
            self._models.pop(request.model, None)
            line["whole"] = True
        line |= outcome(decision)
        if decided.refused is not None:
            line["answer"] = decided.refused.value
        return line


class _Memory:
    """What was said of the workers of one model."""

    __slots__ = ("endpoints", "last", "lines", "specs")

    def __init__(self) -> None:
        self.lines = 0
        self.last: Sequence[Endpoint] = ()
        self.endpoints: dict[WorkerId, Endpoint] = {}
        self.specs: dict[WorkerId, WorkerSpec] = {}

    def tell(self, endpoints: Sequence[Endpoint], line: dict[str, Any]) -> None:
        """Writes what is not known yet."""
        self.lines += 1
        if endpoints is self.last:
            return
        self.last = endpoints
        told, specs = self.endpoints, self.specs
        # An endpoint never changes, it is replaced.
        changed = [one for one in endpoints if told.get(one.spec.worker_id) is not one]
        new = {one.spec.worker_id: one.spec for one in changed if specs.get(one.spec.worker_id) is not one.spec}
        told.update((one.spec.worker_id, one) for one in changed)
        if new:
            specs.update(new)
            line["specs"] = [_plain(spec) for spec in new.values()]
        if changed:
            line["workers"] = {one.spec.worker_id: _plain(one) for one in changed}
        if len(told) > len(endpoints):
            here = {one.spec.worker_id for one in endpoints}
            gone = line["gone"] = [worker_id for worker_id in told if worker_id not in here]
            for worker_id in gone:
                del told[worker_id], specs[worker_id]


class Reader:
    """Reads the lines of one log in their order, from any whole one on."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[dict[str, WorkerSpec], dict[str, Endpoint]]] = {}

    def read(self, line: Mapping[str, Any]) -> Told | None:
        """What it says; None for a line before the first whole one of its model.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is no such line.
        """
        request = _read(PickRequest, line["request"])
        if line.get("whole"):
            self._models[request.model] = ({}, {})
        known = self._models.get(request.model)
        if known is None:
            return None
        specs, workers = known
        for spec in line.get("specs", ()):
            specs[spec["worker_id"]] = _read(WorkerSpec, {"epoch": 0, "address": "", "models": (), **spec})
        for worker_id in line.get("gone", ()):
            del specs[worker_id], workers[worker_id]
        for worker_id, described in line.get("workers", {}).items():
            workers[worker_id] = _read(Endpoint, described, spec=specs[worker_id])
        endpoints = tuple(sorted(workers.values(), key=attrgetter("worker_id")))
        return Told(
            line["request_id"],
            request,
            _read(Snapshot, line["snapshot"], endpoints=endpoints),
            line["policy"],
            line["chance"],
            {name: line[name] for name in _OUTCOME if name in line},
        )


def record(decided: Decided) -> dict[str, Any]:
    """A line that stands for itself: all workers are described in it."""
    return Recorder().line(decided)


def rerun(told: Mapping[str, Any] | Told, policy: Policy | None = None) -> Decision:
    """The decision of a line once more, or what another policy would have made of it.

    Raises:
        ValueError: the line does not stand for itself; or as `Reader.read` does.
        ConfigError: there is no such policy.
    """
    if not isinstance(told, Told):
        read = Reader().read(told)
        if read is None:
            raise ValueError("the line describes only workers that have changed since the one before it")
        told = read
    return pick(told.request, told.snapshot, policy or _policy(told.policy), Random(told.chance))


def outcome(decision: Decision) -> dict[str, Any]:
    """What a line says of a decision: equal for equal decisions."""
    if isinstance(decision, Refused):
        return {"refused": decision.reason.value}
    return {
        "picked": decision.endpoint.spec.worker_id,
        "fallbacks": [other.spec.worker_id for other in decision.fallbacks],
        "costs": [0.0 - score for _, score in decision.scores],
        "predicted_ttft_ms": decision.predicted_ttft_ms,
    }


@cache
def _policy(text: str) -> Policy:
    return build_policy(text)


@cache
def _shape(record: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a record that are told, each with its default."""
    if is_dataclass(record):
        shape = [
            (item.name, item.default if item.default_factory is MISSING else item.default_factory())
            for item in fields(record)
            if item.init
        ]
    else:
        shape = [(name, record._field_defaults.get(name, MISSING)) for name in record._fields]
    return tuple((name, default) for name, default in shape if name not in _LEFT_OUT)


@cache
def _is_record(kind: Any) -> bool:
    return is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _plain(value: Any) -> Any:
    """As JSON has it. Of records the fields that are not what they are by default."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if _is_record(kind):
        return {
            name: own if type(own) in _PLAIN else _plain(own)
            for name, default in _shape(kind)
            if (own := getattr(value, name)) is not default and own != default
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: item if type(item) in _PLAIN else _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(map(_plain, value))
    return [_plain(item) for item in value]


_PLAIN = frozenset({int, float, str, bool})


@cache
def _hints(record: Any) -> Mapping[str, Any]:
    return get_type_hints(record)


def _read(record: type[R], plain: Mapping[str, Any], **told_elsewhere: Any) -> R:
    kind: Any = record
    hints = _hints(kind)
    return record(**{name: _value(hints[name], item) for name, item in plain.items()}, **told_elsewhere)


def _value(kind: Any, plain: Any) -> Any:
    origin = get_origin(kind)
    if origin is Mapping:
        inner = get_args(kind)[1]
        return {key: _value(inner, item) for key, item in plain.items()}
    if origin is tuple or origin is frozenset:
        inner = get_args(kind)[0]
        return origin(_value(inner, item) for item in plain)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(plain)
    if isinstance(kind, type) and _is_record(kind):
        return _read(kind, plain)
    return plain
