"""How long does a process stand still, by its size, write rate and pages?"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

from bench import criu, programs, trial
from bench.figures import Result, middle, summaries
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.presentation import (
    MISSING,
    Plot,
    Series,
    Table,
    failures,
    points,
    spread,
    tail,
)
from bench.trial import Trial
from bench.wanted import Pages, Wanted
from migrate.demo.workload import Shape
from migrate.report import DowntimeParts, size
from migrate.testbed import HostProcess

MIB: Final = 1 << 20
_SIZES_BYTES: Final = (64 * MIB, 512 * MIB, 2048 * MIB)
_RATES_BYTES_PER_S: Final = (0, 100 * MIB)
_RUNS: Final = 5


def shape(
    size_bytes: int,
    rate_bytes_per_s: int = 0,
    pages: Pages = Pages.SMALL,
    *,
    heartbeat_us: int = 1000,
) -> Shape:
    """The workload of ``migrate demo`` in that size."""
    return Shape(
        size_mib=max(1, size_bytes // MIB),
        rate_mib_s=rate_bytes_per_s // MIB,
        period_us=heartbeat_us,
        huge=pages is Pages.HUGE,
    )


def move_memory(
    place: Ground,
    what: Shape,
    options: Sequence[str],
    *,
    before: Callable[[HostProcess], None] = trial.nothing,
) -> Trial:
    """One run with the workload of ``migrate demo``."""
    return trial.run(
        place,
        [str(programs.demo()), *what.arguments()],
        size_bytes=what.size_mib * MIB,
        huge=what.huge,
        options=options,
        before=before,
    )


def parts(trials: Sequence[Trial]) -> dict[str, float | None]:
    """The median of each part of the downtime: they need not add up."""
    found = [t.moved.report.downtime_parts_s.by_name() for t in trials]
    return {name: middle(found, name) for name in DowntimeParts().by_name()}


def figures(trials: Sequence[Trial], failed: Sequence[str]) -> Result:
    """What every bench that moves something says of its runs."""
    samples = [one.sample() for one in trials]
    return {
        "tracker": samples[0]["tracker"] if samples else None,
        "runs": len(trials) + len(failed),
        "failures": list(failed),
        **summaries(
            samples,
            *("downtime_s", "heartbeat_gap_s", "precopy_gap_s"),
            *("frozen_s", "pause_s", "total_s", "command_s"),
        ),
        "downtime_parts_s": parts(trials),
        "samples": samples,
    }


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    settings = product(
        wanted.sizes_bytes or _SIZES_BYTES,
        wanted.write_rates_bytes_per_s or _RATES_BYTES_PER_S,
        wanted.pages or tuple(Pages),
    )
    peer = criu.program() if wanted.criu else None
    with ground(programs.demo(), *([peer] if peer else [])) as place:
        return [_one(place, wanted, tell, *setting) for setting in settings]


def _one(
    place: Ground,
    wanted: Wanted,
    tell: Tell,
    size_bytes: int,
    rate_bytes_per_s: int,
    pages: Pages,
) -> Result:
    tell(f"{size(size_bytes)}, {size(rate_bytes_per_s)}/s of writes, {pages.value}")
    what = shape(size_bytes, rate_bytes_per_s, pages, heartbeat_us=wanted.heartbeat_us)
    runs = wanted.runs or _RUNS
    trials, failed = trial.repeat(
        runs, lambda: move_memory(place, what, wanted.move_options()), tell
    )
    peer = {"criu": criu.measure(place, what, runs, tell)} if wanted.criu else {}
    return {
        "size_bytes": what.size_mib * MIB,
        "write_rate_bytes_per_s": what.rate_mib_s * MIB,
        "pages": pages.value,
        **figures(trials, failed),
        "client_gap_s": None,
        "client_gap_missing": trial.NO_CLIENT,
        "peer": peer,
    }


def _label(result: Result) -> str:
    return (
        f"{size(result['size_bytes'])}, {result['pages']}, "
        f"{size(result['write_rate_bytes_per_s'])}/s"
    )


def largest_part(result: Result) -> str:
    """Name and median of the longest part."""
    found = {k: v for k, v in result["downtime_parts_s"].items() if v is not None}
    if not found:
        return MISSING
    name = max(found, key=lambda key: found[key])
    return f"{name} {1e3 * found[name]:.2f} ms"


def _table(results: Sequence[Result]) -> Table:
    columns = [
        "memory, pages, writes",
        "downtime",
        "p90 / p99",
        "its own gap",
        "gap in pre-copy",
        "largest part",
        "in all",
        "runs",
    ]
    rows = [
        [
            _label(result),
            spread(result["downtime_s"]),
            tail(result["downtime_s"]),
            spread(result["heartbeat_gap_s"]),
            spread(result["precopy_gap_s"]),
            largest_part(result),
            spread(result["total_s"]),
            failures(result),
        ]
        for result in results
    ]
    if any(result["peer"] for result in results):
        columns.append("CRIU")
        for row, result in zip(rows, results, strict=True):
            row.append(criu.in_words(result["peer"].get("criu")))
    return Table(tuple(columns), tuple(map(tuple, rows)))


def _plots(results: Sequence[Result]) -> list[Plot]:
    return [
        _plot(results, "downtime", "downtime_s", "Downtime"),
        _plot(results, "heartbeat", "heartbeat_gap_s", "The longest gap that it saw"),
    ]


def _plot(results: Sequence[Result], name: str, figure: str, title: str) -> Plot:
    kinds = dict.fromkeys((r["write_rate_bytes_per_s"], r["pages"]) for r in results)
    series = tuple(
        Series(
            f"{size(rate)}/s of writes, {pages} pages",
            points(
                [
                    result
                    for result in results
                    if (result["write_rate_bytes_per_s"], result["pages"])
                    == (rate, pages)
                ],
                "size_bytes",
                figure,
                x_unit=MIB,
                y_unit=1e-3,
            ),
        )
        for rate, pages in kinds
    )
    return Plot(
        name, f"{title}, by size", "memory, MiB", "ms", series, logarithmic_x=True
    )


DOWNTIME: Final = Measurement(
    name="downtime",
    question=(__doc__ or "").strip(),
    remarks=(
        "Downtime is our own figure, with every pause that pre-copy made added to it; "
        "its own gap is the longest time between two heartbeats that the process "
        "itself wrote while it was moved. Median (least to most)."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
