"""Which policy decides for which model and phase. It parses and remembers; what a policy does, it does not know."""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.errors import ConfigError
from lbcore.policies.base import Policy
from lbcore.policies.registry import build_policy, check_policy
from lbcore.types import PolicyAssignment, Role

ModelAndPhase = tuple[str, Role]

_PHASES = {role.value: role for role in Role}


class Assignments:
    """Each phase has a policy that holds for all models, and a model may have its own. One object for each of them."""

    def __init__(self, whole: Policy, prefill: Policy, decode: Policy) -> None:
        """For every model: who decides for whole requests, and for each phase that is asked for alone."""
        self._everybody = {Role.MIXED: whole, Role.PREFILL: prefill, Role.DECODE: decode}
        self._own: dict[ModelAndPhase, Policy] = {}

    @classmethod
    def of(cls, policy: Policy) -> Assignments:
        """One policy for everything."""
        return cls(policy, policy, policy)

    def __getitem__(self, key: ModelAndPhase) -> Policy:
        """The policy that decides now."""
        return self._own.get(key) or self._everybody[key[1]]

    def assign(self, assignment: PolicyAssignment) -> Policy:
        """It holds from now on. Returns who decides there now.

        Raises:
            ConfigError: there is no such policy, or a phase would be left without any.
        """
        model, phase, text = assignment
        if text:
            policy = build_policy(text)
            if model:
                self._own[model, phase] = policy
            else:
                self._everybody[phase] = policy
        elif model:
            self._own.pop((model, phase), None)
        else:
            raise ConfigError("policy: that of every model cannot be taken away, only changed")
        return self[model, phase]

    def listed(self) -> list[PolicyAssignment]:
        """All of them: what holds for any model first, then by model and phase."""
        order = {phase: place for place, phase in enumerate(Role)}
        everybody = [PolicyAssignment("", phase, self._everybody[phase].name) for phase in Role]
        own = sorted(self._own, key=lambda key: (key[0], order[key[1]]))
        return everybody + [PolicyAssignment(*key, self._own[key].name) for key in own]


def build_assignments(whole: str, prefill: str, decode: str, own: Sequence[tuple[str, str]] = ()) -> Assignments:
    """As lb-scheduler is told: a policy for each phase, and others by names as `model_and_phase` reads them.

    Raises:
        ConfigError: one of the policies is none.
    """
    assignments = Assignments(build_policy(whole), build_policy(prefill), build_policy(decode))
    for name, text in own:
        assignments.assign(PolicyAssignment(*model_and_phase(name), text))
    return assignments


def model_and_phase(name: str) -> ModelAndPhase:
    """What is meant by `MODEL:PHASE`, or by `MODEL` alone, which is for whole requests. A model may have colons in its
    name: what stands behind the last one counts as a phase only where it is one."""
    model, colon, phase = name.rpartition(":")
    return (model, _PHASES[phase]) if colon and phase in _PHASES else (name, Role.MIXED)


def check_model_policies(pairs: Sequence[tuple[str, str]]) -> str | None:
    """What is wrong with policies by names as `model_and_phase` reads them, as the end of a sentence, or None: a check
    for `lbcore.config.option`."""
    seen: set[ModelAndPhase] = set()
    for name, text in pairs:
        key = model_and_phase(name)
        if not key[0]:
            return f"has {text!r} for no model"
        if key in seen:
            return f"gives {key[0]} two policies for the phase {key[1]}"
        seen.add(key)
        problem = check_policy(text)
        if problem is not None:
            return f"has {text!r} for {name}, which {problem}"
    return None
