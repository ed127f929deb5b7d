"""The options of the three processes: no name twice, defaults that are good values, help for each."""

from __future__ import annotations

import pytest

from lbcore.config import Declaration, declare
from tools.config_doc import PROCESSES, Process

OPTIONS = [
    pytest.param(option, id=f"{process.prog} {option.flag}")
    for process in PROCESSES
    for option in declare(process.groups()).values()
]


@pytest.mark.parametrize("process", PROCESSES, ids=[process.prog for process in PROCESSES])
def test_no_variable_is_taken_twice(process: Process) -> None:
    variables = [option.env for option in declare(process.groups()).values()]
    assert len(set(variables)) == len(variables)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_default_is_a_value_that_could_be_given(option: Declaration) -> None:
    if option.required or option.default is None:
        return
    assert not option.choices or option.default_text in option.choices
    assert option.check is None or option.default == "" or option.check(option.default) is None


@pytest.mark.parametrize("option", OPTIONS)
def test_the_help_is_one_phrase(option: Declaration) -> None:
    assert option.help
    assert not option.help.endswith(".")
    assert "\n" not in option.help
