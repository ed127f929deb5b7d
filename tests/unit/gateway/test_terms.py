"""What headers say of a request: who it is for, and on what terms; and what they must not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.terms import Terms, tenant_of, terms_of
from lbcore.errors import InvalidRequest


def test_a_request_without_headers_has_no_terms() -> None:
    assert terms_of({}) == Terms()


def test_all_that_headers_can_say_is_read() -> None:
    headers = {
        "X-Session-ID": "s1",
        "X-Tenant-ID": "t1",
        "X-Priority": "-7",
        "X-SLO-TTFT-MS": "250",
        "X-SLO-TPOT-MS": "40",
        "X-Request-Timeout-MS": "1500",
    }
    assert terms_of(headers) == Terms("s1", "t1", -7, 250, 40, 1.5)


@pytest.mark.parametrize(("given", "priority"), [("-100", -100), ("0", 0), ("+5", 5), ("007", 7), ("100", 100)])
def test_a_priority_is_an_integer_in_its_range(given: str, priority: int) -> None:
    assert terms_of({"X-Priority": given}).priority == priority


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("X-Priority", given) for given in ("-101", "101", "", "high", "1.5", "1e1", "1_0", "٣", " 1", "9" * 5000)),
        *(
            (name, given)
            for name in ("X-SLO-TTFT-MS", "X-SLO-TPOT-MS", "X-Request-Timeout-MS")
            for given in ("0", "-1", "", "soon", "0.5", "1e3", "٣", "9" * 5000)
        ),
    ],
)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_header(name: str, given: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        terms_of({name: given})
    assert (caught.value.param, caught.value.code) == (name, "invalid_value")
    assert name in caught.value.message


def test_a_tenant_names_itself_whatever_its_key() -> None:
    assert tenant_of("t1", "Bearer secret") == "t1"


@pytest.mark.parametrize("given", ["", "has space", "t" * 129, "é"])
def test_a_tenant_without_a_good_name_is_known_by_its_key(given: str) -> None:
    tenant = tenant_of(given, "Bearer secret")
    assert tenant == tenant_of("", "bearer \t secret")
    assert tenant != tenant_of("", "Bearer secre")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=64))
def test_nobody_can_tell_the_key_from_the_tenant(key: str) -> None:
    tenant = tenant_of("", f"Bearer {key}")
    assert len(tenant) == 16
    assert not any(key[at : at + 8] in tenant for at in range(len(key) - 7))


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer é", "secret"])
def test_who_has_no_key_is_nobody_in_particular(authorization: str) -> None:
    assert tenant_of("", authorization) == ""
