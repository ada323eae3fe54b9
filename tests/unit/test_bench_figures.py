"""Many runs in a few numbers: percentiles were measured, nothing is made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import middle, nearest_rank, ratio, summaries, summary


def test_a_summary_has_the_median_and_both_ends() -> None:
    assert summary([3.0, 1.0, 2.0, 10.0]) == {
        "min": 1.0,
        "median": 2.5,
        "max": 10.0,
        "p90": 10.0,
        "p99": 10.0,
    }


def test_of_nothing_there_is_no_summary() -> None:
    assert summary([]) is None
    assert middle([{"a": None}], "a") is None
    assert summaries([{"a": None}, {"a": 1.0}], "a", "b") == {
        "a": summary([1.0]),
        "b": None,
    }


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 50), (90, 90), (99, 99)]
)
def test_of_a_hundred_the_rank_is_the_percentile(percent: int, expected: int) -> None:
    assert nearest_rank(range(1, 101), percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_summary_is_in_order(values: list[float]) -> None:
    found = summary(values)
    assert found is not None
    assert found["min"] <= found["median"] <= found["p90"] <= found["p99"]
    assert found["p99"] <= found["max"]
    assert {found["p90"], found["p99"]} <= set(values)


def test_a_ratio_of_what_is_missing_is_missing() -> None:
    assert ratio(1.0, 4.0) == 0.25
    assert ratio(None, 4.0) is None
    assert ratio(1.0, None) is None
    assert ratio(1.0, 0.0) is None
