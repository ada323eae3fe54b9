"""What does encryption cost a move?"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from bench import programs, trial
from bench.downtime import MIB, move_memory, shape
from bench.figures import Result, middle, ratio, summaries
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.presentation import Plot, Series, Table, failures, points, share, spread
from bench.wanted import Wanted
from migrate.report import size

_SIZES_BYTES: Final = (2048 * MIB,)
_RUNS: Final = 3
_FIGURES: Final = ("total_s", "command_s", "frozen_s", "source_cpu_s")


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    with ground(programs.demo()) as secured:
        with ground(programs.demo(), module="bench.in_clear") as clear:
            return [
                _one(secured, clear, wanted, tell, size_bytes)
                for size_bytes in wanted.sizes_bytes or _SIZES_BYTES
            ]


def _one(
    secured: Ground, clear: Ground, wanted: Wanted, tell: Tell, size_bytes: int
) -> Result:
    runs, what = wanted.runs or _RUNS, shape(size_bytes)
    samples: dict[str, list[Result]] = {"tls": [], "clear": []}
    failed: list[str] = []
    # In turns: the machine is not the same all the time.
    for number in range(1, runs + 1):
        for name, place in (("tls", secured), ("clear", clear)):
            tell(f"{size(size_bytes)}, {name}, run {number} of {runs}")
            once = partial(move_memory, place, what, wanted.move_options())
            found, said = trial.repeat(1, once, tell)
            failed += said
            samples[name] += [one.sample() for one in found]
    figures = {
        f"{figure}_{name}": found
        for name, taken in samples.items()
        for figure, found in summaries(taken, *_FIGURES).items()
    }
    return {
        "size_bytes": size_bytes,
        "runs": runs,
        "failures": failed,
        **figures,
        **{
            f"{figure}_ratio": ratio(
                middle(samples["tls"], figure), middle(samples["clear"], figure)
            )
            for figure in _FIGURES
        },
        "samples": samples,
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("memory", "with TLS", "in clear", "ratio"),
            *("frozen, TLS", "frozen, clear", "runs"),
        ),
        tuple(
            (
                size(result["size_bytes"]),
                spread(result["total_s_tls"]),
                spread(result["total_s_clear"]),
                share(result["total_s_ratio"]),
                spread(result["frozen_s_tls"]),
                spread(result["frozen_s_clear"]),
                failures(result),
            )
            for result in results
        ),
    )


def _plots(results: Sequence[Result]) -> list[Plot]:
    series = [
        Series(said, points(results, "size_bytes", f"total_s_{name}", x_unit=MIB))
        for name, said in (("tls", "with TLS"), ("clear", "in clear"))
    ]
    axes = ("memory, MiB", "seconds")
    return [Plot("encryption", "A whole move", *axes, tuple(series))]


ENCRYPTION: Final = Measurement(
    name="encryption",
    question=(__doc__ or "").strip(),
    remarks=(
        "The same move of what cannot be compressed, in turns over TLS 1.3 and over "
        "bare TCP, between two pairs of hosts on one machine. Only the bench can leave "
        "TLS out."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
