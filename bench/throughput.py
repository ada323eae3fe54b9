"""How fast does memory travel, beside what this machine does at best?"""

from collections.abc import Mapping, Sequence
from typing import Final

from bench import programs, raw_loops, trial
from bench.downtime import MIB, move_memory, shape
from bench.figures import Result, middle, ratio, summaries
from bench.ground import Ground, TrialFailed, ground
from bench.measurement import Measurement, Tell
from bench.presentation import Plot, Point, Series, Table, failures, rate, share
from bench.trial import Trial
from bench.wanted import Wanted
from migrate.report import size

_SIZES_BYTES: Final = (1024 * MIB,)
_RUNS: Final = 5


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    with ground(programs.demo(), programs.raw()) as place:
        return [
            _one(place, wanted, tell, size_bytes)
            for size_bytes in wanted.sizes_bytes or _SIZES_BYTES
        ]


def _one(place: Ground, wanted: Wanted, tell: Tell, size_bytes: int) -> Result:
    tell(f"{size(size_bytes)} of what cannot be compressed")
    loops: list[Result] = []

    def once() -> Trial:
        # Each run with its own loops: the machine is not the same all the time.
        raw = {
            "raw_tls": raw_loops.tls(place, size_bytes),
            "raw_tcp": raw_loops.tcp(place, size_bytes),
            "raw_copy": raw_loops.copy(place, size_bytes),
        }
        found = move_memory(place, shape(size_bytes), wanted.move_options())
        loops.append(_sample(found, raw))
        return found

    _, failed = trial.repeat(wanted.runs or _RUNS, once, tell)
    return {
        "size_bytes": size_bytes,
        "runs": wanted.runs or _RUNS,
        "failures": failed,
        **{name: middle(loops, name) for name in _FIGURES},
        "ratio_is_to": "raw_tls_bytes_per_s",
        "spread": summaries(loops, *_FIGURES),
        "samples": loops,
    }


_FIGURES: Final = (
    "bytes_per_s",
    "raw_tls_bytes_per_s",
    "raw_tcp_bytes_per_s",
    "raw_copy_bytes_per_s",
    "ratio",
    "ratio_to_raw_tcp",
    "ratio_to_raw_copy",
)


def _sample(found: Trial, raw: Mapping[str, raw_loops.Loop]) -> Result:
    first = found.moved.report.rounds[0]
    if not first.duration_s:
        raise TrialFailed("The first round took no time.")
    per_s = first.bytes_wire / first.duration_s
    return {
        "bytes_per_s": per_s,
        **{f"{name}_bytes_per_s": loop.bytes_per_s for name, loop in raw.items()},
        "ratio": ratio(per_s, raw["raw_tls"].bytes_per_s),
        "ratio_to_raw_tcp": ratio(per_s, raw["raw_tcp"].bytes_per_s),
        "ratio_to_raw_copy": ratio(per_s, raw["raw_copy"].bytes_per_s),
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("memory", "round 1", "raw TLS", "raw TCP", "raw memcpy"),
            *("of raw TLS", "of raw TCP", "of memcpy", "runs"),
        ),
        tuple(
            (
                size(result["size_bytes"]),
                rate(result["bytes_per_s"]),
                rate(result["raw_tls_bytes_per_s"]),
                rate(result["raw_tcp_bytes_per_s"]),
                rate(result["raw_copy_bytes_per_s"]),
                share(result["ratio"]),
                share(result["ratio_to_raw_tcp"]),
                share(result["ratio_to_raw_copy"]),
                failures(result),
            )
            for result in results
        ),
    )


def _plots(results: Sequence[Result]) -> list[Plot]:
    series = []
    for name, said in (
        ("bytes_per_s", "round 1"),
        ("raw_tls_bytes_per_s", "raw TLS"),
        ("raw_tcp_bytes_per_s", "raw TCP"),
        ("raw_copy_bytes_per_s", "raw memcpy"),
    ):
        found = [
            Point(
                result["size_bytes"] / MIB,
                *(
                    result["spread"][name][key] / MIB
                    for key in ("median", "min", "max")
                ),
            )
            for result in results
            if result["spread"][name] is not None
        ]
        series.append(Series(said, tuple(found)))
    return [Plot("throughput", "Throughput", "memory, MiB", "MiB/s", tuple(series))]


THROUGHPUT: Final = Measurement(
    name="throughput",
    question=(__doc__ or "").strip(),
    remarks=(
        "The first round, in which all of the memory goes, counted on the wire; beside "
        "it a raw loop over one blocking TLS socket, one of write(2) and read(2) over "
        "the same link, and memcpy, each measured just before."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
