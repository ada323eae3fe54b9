"""One word for one thing, and none that only its writer understands."""

import re
from typing import Final

import pytest

from tests.tidy import tree

# What is not said here, and what is said instead.
BANNED: Final = {
    r"\b(XXX|TODO|FIXME|HACK)\b": "decide it, or say in a sentence what is missing",
    r"(?i)\bissues? #?\d": "the reason itself: a number tells a reader nothing",
    r"(?i)\bsession notes?\b": "the reason itself",
    r"/work/|\bshared/|/tmp/plan|/opt/(pypi|wheels)": "no path of one machine",
    r"(?i)\bpredump|\bpre-dump": "pre-copy round",
    r"(?i)\b(target|receiving|remote) (host|machine|side|agent)\b": "destination",
    r"(?i)\b(sending|origin) (host|machine|side|agent)\b": "source",
    r"(?i)\b(unfreeze|unfroze|defrost)\w*": "thaw",
    r"(?i)\bblackout\b": "downtime",
    r"(?i)\butili[sz]e": "use",
}

THIS_FILE: Final = "tests/tidy/test_words.py"


@pytest.mark.parametrize("pattern", BANNED)
def test_a_banned_word_has_a_better_one(pattern: str) -> None:
    """Said nowhere: not in code, comments, documents or the build."""
    word = re.compile(pattern)
    found = [
        f"{tree.name(path)}:{number}: {match.group()!r}; instead: {BANNED[pattern]}"
        for path in tree.files()
        if tree.name(path) != THIS_FILE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in word.finditer(line)
    ]
    assert found == []
