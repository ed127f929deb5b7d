"""The options of the engine, and how its addresses are read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from lbcore.config import at_least, option, positive
from lbcore.errors import ConfigError

DEFAULT_SEQUENCES = 256
"""What vLLM runs at once unless told otherwise; other servers queue what is too much for them."""


def _path(value: str) -> str | None:
    return None if not value or value.startswith("/") else "does not begin with /"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """The options of the engine that is somebody else's server."""

    upstream: tuple[str, ...] = option(
        metavar="URL,...",
        help="OpenAI-compatible servers that generate, with or without /v1; each serves the whole model",
    )
    upstream_api_key: str = option("", help="key that they ask for, sent as a bearer token", secret=True)
    upstream_max_sequences: int = option(
        0,
        help="choices that each generates at once; more wait in the worker; 0 takes what it says, or else 256",
        check=at_least(0),
    )
    upstream_context_length: int = option(
        0, help="longest prompt plus answer, in tokens; 0 takes what they say", check=at_least(0)
    )
    upstream_start_timeout_s: float = option(
        600.0, help="seconds to wait at the start for one of them to answer", check=at_least(0)
    )
    upstream_timeout_s: float = option(
        600.0, help="seconds without a byte, before an answer or inside it, after which a request fails", check=positive
    )
    upstream_poll_s: float = option(
        1.0, help="seconds between looks at their health and their metrics", check=at_least(0.05)
    )
    upstream_metrics: str = option(
        "/metrics", metavar="PATH", help="path of their Prometheus pages; empty reads none", check=_path
    )


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. Holds no secret, so it may stand in logs."""

    root: str
    """The URL before `/v1`, without a slash at its end."""

    def url(self, path: str) -> str:
        return self.root + path

    def __str__(self) -> str:
        return self.root


def addresses(options: UpstreamOptions) -> tuple[Address, ...]:
    """The servers to use, each once. Raises ConfigError, which quotes nothing: a password may be in it."""
    if not options.upstream:
        raise ConfigError("--upstream: needed with --engine openai, as http://HOST:PORT")
    if not all("!" <= character <= "~" for character in options.upstream_api_key.strip()):
        raise ConfigError("--upstream-api-key: it holds characters that no key has")
    for number, value in enumerate(options.upstream, 1):
        problem = _problem(value)
        if problem:
            raise ConfigError(f"--upstream: URL number {number} {problem}")
    return tuple({_address(urlsplit(value)): None for value in options.upstream})


def _address(url: SplitResult) -> Address:
    return Address(f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1').rstrip('/')}")


def _problem(value: str) -> str | None:
    try:
        url = urlsplit(value)
        has_host = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return "is no URL"
    if url.username is not None or url.password is not None:
        return "has a user or a password in it; keys are given with --upstream-api-key"
    if url.scheme not in ("http", "https") or not has_host:
        return "is not http://HOST:PORT or https://HOST"
    if url.query or url.fragment:
        return "has a query or a fragment in it"
    return None
