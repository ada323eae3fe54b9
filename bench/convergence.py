"""Up to which write rate does pre-copy catch up, and what happens beyond?"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Final

from bench import trial
from bench.downtime import MIB, figures, move_memory
from bench.figures import Result, middle, ratio, summaries
from bench.ground import Ground, TrialFailed
from bench.link import MBIT, Setting, in_bits, on_each
from bench.measurement import Measurement, Tell
from bench.presentation import (
    MISSING,
    Plot,
    Series,
    Table,
    failures,
    points,
    rate,
    share,
    spread,
)
from bench.shaped_link import shaped
from bench.trial import Trial
from bench.wanted import Wanted
from migrate.demo.workload import Status, Workload
from migrate.report import size
from migrate.testbed import HostProcess
from precopy.ids import PAGE_BYTES

_SIZES_BYTES: Final = (256 * MIB,)
_LINKS_BYTES_PER_S: Final = (1000 * MBIT,)
_RATES_BYTES_PER_S: Final = tuple(mib * MIB for mib in (0, 25, 50, 75, 100, 150, 200))
_RUNS: Final = 3
_STALL: Final = "stop-and-copy"


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    settings = product(
        wanted.link_rates_bytes_per_s or _LINKS_BYTES_PER_S,
        wanted.sizes_bytes or _SIZES_BYTES,
        wanted.write_rates_bytes_per_s or _RATES_BYTES_PER_S,
    )
    return on_each(settings, tell, partial(_one, wanted, tell))


def _one(wanted: Wanted, tell: Tell, place: Ground, setting: Setting) -> Result:
    what = setting.shape(wanted)
    options = [*wanted.move_options(), "--on-stall", _STALL]
    achieved: list[Result] = []

    def once() -> Trial:
        earlier: list[Status] = []

        def look(process: HostProcess) -> None:
            with Workload(process.pid) as here:
                earlier.append(here.status())

        found = move_memory(place, what, options, before=look)
        written = _written_bytes_per_s(earlier[0], found.status)
        achieved.append({"achieved_bytes_per_s": written, **_effort(found)})
        return found

    with shaped(place, setting.link_bytes_per_s):
        trials, failed = trial.repeat(wanted.runs or _RUNS, once, tell)
    return {
        "on_stall": _STALL,
        **figures(trials, failed),
        **summaries(achieved, "rounds", "sent_of_memory"),
        "achieved_bytes_per_s": middle(achieved, "achieved_bytes_per_s"),
    }


def _written_bytes_per_s(earlier: Status, later: Status) -> float:
    """What the writer managed, its standstill included."""
    passed_s = (later.last_beat_ns - earlier.last_beat_ns) / 1e9
    if passed_s <= 0:
        raise TrialFailed("The heart of the workload did not beat while it was moved.")
    return (later.pages_written - earlier.pages_written) * PAGE_BYTES / passed_s


def _effort(found: Trial) -> Result:
    report = found.moved.report
    return {
        "rounds": len(report.rounds),
        "sent_of_memory": ratio(report.bytes_wire, report.resident_bytes),
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("link", "memory", "writes asked", "writes done", "rounds"),
            *("sent of memory", "downtime", "its own gap", "in all", "runs"),
        ),
        tuple(
            (
                in_bits(result["link_bytes_per_s"]),
                size(result["size_bytes"]),
                rate(result["write_rate_bytes_per_s"]),
                rate(result["achieved_bytes_per_s"]),
                MISSING
                if result["rounds"] is None
                else f"{result['rounds']['median']:g}",
                share(result["sent_of_memory"] and result["sent_of_memory"]["median"]),
                spread(result["downtime_s"]),
                spread(result["heartbeat_gap_s"]),
                spread(result["total_s"]),
                failures(result),
            )
            for result in results
        ),
    )


def _plots(results: Sequence[Result]) -> list[Plot]:
    def by(figure: str, said: str, unit: float) -> tuple[Series, ...]:
        return tuple(
            Series(
                f"{in_bits(link)}: {said}",
                points(
                    [r for r in results if r["link_bytes_per_s"] == link],
                    "write_rate_bytes_per_s",
                    figure,
                    x_unit=MIB,
                    y_unit=unit,
                ),
            )
            for link in dict.fromkeys(r["link_bytes_per_s"] for r in results)
        )

    x_label = "writes asked for, MiB/s"
    return [
        Plot(
            "convergence",
            "Downtime by write rate",
            x_label,
            "ms",
            by("downtime_s", "downtime", 1e-3),
        ),
        Plot(
            "convergence-total",
            "A whole move by write rate",
            x_label,
            "seconds",
            by("total_s", "in all", 1),
        ),
    ]


CONVERGENCE: Final = Measurement(
    name="convergence",
    question=(__doc__ or "").strip(),
    remarks=(
        "Every write makes another page dirty, at random. A writer that outruns the "
        f"link is met with --on-stall {_STALL}."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
