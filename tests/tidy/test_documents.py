"""Documents hang together, and say of each kind what becomes of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy import tree

DOCUMENTS = [path for path in tree.files() if path.suffix == ".md"]
KINDS = sorted(
    path.stem
    for path in (tree.ROOT / "migrate" / "kinds").glob("*.py")
    if re.search(r"^KIND\b", path.read_text(), re.MULTILINE)
)
KINDS_PAGE = tree.ROOT / "docs" / "kinds.md"


def prose(path: Path) -> Iterator[str]:
    """The lines of a document that are not an example."""
    example = False
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("```"):
            example = not example
        elif not example:
            yield line


def anchors(path: Path) -> set[str]:
    """What a link may name in it, as the usual renderers make it of the headings."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        for line in prose(path)
        if line.startswith("#")
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=tree.name)
def test_a_document_has_one_title(path: Path) -> None:
    """The first line; a second one would be a second document."""
    titles = [line for line in prose(path) if line.startswith("# ")]
    assert len(titles) == 1
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", DOCUMENTS, ids=tree.name)
def test_links_lead_somewhere(path: Path) -> None:
    """To a file that is there, and to a heading in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(path))):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_the_changelog_awaits_the_next_change() -> None:
    """What is not released yet stands on top."""
    headings = [
        line for line in prose(tree.ROOT / "CHANGELOG.md") if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]"


def test_every_kind_is_documented() -> None:
    """A row in docs/kinds.md: what is carried, what only nearly, and why."""
    rows = [line for line in prose(KINDS_PAGE) if line.startswith("|")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(KINDS) <= documented


def test_every_kind_has_a_scenario() -> None:
    """A program that holds one, is moved while it waits, then checks itself."""
    scenarios = (tree.ROOT / "tests" / "live" / "scenarios").glob("*.c")
    assert set(KINDS) <= {path.stem for path in scenarios}
