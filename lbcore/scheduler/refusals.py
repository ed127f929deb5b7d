"""What the router's refusals are to whoever asked: errors with a message and a time to come back."""

from __future__ import annotations

from lbcore.errors import DeadlineExceeded, LoadBalancerError, ModelNotFound, NoReadyWorker, RateLimited, Saturated
from lbcore.types import RefusalReason, Refused

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
"""How long a queue will last is a guess: past a minute it says no more than that it is long."""


def error_of(refused: Refused, model: str, is_known: bool) -> LoadBalancerError:
    """The error to tell. `is_known` is whether anybody ever served the model."""
    retry_s = refused.retry_after_s
    retry_s = min(max(retry_s, MIN_RETRY_S), MAX_RETRY_S) if retry_s > 0 else MIN_RETRY_S
    match refused.reason:
        # A scheduler that has just started, or a model whose last worker has gone: "later", but not "never".
        case RefusalReason.MODEL_NOT_FOUND if not is_known:
            return ModelNotFound(f"The model `{model}` does not exist or you do not have access to it.")
        case RefusalReason.MODEL_NOT_FOUND | RefusalReason.NO_READY_WORKER:
            return NoReadyWorker(f"No worker is ready to serve the model `{model}`.", retry_after_s=retry_s)
        case RefusalReason.SATURATED:
            return Saturated(f"All workers that serve the model `{model}` are full.", retry_after_s=retry_s)
        case RefusalReason.QUEUE_FULL:
            return Saturated(f"Too many requests wait for the model `{model}` already.", retry_after_s=retry_s)
        case RefusalReason.TENANT_LIMIT:
            return RateLimited(
                f"Too many of your requests wait for the model `{model}` already.", retry_after_s=retry_s
            )
        case RefusalReason.DEADLINE:
            return DeadlineExceeded(f"No worker that serves the model `{model}` had room in time.")
