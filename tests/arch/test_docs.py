"""What the pages for readers name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.arch.tree import PACKAGES, ROOT, documents, name
from tools import config_doc

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(rf"`((?:{'|'.join(PACKAGES)}|protos|tests|tools|docs|bench|deploy|examples)/[\w./-]*)`")

PAGES = [pytest.param(page, id=name(page)) for page in documents()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in _LINK.findall(_FENCE.sub("", page.read_text())) if "://" not in target]
    assert [target for target in targets if not _leads_somewhere(page, target)] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    assert [path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


def test_the_page_of_options_is_fresh() -> None:
    assert config_doc.PAGE.read_text() == config_doc.page(), "run `make fix`"


def test_decisions_are_numbered_without_doubles_and_titled_by_their_number() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    numbers = [record.name[:4] for record in records]
    assert len(set(numbers)) == len(numbers)
    assert [name(record) for record in records if not record.read_text().startswith(f"# {record.name[:4]} ")] == []


def test_the_architecture_names_every_decision() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    assert [
        name(record) for record in sorted((ROOT / "docs/adr").glob("*.md")) if f"adr/{record.name}" not in text
    ] == []


def _leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path) if path else page
    if not file.exists():
        return False
    return not anchor or anchor in _anchors(file.read_text())


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
