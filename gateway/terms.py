"""What a request's headers say of it: on whose behalf it comes, and what its client asks for beside an answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from lbcore.errors import InvalidRequest

MAX_PRIORITY = 100

_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")
_BEARER = re.compile(r"bearer[ \t]+([\x21-\x7e]+)", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")

_DIGEST_BYTES = 8
"""Two of ten thousand tenants share a digest with a probability of 3e-12, and then only share their turns."""


class Terms(NamedTuple):
    """The terms on which a request is to be served."""

    session_id: str = ""
    """Empty when its headers name none."""
    tenant: str = ""
    """Empty when nobody says who it is."""
    priority: int = 0
    ttft_slo_ms: float = 0.0
    """0 for none, as below."""
    tpot_slo_ms: float = 0.0
    timeout_s: float | None = None
    """None when the client leaves it to the gateway."""
    explain: bool = False
    """Whether the answer is to say why it came from where it came."""
    may_continue: bool = True
    """Whether another worker may go on with the answer when the one that gives it is lost."""


def terms_of(headers: Mapping[str, str]) -> Terms:
    """The terms in a request's headers, whose names are looked up whatever their case.

    Raises:
        InvalidRequest: one is not what it should be; names it.
    """
    get = headers.get
    timeout_ms = _positive("X-Request-Timeout-MS", get("X-Request-Timeout-MS"))
    return Terms(
        printable(get("X-Session-ID", "")),
        tenant_of(get("X-Tenant-ID", ""), get("Authorization", "")),
        _between("X-Priority", get("X-Priority"), -MAX_PRIORITY, MAX_PRIORITY),
        _positive("X-SLO-TTFT-MS", get("X-SLO-TTFT-MS")),
        _positive("X-SLO-TPOT-MS", get("X-SLO-TPOT-MS")),
        timeout_ms / 1000 if timeout_ms else None,
        get("X-LB-Explain") == "1",
        get("X-LB-Continue") != "0",
    )


def printable(given: str) -> str:
    """A header that may go into logs and onto the wire as it is; empty when it may not."""
    return given if _PRINTABLE.fullmatch(given) else ""


def tenant_of(given: str, authorization: str) -> str:
    """The tenant by its own name; or else a name that stands for its bearer token and does not give it away."""
    name = printable(given)
    if name or not authorization:
        return name
    bearer = _BEARER.fullmatch(authorization)
    return blake2b(bearer[1].encode(), digest_size=_DIGEST_BYTES).hexdigest() if bearer is not None else ""


def _positive(name: str, given: str | None) -> int:
    """A number from 1; 0 where none is given."""
    number = _number(given)
    if given is not None and (number is None or number < 1):
        raise _wrong(name, "a positive integer of at most ten digits")
    return number or 0


def _between(name: str, given: str | None, low: int, high: int) -> int:
    """A number in the range; 0 where none is given."""
    number = _number(given)
    if given is not None and (number is None or not low <= number <= high):
        raise _wrong(name, f"an integer from {low} to {high}")
    return number or 0


def _number(given: str | None) -> int | None:
    return int(given) if given is not None and _INTEGER.fullmatch(given) else None


def _wrong(name: str, expected: str) -> InvalidRequest:
    message = f"Invalid value for the header '{name}': expected {expected}."
    return InvalidRequest(message, param=name, code="invalid_value")
