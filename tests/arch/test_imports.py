"""The import contracts of pyproject.toml hold, and one more that they cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arch.tree import PACKAGES, PART_FOLDERS, ROOT, name


def test_the_import_contracts_hold() -> None:
    command: list[str | Path] = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("folder", PART_FOLDERS)
def test_a_policy_part_knows_nouns_and_arithmetic_and_no_other_part(folder: str) -> None:
    rooms = ("types", "errors", "ewma", "prefix", "cost", "cost_terms", "policies.base", "policies.measures")
    allowed = {f"lbcore.{room}" for room in rooms}
    parts = sorted((ROOT / "lbcore/policies" / folder).glob("*.py"))
    assert {name(part): sorted(_own_imports(part) - allowed) for part in parts if _own_imports(part) - allowed} == {}


def _own_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return {module for module in found if module.split(".")[0] in (*PACKAGES, "")}
