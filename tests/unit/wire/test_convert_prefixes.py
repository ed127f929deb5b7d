"""Prefix reports come out of their messages as they went in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbcore.types import PrefixReport
from lbcore.wire.convert import prefixes_from_proto, prefixes_to_proto

numbers = st.integers(0, 2**64 - 1)
hashes = st.lists(numbers, max_size=3).map(tuple)
reports = st.builds(PrefixReport, numbers, st.text(max_size=20), st.booleans(), hashes, hashes)


@given(reports)
def test_a_prefix_report_survives(report: PrefixReport) -> None:
    assert prefixes_from_proto(prefixes_to_proto(report)) == report
