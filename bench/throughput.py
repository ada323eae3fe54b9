"""How fast does memory travel, beside what this machine does at best?"""

from collections.abc import Sequence
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
NO_TLS: Final = "there is no raw loop over TLS, so the ratio is to the raw TCP loop"


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
        tcp = raw_loops.tcp(place, size_bytes)
        copy = raw_loops.copy(place, size_bytes)
        found = move_memory(place, shape(size_bytes), wanted.move_options())
        loops.append(_sample(found, tcp, copy))
        return found

    _, failed = trial.repeat(wanted.runs or _RUNS, once, tell)
    return {
        "size_bytes": size_bytes,
        "runs": wanted.runs or _RUNS,
        "failures": failed,
        **{name: middle(loops, name) for name in _FIGURES},
        "raw_tls_bytes_per_s": None,
        "raw_tls_missing": NO_TLS,
        "ratio_is_to": "raw_tcp_bytes_per_s",
        "spread": summaries(loops, *_FIGURES),
        "samples": loops,
    }


_FIGURES: Final = (
    "bytes_per_s",
    "raw_tcp_bytes_per_s",
    "raw_copy_bytes_per_s",
    "ratio",
    "ratio_to_raw_copy",
)


def _sample(found: Trial, tcp: raw_loops.Loop, copy: raw_loops.Loop) -> Result:
    first = found.moved.report.rounds[0]
    if not first.duration_s:
        raise TrialFailed("The first round took no time.")
    per_s = first.bytes_wire / first.duration_s
    return {
        "bytes_per_s": per_s,
        "raw_tcp_bytes_per_s": tcp.bytes_per_s,
        "raw_copy_bytes_per_s": copy.bytes_per_s,
        "ratio": ratio(per_s, tcp.bytes_per_s),
        "ratio_to_raw_copy": ratio(per_s, copy.bytes_per_s),
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("memory", "round 1", "raw TCP", "raw memcpy"),
            *("of raw TCP", "of memcpy", "runs"),
        ),
        tuple(
            (
                size(result["size_bytes"]),
                rate(result["bytes_per_s"]),
                rate(result["raw_tcp_bytes_per_s"]),
                rate(result["raw_copy_bytes_per_s"]),
                share(result["ratio"]),
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
        "it a raw loop of blocking write(2) and read(2) over the same link, and "
        f"memcpy, each measured just before. Note: {NO_TLS}."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
