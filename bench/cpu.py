"""How much CPU time does a GiB cost at each end?"""

from collections.abc import Sequence
from typing import Final

from bench import programs, raw_loops, trial
from bench.downtime import MIB, move_memory, shape
from bench.figures import Result, middle, ratio, summaries
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.presentation import (
    Plot,
    Series,
    Table,
    duration,
    failures,
    points,
    share,
    spread,
)
from bench.trial import Trial
from bench.wanted import Wanted
from migrate.report import size

_SIZES_BYTES: Final = (64 * MIB, 1024 * MIB)
_RUNS: Final = 3
_GIB: Final = 1 << 30
_FIGURES: Final = (
    "source_cpu_s_per_gib",
    "destination_cpu_s_per_gib",
    "raw_tls_cpu_s_per_gib",
    "raw_copy_cpu_s_per_gib",
    "ratio",
)


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    with ground(programs.demo(), programs.raw()) as place:
        return [
            _one(place, wanted, tell, size_bytes)
            for size_bytes in wanted.sizes_bytes or _SIZES_BYTES
        ]


def _one(place: Ground, wanted: Wanted, tell: Tell, size_bytes: int) -> Result:
    tell(size(size_bytes))
    found: list[Result] = []

    def once() -> Trial:
        tls = raw_loops.tls(place, size_bytes)
        copy = raw_loops.copy(place, size_bytes)
        moved = move_memory(place, shape(size_bytes), wanted.move_options())
        found.append(_sample(moved, size_bytes, tls, copy))
        return moved

    _, failed = trial.repeat(wanted.runs or _RUNS, once, tell)
    return {
        "size_bytes": size_bytes,
        "runs": wanted.runs or _RUNS,
        "failures": failed,
        **summaries(found, *_FIGURES[:-1]),
        "ratio": middle(found, "ratio"),
        "samples": found,
    }


def _sample(
    found: Trial, size_bytes: int, tls: raw_loops.Loop, copy: raw_loops.Loop
) -> Result:
    gib = size_bytes / _GIB
    source = found.moved.source_cpu_s / gib
    destination = found.moved.destination_cpu_s / gib
    raw = tls.cpu_s_per_gib + 2 * copy.cpu_s_per_gib
    return {
        "source_cpu_s_per_gib": source,
        "destination_cpu_s_per_gib": destination,
        "raw_tls_cpu_s_per_gib": tls.cpu_s_per_gib,
        "raw_copy_cpu_s_per_gib": copy.cpu_s_per_gib,
        "ratio": ratio(source + destination, raw),
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("memory", "source", "destination", "raw TLS, both ends", "a copy"),
            *("of raw TLS and two copies", "runs"),
        ),
        tuple(
            (
                size(result["size_bytes"]),
                spread(result["source_cpu_s_per_gib"]),
                spread(result["destination_cpu_s_per_gib"]),
                _median(result, "raw_tls_cpu_s_per_gib"),
                _median(result, "raw_copy_cpu_s_per_gib"),
                share(result["ratio"]),
                failures(result),
            )
            for result in results
        ),
    )


def _median(result: Result, name: str) -> str:
    return duration(result[name] and result[name]["median"])


def _plots(results: Sequence[Result]) -> list[Plot]:
    series = tuple(
        Series(said, points(results, "size_bytes", name, x_unit=MIB))
        for name, said in (
            ("source_cpu_s_per_gib", "source"),
            ("destination_cpu_s_per_gib", "destination"),
            ("raw_tls_cpu_s_per_gib", "raw TLS, both ends"),
        )
    )
    return [
        Plot(
            "cpu",
            "CPU time for a GiB",
            "memory, MiB",
            "CPU seconds per GiB",
            series,
            logarithmic_x=True,
        )
    ]


CPU: Final = Measurement(
    name="cpu",
    question=(__doc__ or "").strip(),
    remarks=(
        "All CPU time of the command, and of the agent with its workers, from the "
        "start of Python to the end, divided by the memory of the process: a small one "
        "pays for the start."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
