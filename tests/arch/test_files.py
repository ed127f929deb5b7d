"""Files have sizes and names that a reader can live with, and each policy part has its test."""

from __future__ import annotations

import pytest

from tests.arch.tree import PART_FOLDERS, ROOT, name, python_files

LONGEST_FILE_LINES = 600
NAMELESS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common"}


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}


def test_every_room_is_named_after_what_it_is_for() -> None:
    assert [name(path) for path in python_files() if NAMELESS & {*path.stem.split("_"), path.parent.name}] == []


def test_no_module_hides_behind_a_package_of_its_name() -> None:
    packages = [path.parent for path in python_files() if path.name == "__init__.py"]
    assert [name(package) for package in packages if package.with_suffix(".py").exists()] == []


@pytest.mark.parametrize("folder", PART_FOLDERS)
def test_every_policy_part_has_a_test_of_its_own(folder: str) -> None:
    parts = [path.stem for path in (ROOT / "lbcore/policies" / folder).glob("*.py") if path.stem != "__init__"]
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/unit").rglob(f"policies/{folder}/test_*.py")}
    assert parts
    assert sorted(set(parts) - tested) == []


def test_test_files_of_one_name_can_live_in_two_folders() -> None:
    folders = {path.parent for path in python_files() if path.name.startswith("test_")}
    assert sorted(name(folder) for folder in folders if not (folder / "__init__.py").exists()) == []
