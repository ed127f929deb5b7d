"""Nothing that can go wrong is left without a name on the wire and an answer over HTTP."""

from __future__ import annotations

import re

from gateway.errors import OUTCOMES
from lbcore import errors
from lbcore.errors import LoadBalancerError
from lbcore.wire.status import GRPC_STATUS, tree

NAMED = [cls for cls in tree() if "reason" in cls.__dict__]


def test_every_class_that_is_raised_has_a_reason_of_its_own() -> None:
    reasons = [cls.reason for cls in NAMED]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in reasons)


def test_every_error_has_a_grpc_status() -> None:
    assert [cls.__name__ for cls in NAMED if cls not in GRPC_STATUS] == []


def test_every_error_has_an_answer_over_http() -> None:
    assert [cls.__name__ for cls in NAMED if cls not in OUTCOMES] == []


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = re.findall(r"^ *(?:[│ ]*[├└]── )(\w+)", errors.__doc__ or "", re.MULTILINE)
    assert drawn == [cls.__name__ for cls in tree() if cls is not LoadBalancerError]
