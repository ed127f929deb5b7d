"""The terms in a request's headers, through both ways in: the same facts for the scheduler, the same refusals."""

from __future__ import annotations

import orjson
import pytest

from lbcore.generation import GenerationRequest
from lbcore.types import RouteFacts
from tests.wire.browser import OTHER_WAY, PATH, WHOLE, Browser
from tests.wire.gateway_host import Gateway

BOTH_WAYS = pytest.mark.parametrize("path", [PATH, OTHER_WAY], ids=["express", "aiohttp"])


async def asked(
    gateway: Gateway, browser: Browser, path: bytes, *headers: bytes
) -> tuple[RouteFacts, GenerationRequest]:
    """What becomes of a good request with these headers."""
    answer = await browser.ask(WHOLE, *headers, path=path)
    assert answer.status == 200
    return gateway.dispatcher.asked[-1]


@BOTH_WAYS
async def test_a_request_without_terms_is_nobody_s_and_has_the_time_that_the_gateway_gives(
    gateway: Gateway, browser: Browser, path: bytes
) -> None:
    facts, request = await asked(gateway, browser, path)
    assert (facts.tenant, facts.priority, facts.ttft_slo_ms, facts.tpot_slo_ms) == ("", 0, 0, 0)
    assert (request.timeout_s, request.priority) == (77.0, 0)


@BOTH_WAYS
async def test_a_tenant_is_the_header_s_or_else_stands_for_the_key(
    gateway: Gateway, browser: Browser, path: bytes
) -> None:
    named, _ = await asked(gateway, browser, path, b"X-Tenant-ID: t1", b"Authorization: Bearer secret")
    keyed, _ = await asked(gateway, browser, path, b"Authorization: Bearer secret")
    badly, _ = await asked(gateway, browser, path, b"x-tenant-id: \xff\xfe", b"authorization:  bearer\tsecret ")
    other, _ = await asked(gateway, browser, path, b"Authorization: Basic secret")
    assert named.tenant == "t1"
    assert keyed.tenant == badly.tenant == "0ffde1ae45a58146"
    assert other.tenant == ""


@BOTH_WAYS
async def test_priority_and_goals_reach_the_scheduler_and_the_worker(
    gateway: Gateway, browser: Browser, path: bytes
) -> None:
    headers = (b"X-Priority: -7", b"X-SLO-TTFT-MS: 250", b"X-SLO-TPOT-MS: 40", b"X-Tenant-ID: t1", b"X-Session-ID: s1")
    facts, request = await asked(gateway, browser, path, *headers)
    assert (facts.priority, facts.ttft_slo_ms, facts.tpot_slo_ms) == (-7, 250, 40)
    assert (facts.tenant, facts.session_id) == ("t1", "s1")
    assert request.priority == -7


@BOTH_WAYS
@pytest.mark.parametrize(("given_ms", "timeout_s"), [(b"1500", 1.5), (b"77000", 77.0), (b"9999999999", 77.0)])
async def test_a_request_has_the_shorter_of_its_own_time_and_the_gateway_s(
    gateway: Gateway, browser: Browser, path: bytes, given_ms: bytes, timeout_s: float
) -> None:
    _, request = await asked(gateway, browser, path, b"X-Request-Timeout-MS: " + given_ms)
    assert request.timeout_s == timeout_s


@BOTH_WAYS
@pytest.mark.parametrize(
    "header",
    [b"X-Priority: 101", b"x-priority: high", b"X-SLO-TTFT-MS: 0", b"X-SLO-TPOT-MS: -1", b"X-Request-Timeout-MS: \xff"],
)
async def test_a_bad_header_is_400_by_its_name_and_the_connection_goes_on(
    gateway: Gateway, browser: Browser, path: bytes, header: bytes
) -> None:
    answer = await browser.ask(WHOLE, header, path=path)
    error = orjson.loads(answer.body)["error"]
    assert answer.status == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"].lower() == header.partition(b":")[0].decode().lower()
    assert gateway.dispatcher.asked == []
    await asked(gateway, browser, path)
