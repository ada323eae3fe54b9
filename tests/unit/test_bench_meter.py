"""What a workload has metered: phases are whole intervals, latencies whole buckets."""

from itertools import pairwise

import pytest

from bench.meter import (
    BUCKETS,
    INTERVAL_NS,
    Interval,
    Phase,
    bucket_end_ns,
    together,
)


def interval(number: int, *latency_buckets: int) -> Interval:
    buckets = [0] * BUCKETS
    for bucket in latency_buckets:
        buckets[bucket] += 1
    return Interval(number * INTERVAL_NS, len(latency_buckets), 7, tuple(buckets))


def test_buckets_follow_one_another_and_are_an_eighth_wide() -> None:
    ends = [bucket_end_ns(number) for number in range(BUCKETS)]
    assert ends == sorted(set(ends))
    assert ends[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert all(8 * (b - a) <= a for a, b in pairwise(ends[8:]))


def test_a_phase_has_only_what_lies_wholly_in_it() -> None:
    intervals = [interval(number, 3) for number in range(10, 20)]
    phase = Phase.of(intervals, 11 * INTERVAL_NS + 1, 15 * INTERVAL_NS - 1)
    assert phase.count == 2
    assert phase.duration_s == pytest.approx(2 * INTERVAL_NS / 1e9)


def test_time_in_which_nothing_was_done_counts() -> None:
    """Else a program that stood still would seem as fast as before."""
    phase = Phase.of([interval(1, 3), interval(9, 3)], 0, 10 * INTERVAL_NS)
    assert phase.per_s == pytest.approx(2 / (10 * INTERVAL_NS / 1e9))


def test_a_percentile_is_the_end_of_its_bucket() -> None:
    phase = Phase.of([interval(0, *([5] * 98), 20, 100)], 0, INTERVAL_NS)
    assert phase.percentile_s(50) == bucket_end_ns(5) / 1e9
    assert phase.percentile_s(99) == bucket_end_ns(20) / 1e9
    assert phase.percentile_s(100) == bucket_end_ns(100) / 1e9


def test_an_empty_phase_has_no_figures() -> None:
    phase = Phase.of([], 0, 0)
    assert phase.per_s is None
    assert phase.percentile_s(99) is None
    assert together([]).percentile_s(99) is None


def test_phases_of_several_runs_are_one() -> None:
    one = Phase.of([interval(0, 5, 6)], 0, INTERVAL_NS)
    empty = Phase.of([], 0, INTERVAL_NS)
    both = together([one, empty, one])
    assert both.count == 4
    assert both.duration_s == pytest.approx(3 * INTERVAL_NS / 1e9)
    assert both.buckets[5] == both.buckets[6] == 2
