"""The same parsers in the ordinary run: the corpus, and damage to it by dice.

Goal: no bytes make a parser fail otherwise than it says.
Method: hypothesis damages entries of the corpus, which comes deeper than bytes drawn
at random do; ``make fuzz`` looks further, guided by coverage.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import CORPUS, PARSERS, corpus

# Where, how many bytes go, and what comes instead.
DAMAGE = st.tuples(
    st.integers(0, 4000),
    st.integers(0, 9),
    st.binary(max_size=9)
    | st.sampled_from([b"-1", b"18446744073709551616", b"\xcf" + b"\xff" * 8, b"\n"]),
)


def test_each_parser_has_a_corpus() -> None:
    """And there is none without a parser."""
    assert sorted(PARSERS) == sorted(path.name for path in CORPUS.iterdir())


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus(name: str) -> None:
    """The first entry is good; none makes it fail."""
    good, *others = corpus(name)
    assert PARSERS[name].try_with(good) == (name != "token")
    for data in others:
        PARSERS[name].try_with(data)


@pytest.mark.parametrize("name", PARSERS)
def test_damage(name: str) -> None:
    """It is taken for what it then is, or refused."""
    entries = list(corpus(name))

    @settings(max_examples=60)
    @given(st.sampled_from(entries), st.lists(DAMAGE, max_size=4))
    def damaged(data: bytes, damages: list[tuple[int, int, bytes]]) -> None:
        for where, gone, instead in damages:
            at = where % (len(data) + 1)
            data = data[:at] + instead + data[at + gone :]
        PARSERS[name].try_with(data)

    damaged()
