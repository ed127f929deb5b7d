"""What a request ends in when its engine is at fault and not the request. Pure."""

from __future__ import annotations

from lbcore.errors import EngineFailed, LoadBalancerError, StreamInterrupted, WorkerUnreachable


def surprised(error: BaseException | None) -> EngineFailed:
    """The end that an exception nobody foresaw makes. Its text is not told: it may quote the request."""
    return EngineFailed(f"The engine failed on the request with {type(error).__name__}.")


def closed(begun: bool) -> LoadBalancerError:
    """The end that the closing of the engine makes. Before the first of an answer another worker can take over."""
    if begun:
        return StreamInterrupted("The engine was closed.")
    return WorkerUnreachable("The engine was closed.")
