"""Which policy decides for which model and phase, from the start and after changes."""

from __future__ import annotations

import pytest

from lbcore.errors import ConfigError
from lbcore.policies.assignments import Assignments, build_assignments, check_model_policies, model_and_phase
from lbcore.policies.registry import build_policy
from lbcore.types import PolicyAssignment, Role

LLAMA = "meta-llama/Llama-3.1-8B:latest"
OF_ALL = [
    PolicyAssignment("", Role.MIXED, "cost"),
    PolicyAssignment("", Role.PREFILL, "process_tokens"),
    PolicyAssignment("", Role.DECODE, "least_tokens"),
]


def made(*own: tuple[str, str]) -> Assignments:
    return build_assignments("cost", "process_tokens", "least_tokens", own)


def test_a_model_without_its_own_has_that_of_the_phase() -> None:
    assignments = made((LLAMA, "round_robin"))
    assert [assignments["other", phase].name for phase in Role] == ["cost", "process_tokens", "least_tokens"]


def test_a_model_has_its_own_for_the_phase_that_was_named_and_no_other() -> None:
    assignments = made((LLAMA, "round_robin"), (f"{LLAMA}:decode", "random"))
    assert [assignments[LLAMA, phase].name for phase in Role] == ["round_robin", "process_tokens", "random"]


def test_one_policy_is_one_object() -> None:
    policy = build_policy("cost")
    assignments = Assignments.of(policy)
    assert all(assignments["any", phase] is policy for phase in Role)


def test_a_change_holds_at_once() -> None:
    assignments = made()
    decides = assignments.assign(PolicyAssignment(LLAMA, Role.PREFILL, "gie(kv=0)"))
    assert decides is assignments[LLAMA, Role.PREFILL]
    assert decides.name == "gie(kv=0)"
    assert assignments[LLAMA, Role.MIXED].name == "cost"


def test_a_change_for_every_model_leaves_those_that_have_their_own() -> None:
    assignments = made((LLAMA, "random"))
    assignments.assign(PolicyAssignment("", Role.MIXED, "least_requests"))
    assert assignments["other", Role.MIXED].name == "least_requests"
    assert assignments[LLAMA, Role.MIXED].name == "random"


def test_an_empty_text_takes_a_models_own_away() -> None:
    assignments = made((LLAMA, "random"))
    assert assignments.assign(PolicyAssignment(LLAMA, Role.MIXED, "")).name == "cost"
    assert assignments.assign(PolicyAssignment("never heard of", Role.MIXED, "")).name == "cost"
    assert assignments.listed() == OF_ALL


@pytest.mark.parametrize("phase", Role)
def test_that_of_every_model_cannot_be_taken_away(phase: Role) -> None:
    assignments = made()
    with pytest.raises(ConfigError, match="cannot be taken away"):
        assignments.assign(PolicyAssignment("", phase, ""))
    assert assignments.listed() == OF_ALL


def test_what_is_no_policy_changes_nothing() -> None:
    assignments = made((LLAMA, "random"))
    for text in ("fastest", "gie(kv=-1)", "cost cost"):
        with pytest.raises(ConfigError, match="policy: "):
            assignments.assign(PolicyAssignment(LLAMA, Role.MIXED, text))
    assert assignments.listed() == [*OF_ALL, PolicyAssignment(LLAMA, Role.MIXED, "random")]


def test_they_are_listed_as_they_can_be_given_those_of_every_model_first() -> None:
    assignments = made(("b:decode", "random"), ("b", "gie(prefix=3, kv=0)"), ("a:prefill", "cost"))
    assert assignments.listed() == [
        *OF_ALL,
        PolicyAssignment("a", Role.PREFILL, "cost"),
        PolicyAssignment("b", Role.MIXED, "gie(kv=0)"),
        PolicyAssignment("b", Role.DECODE, "random"),
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("demo", ("demo", Role.MIXED)),
        ("demo:prefill", ("demo", Role.PREFILL)),
        ("demo:decode", ("demo", Role.DECODE)),
        (LLAMA, (LLAMA, Role.MIXED)),
        (f"{LLAMA}:decode", (LLAMA, Role.DECODE)),
        ("named:prefill:mixed", ("named:prefill", Role.MIXED)),
        ("prefill", ("prefill", Role.MIXED)),
    ],
)
def test_only_a_phase_behind_the_last_colon_is_one(name: str, meant: tuple[str, Role]) -> None:
    assert model_and_phase(name) == meant


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([("a", "cost"), ("a:prefill", "cost"), (LLAMA, "gie(kv=1)")], None),
        ([("", "cost")], "has 'cost' for no model"),
        ([(":decode", "cost")], "has 'cost' for no model"),
        ([("a", "cost"), ("a:mixed", "cost")], "gives a two policies for the phase mixed"),
        ([("a", "gie(kv=-1)")], "has 'gie(kv=-1)' for a, which has -1 for kv, which is below 0"),
        ([("a", "")], "has '' for a, which is not written as name or as name(parameter=value, parameter=value)"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_it_is_for(pairs: list[tuple[str, str]], problem: str | None) -> None:
    assert check_model_policies(pairs) == problem
