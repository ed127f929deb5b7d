"""Checks that declarations name: each returns what is wrong with a value as the end of a sentence, or None."""

from __future__ import annotations

from collections.abc import Callable


def between(low: float, high: float) -> Callable[[float], str | None]:
    """A check: the number lies in the range, both ends included."""
    return lambda value: None if low <= value <= high else f"is not between {low} and {high}"


def at_least(low: float) -> Callable[[float], str | None]:
    """A check: the number is not smaller."""
    return lambda value: None if value >= low else f"is less than {low}"


def positive(value: float) -> str | None:
    """A check: the number is greater than zero."""
    return None if value > 0 else "is not greater than 0"


port_number = between(0, 65535)
"""A check: a port to listen on, where 0 lets the system choose."""


def host_port(value: str) -> str | None:
    """A check: an address to connect to, as HOST:PORT; an IPv6 host stands in brackets."""
    host, _, digits = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    good_host = bool(host.strip("[]")) and (bracketed or ":" not in host) and not any(map(str.isspace, host))
    good_port = digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 65535
    return None if good_host and good_port else "is not HOST:PORT"
