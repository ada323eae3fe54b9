"""A page set is a set of pages: its algebra agrees with Python's own sets."""

from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet

PAGE_NUMBERS = st.integers(0, 40)
RUNS = st.lists(
    st.tuples(PAGE_NUMBERS, PAGE_NUMBERS).map(
        lambda pair: (min(pair) * PAGE_BYTES, max(pair) * PAGE_BYTES)
    ),
    max_size=8,
)


def model(runs: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in runs for page in range(start, end, PAGE_BYTES)}


@given(RUNS)
def test_a_set_holds_the_pages_of_its_runs_and_no_others(
    runs: list[tuple[int, int]],
) -> None:
    pages, expected = PageSet.of(runs), model(runs)
    assert set(pages.addresses()) == expected
    assert pages.pages == len(expected)
    assert pages.bytes == len(expected) * PAGE_BYTES
    assert bool(pages) == bool(expected)
    for page in range(0, 41 * PAGE_BYTES, PAGE_BYTES):
        assert (page in pages) == (page in expected)
        assert (page + 17 in pages) == (page in expected)


@given(RUNS, RUNS)
def test_the_algebra_is_that_of_sets(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    left, right = PageSet.of(a), PageSet.of(b)
    assert set((left | right).addresses()) == model(a) | model(b)
    assert set((left & right).addresses()) == model(a) & model(b)
    assert set((left - right).addresses()) == model(a) - model(b)


@given(RUNS, RUNS)
def test_equal_pages_make_equal_sets(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    """However they came about: there is one form for each set."""
    left, right = PageSet.of(a), PageSet.of(b)
    assert (left == right) == (model(a) == model(b))
    rebuilt = (left - right) | (left & right)
    assert rebuilt == left
    assert hash(rebuilt) == hash(left)
    assert PageSet.from_boundaries(rebuilt.boundaries) == left
    assert PageSet.from_boundaries(rebuilt.boundaries.tobytes()) == left


@given(RUNS, PAGE_NUMBERS, PAGE_NUMBERS)
def test_a_part_is_what_lies_within(
    runs: list[tuple[int, int]], first: int, last: int
) -> None:
    """Nothing, where the borders are the wrong way round."""
    start, end = first * PAGE_BYTES, last * PAGE_BYTES
    part = PageSet.of(runs).within(start, end)
    assert set(part.addresses()) == {at for at in model(runs) if start <= at < end}
    assert part == PageSet.of(part)


@given(RUNS, st.integers(0, 5))
def test_short_gaps_are_bridged(runs: list[tuple[int, int]], gap_pages: int) -> None:
    """And long ones are not; nothing is added at the ends."""
    pages = PageSet.of(runs)
    bridged = pages.bridged(gap_pages)
    gaps = PageSet.of(
        (end, start)
        for (_, end), (start, _) in pairwise(pages)
        if start - end <= gap_pages * PAGE_BYTES
    )
    assert bridged == pages | gaps


@given(RUNS, st.integers(1, 20))
def test_cuts_are_full_in_order_and_complete(
    runs: list[tuple[int, int]], pages_max: int
) -> None:
    whole = PageSet.of(runs)
    cuts = list(whole.cuts(pages_max))
    assert [page for cut in cuts for page in cut.addresses()] == list(whole.addresses())
    assert all(cut.pages == pages_max for cut in cuts[:-1])
    assert all(0 < cut.pages <= pages_max for cut in cuts)


@pytest.mark.parametrize(
    "boundaries",
    [
        [4096],
        [4096, 4096],
        [8192, 4096],
        [4096, 8192, 8192, 12288],
        [4096, 8191],
        [1, 4096],
        [0, 1 << 63, (1 << 63) + 4096, (1 << 63) + 8192],
    ],
)
def test_boundaries_that_are_none_are_refused(boundaries: list[int]) -> None:
    """Odd, empty, backwards, touching, unaligned, or out of range."""
    with pytest.raises(ValueError):
        PageSet.from_boundaries(array("Q", boundaries))


def test_boundaries_outside_of_the_given_range_are_refused() -> None:
    """The borders themselves are inside."""
    inside = array("Q", [4096, 12288])
    assert PageSet.from_boundaries(inside, low=4096, high=12288).pages == 2
    with pytest.raises(ValueError):
        PageSet.from_boundaries(inside, low=8192)
    with pytest.raises(ValueError):
        PageSet.from_boundaries(inside, high=8192)


@pytest.mark.parametrize("run", [(1, 4096), (0, 5), (8192, 4096), (-4096, 0)])
def test_a_run_that_is_none_is_refused(run: tuple[int, int]) -> None:
    """Unaligned, backwards or negative."""
    with pytest.raises(ValueError):
        PageSet.of([run])


def test_a_set_prints_its_addresses_in_hex() -> None:
    """And not all of a long one."""
    assert repr(PageSet.of([(0x1000, 0x3000)])) == "<PageSet 2 pages: 0x1000-0x3000>"
    many = PageSet.of((page, page + 4096) for page in range(0, 1 << 20, 8192))
    assert repr(many).endswith("… 124 more>")
