"""Many runs in a few numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

# Plain JSON values: what a bench found for one setting.
Result: TypeAlias = dict[str, Any]
Summary: TypeAlias = dict[str, float]


def summary(values: Iterable[float]) -> Summary | None:
    """Least, median, most, and the percentiles 90 and 99; None if there is nothing.

    Percentiles are values that were measured (the nearest rank): of five runs, both are
    the worst one.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return {
        "min": ordered[0],
        "median": median(ordered),
        "max": ordered[-1],
        "p90": nearest_rank(ordered, 90),
        "p99": nearest_rank(ordered, 99),
    }


def median(ordered: Sequence[float]) -> float:
    """The middle of sorted values, of which there is at least one."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """The least of sorted values that ``percent`` of them do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


def summaries(samples: Sequence[Mapping[str, Any]], *names: str) -> Result:
    """For each name the summary of what the samples say under it, leaving out None."""
    return {
        name: summary(
            sample[name] for sample in samples if sample.get(name) is not None
        )
        for name in names
    }


def middle(samples: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The median of what the samples say under ``name``; None without any."""
    found = summary(s[name] for s in samples if s.get(name) is not None)
    return None if found is None else found["median"]


def ratio(part: float | None, whole: float | None) -> float | None:
    """``part / whole``; None if one of them is missing or there is no whole."""
    return None if part is None or not whole else part / whole
