"""Addresses in the ways people write them."""

from __future__ import annotations

import pytest

from lbcore.errors import ConfigError
from worker.engines.openai.options import UpstreamOptions, addresses


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/openai/v1", "https://host/openai"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_with_or_without_the_version(url: str, root: str) -> None:
    (address,) = addresses(UpstreamOptions(upstream=(url,)))
    assert str(address) == root
    assert address.url("/v1/models") == f"{root}/v1/models"


def test_the_same_server_is_used_once() -> None:
    urls = ("http://a:1", "http://a:1/v1", "http://b:1")
    assert [str(address) for address in addresses(UpstreamOptions(upstream=urls))] == ["http://a:1", "http://b:1"]


@pytest.mark.parametrize(
    "url", ["http://me:secret@host", "http://me@host", "host", "http://", "http://h:0", "http://h#x"]
)
def test_what_is_no_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--upstream: URL number 2 ") as caught:
        addresses(UpstreamOptions(upstream=("http://good:1", url)))
    assert "secret" not in caught.value.message


def test_the_key_is_not_in_the_repr() -> None:
    assert "secret" not in repr(UpstreamOptions(upstream=("http://a:1",), upstream_api_key="secret"))


@pytest.mark.parametrize("key", ["a b", "a\nb", "a\x00", "schl\u00fcssel"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        addresses(UpstreamOptions(upstream=("http://h",), upstream_api_key=key))
    assert key not in caught.value.message


def test_a_line_feed_behind_the_key_is_forgiven() -> None:
    assert addresses(UpstreamOptions(upstream=("http://h",), upstream_api_key="secret\n"))
