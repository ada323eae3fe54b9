"""What people are shown of results, before anybody draws it: tables and plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import Result, Summary
from migrate.report import seconds, size

MISSING: Final = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; those of the first column say which setting it was."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value, with the least and the most that was seen."""

    x: float
    y: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together, in order."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture; ``name`` is that of its file."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    logarithmic_x: bool = False


def duration(value_s: float | None) -> str:
    """Seconds as people say them."""
    return MISSING if value_s is None else seconds(value_s)


def spread(found: Summary | None) -> str:
    """``median (least to most) unit``."""
    if found is None:
        return MISSING
    unit, factor = _unit(found["median"])
    least, middle, most = (factor * found[of] for of in ("min", "median", "max"))
    return f"{middle:.3g} ({least:.3g} to {most:.3g}) {unit}"


def tail(found: Summary | None) -> str:
    """``p90 / p99 unit``."""
    if found is None:
        return MISSING
    unit, factor = _unit(found["p90"])
    return f"{factor * found['p90']:.3g} / {factor * found['p99']:.3g} {unit}"


def _unit(value_s: float) -> tuple[str, float]:
    return ("ms", 1e3) if value_s < 1 else ("s", 1.0)


def rate(value_bytes_per_s: float | None) -> str:
    """Bytes per second as people say them; 0 is 0."""
    return MISSING if value_bytes_per_s is None else f"{size(value_bytes_per_s)}/s"


def share(value: float | None) -> str:
    """A ratio with two digits behind the point."""
    return MISSING if value is None else f"{value:.2f}"


def failures(result: Result) -> str:
    """``4 of 5``: how many runs went well."""
    return f"{result['runs'] - len(result['failures'])} of {result['runs']}"


def points(
    results: Sequence[Result], x: str, y: str, *, x_unit: float = 1, y_unit: float = 1
) -> tuple[Point, ...]:
    """Of results that have a summary under ``y``, in units that people like to read."""
    found: list[Point] = []
    for result in results:
        summary: Summary | None = result[y]
        if summary is not None:
            values = (summary[of] / y_unit for of in ("median", "min", "max"))
            found.append(Point(result[x] / x_unit, *values))
    return tuple(sorted(found, key=lambda point: point.x))
