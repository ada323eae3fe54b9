"""What do many threads, open files or mappings add to the downtime?"""

from collections.abc import Sequence
from typing import Final

from bench import downtime, programs, trial
from bench.figures import Result
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.presentation import Plot, Series, Table, failures, points, spread, tail
from bench.wanted import Wanted

THREADS: Final = 2  # of a crowd of one, and its heartbeat
_THREADS: Final = (100, 1000)
_FILES: Final = (1000, 10_000)
_VMAS: Final = (1000, 10_000)
_RUNS: Final = 5
_BYTES_EACH: Final = 32 << 10  # more than a thread, a file or a mapping takes


def settings(wanted: Wanted) -> list[dict[str, int]]:
    """One with nothing much, then each number that was asked for alone."""
    threads, files, vmas = wanted.threads, wanted.files, wanted.vmas
    if not (threads or files or vmas):
        threads, files, vmas = _THREADS, _FILES, _VMAS
    plain = {"threads": THREADS, "files": 0, "vmas": 0}
    alone = [
        {**plain, name: number}
        for name, numbers in (("threads", threads), ("files", files), ("vmas", vmas))
        for number in numbers
    ]
    return [plain, *alone]


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    with ground(programs.crowd()) as place:
        return [_one(place, wanted, tell, setting) for setting in settings(wanted)]


def _one(place: Ground, wanted: Wanted, tell: Tell, setting: dict[str, int]) -> Result:
    tell(_label(setting))
    numbers = [*setting.values(), wanted.heartbeat_us]
    argv = [str(programs.crowd()), *map(str, numbers)]
    trials, failed = trial.repeat(
        wanted.runs or _RUNS,
        lambda: trial.run(
            place,
            argv,
            size_bytes=sum(setting.values()) * _BYTES_EACH,
            options=wanted.move_options(),
        ),
        tell,
    )
    return {**setting, **downtime.figures(trials, failed)}


def _label(setting: Result) -> str:
    return (
        f"{setting['threads']} threads, {setting['files']} files, "
        f"{setting['vmas']} mappings"
    )


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("it has", "downtime", "p90 / p99", "its own gap", "gap in pre-copy"),
            *("largest part", "in all", "runs"),
        ),
        tuple(
            (
                _label(result),
                spread(result["downtime_s"]),
                tail(result["downtime_s"]),
                spread(result["heartbeat_gap_s"]),
                spread(result["precopy_gap_s"]),
                downtime.largest_part(result),
                spread(result["total_s"]),
                failures(result),
            )
            for result in results
        ),
    )


def _plots(results: Sequence[Result]) -> list[Plot]:
    plain, *others = results
    series = tuple(
        Series(name, points([plain, *more], name, "downtime_s", y_unit=1e-3))
        for name in ("threads", "files", "vmas")
        if (more := [other for other in others if other[name] != plain[name]])
    )
    return [Plot("scale", "Downtime by number", "how many", "ms", series)]


SCALE: Final = Measurement(
    name="scale",
    question=(__doc__ or "").strip(),
    remarks=(
        "A small process with so many threads that wait on a futex, descriptions of "
        "one open file with an offset each, or mappings of a page each. Median (least "
        "to most)."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
