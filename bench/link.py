"""How well is a slow link used?"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product, starmap
from typing import Final

from bench import programs, trial
from bench.downtime import MIB, figures, move_memory, shape
from bench.figures import Result, ratio, summaries
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.presentation import (
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
from bench.wanted import Wanted
from migrate.demo.workload import Shape
from migrate.report import size

MBIT: Final = 125_000
_LINKS_BYTES_PER_S: Final = (100 * MBIT, 1000 * MBIT)
_SIZES_BYTES: Final = (256 * MIB,)
_RATES_BYTES_PER_S: Final = (0, 5 * MIB)
_RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """A link, and what is moved over it."""

    link_bytes_per_s: int
    size_bytes: int
    write_rate_bytes_per_s: int

    def __str__(self) -> str:
        return (
            f"{in_bits(self.link_bytes_per_s)}, {size(self.size_bytes)}, "
            f"{size(self.write_rate_bytes_per_s)}/s of writes"
        )

    def shape(self, wanted: Wanted) -> Shape:
        """The workload."""
        return shape(
            self.size_bytes,
            self.write_rate_bytes_per_s,
            heartbeat_us=wanted.heartbeat_us,
        )


def on_each(
    settings: Iterable[tuple[int, int, int]],
    tell: Tell,
    measure: Callable[[Ground, Setting], Result],
) -> list[Result]:
    """What ``measure`` found in each, with the setting itself."""
    found = []
    with ground(programs.demo()) as place:
        for setting in starmap(Setting, settings):
            tell(str(setting))
            found.append({**asdict(setting), **measure(place, setting)})
    return found


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    settings = product(
        wanted.link_rates_bytes_per_s or _LINKS_BYTES_PER_S,
        wanted.sizes_bytes or _SIZES_BYTES,
        wanted.write_rates_bytes_per_s or _RATES_BYTES_PER_S,
    )
    return on_each(settings, tell, partial(_one, wanted, tell))


def _one(wanted: Wanted, tell: Tell, place: Ground, setting: Setting) -> Result:
    link_bytes_per_s = setting.link_bytes_per_s
    with shaped(place, link_bytes_per_s):
        trials, failed = trial.repeat(
            wanted.runs or _RUNS,
            lambda: move_memory(place, setting.shape(wanted), wanted.move_options()),
            tell,
        )
    first = [one.moved.report.rounds[0] for one in trials]
    rates = [
        {
            "wire_bytes_per_s": ratio(record.bytes_wire, record.duration_s),
            "memory_bytes_per_s": ratio(record.bytes_raw, record.duration_s),
        }
        for record in first
    ]
    found = summaries(rates, "wire_bytes_per_s", "memory_bytes_per_s")
    return {
        "content": "incompressible",
        **figures(trials, failed),
        **found,
        **{
            f"{name}_of_link": _of_link(found[f"{name}_bytes_per_s"], link_bytes_per_s)
            for name in ("wire", "memory")
        },
    }


def _of_link(found: dict[str, float] | None, link_bytes_per_s: int) -> float | None:
    return None if found is None else ratio(found["median"], link_bytes_per_s)


def in_bits(link_bytes_per_s: int) -> str:
    """The rate of a link as people say it."""
    if link_bytes_per_s == 0:
        return "unlimited"
    return f"{link_bytes_per_s / MBIT:g} Mbit/s"


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("link", "memory", "writes", "wire of link", "memory of link"),
            *("downtime", "its own gap", "in all", "runs"),
        ),
        tuple(
            (
                in_bits(result["link_bytes_per_s"]),
                size(result["size_bytes"]),
                rate(result["write_rate_bytes_per_s"]),
                share(result["wire_of_link"]),
                share(result["memory_of_link"]),
                spread(result["downtime_s"]),
                spread(result["heartbeat_gap_s"]),
                spread(result["total_s"]),
                failures(result),
            )
            for result in results
        ),
    )


def _plots(results: Sequence[Result]) -> list[Plot]:
    series = [
        Series(
            f"{size(of)}/s of writes",
            points(
                [r for r in results if r["write_rate_bytes_per_s"] == of],
                "link_bytes_per_s",
                "total_s",
                x_unit=MBIT,
            ),
        )
        for of in dict.fromkeys(r["write_rate_bytes_per_s"] for r in results)
    ]
    return [
        Plot(
            "link",
            "A whole move by link",
            "link, Mbit/s",
            "seconds",
            tuple(series),
            logarithmic_x=True,
        )
    ]


LINK: Final = Measurement(
    name="link",
    question=(__doc__ or "").strip(),
    remarks=(
        "Both ends of the link are limited with tbf. What the wire carried in the "
        "first round, headers of ours and not of TCP counted, and how much memory that "
        "was, as shares of the rate of the link."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
