"""What a refusal is to whoever asked: which error, and when to come back."""

from __future__ import annotations

import pytest

from lbcore.errors import (
    DeadlineExceeded,
    LoadBalancerError,
    ModelNotFound,
    NoReadyWorker,
    RateLimited,
    RetryLater,
    Saturated,
)
from lbcore.scheduler.refusals import MAX_RETRY_S, MIN_RETRY_S, error_of
from lbcore.types import RefusalReason, Refused


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (RefusalReason.MODEL_NOT_FOUND, NoReadyWorker),
        (RefusalReason.NO_READY_WORKER, NoReadyWorker),
        (RefusalReason.SATURATED, Saturated),
        (RefusalReason.QUEUE_FULL, Saturated),
        (RefusalReason.TENANT_LIMIT, RateLimited),
        (RefusalReason.DEADLINE, DeadlineExceeded),
    ],
)
def test_each_refusal_has_its_error_which_names_the_model(reason: RefusalReason, kind: type[LoadBalancerError]) -> None:
    error = error_of(Refused(reason), "m1", is_known=True)
    assert type(error) is kind
    assert "`m1`" in error.message


def test_a_model_that_nobody_ever_served_is_not_there() -> None:
    assert type(error_of(Refused(RefusalReason.MODEL_NOT_FOUND), "m1", is_known=False)) is ModelNotFound


def test_full_workers_and_a_full_queue_are_told_apart() -> None:
    full, queue = (
        error_of(Refused(reason), "m1", True) for reason in (RefusalReason.SATURATED, RefusalReason.QUEUE_FULL)
    )
    assert full.message != queue.message


@pytest.mark.parametrize(
    ("expected_s", "told_s"),
    [
        (0.0, MIN_RETRY_S),
        (0.01, MIN_RETRY_S),
        (7.5, 7.5),
        (60.0, 60.0),
        (1e9, MAX_RETRY_S),
        (float("inf"), MAX_RETRY_S),
    ],
)
@pytest.mark.parametrize("reason", [RefusalReason.QUEUE_FULL, RefusalReason.TENANT_LIMIT])
def test_when_to_come_back_is_what_is_expected_within_bounds(
    reason: RefusalReason, expected_s: float, told_s: float
) -> None:
    error = error_of(Refused(reason, expected_s), "m1", is_known=True)
    assert isinstance(error, RetryLater)
    assert error.retry_after_s == told_s
