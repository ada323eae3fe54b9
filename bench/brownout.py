"""What does a program feel while its memory is being copied?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import meter, programs, trial
from bench.downtime import MIB, figures
from bench.figures import Result, ratio, summary
from bench.ground import Ground, ground
from bench.measurement import Measurement, Tell
from bench.meter import Phase
from bench.presentation import Plot, Point, Series, Table, duration, failures, share
from bench.trial import Trial
from bench.waiting import let_it_live
from bench.wanted import Wanted
from migrate.testbed import HostProcess
from precopy.ids import PAGE_BYTES

_SIZE_BYTES: Final = 512 * MIB
_RATE_BYTES_PER_S: Final = 20 * MIB
_REQUESTS_PER_S: Final = 10_000
_RUNS: Final = 3
PHASES: Final = ("before", "precopy", "after")
PERCENTS: Final = (50, 90, 99, 99.9)


@dataclass(slots=True)
class Watch:
    """What was seen of one workload in all its runs."""

    window_s: float
    phases: dict[str, list[Phase]] = field(
        default_factory=lambda: {name: [] for name in PHASES}
    )
    ratios: list[float] = field(default_factory=list)
    longest_s: list[float] = field(default_factory=list)
    _undisturbed_until_ns: int = 0

    def before(self, process: HostProcess) -> None:
        """Let it run undisturbed."""
        let_it_live(process.pid, self.window_s)
        intervals = meter.read(process.pid)
        self._undisturbed_until_ns = max(i.start_ns for i in intervals)

    def after(self, process: HostProcess, found: Trial) -> None:
        """Let it run on, then read what it has metered all the time."""
        let_it_live(process.pid, self.window_s)
        intervals = meter.read(process.pid)
        window_ns = int(self.window_s * 1e9)
        frozen = found.freeze_gap
        last_ns = max(interval.start_ns for interval in intervals)
        began_ns, until_ns = found.moved.began_ns, self._undisturbed_until_ns
        phases = {
            "before": Phase.of(intervals, until_ns - window_ns, until_ns),
            "precopy": Phase.of(intervals, began_ns, frozen.start_ns),
            "after": Phase.of(
                intervals, max(frozen.end_ns, last_ns - window_ns), last_ns
            ),
        }
        for name, phase in phases.items():
            self.phases[name].append(phase)
        compared = ratio(phases["precopy"].per_s, phases["before"].per_s)
        if compared is not None:
            self.ratios.append(compared)
        since = [i.longest_ns for i in intervals if i.end_ns > began_ns]
        self.longest_s.append(max(since, default=0) / 1e9)

    def result(self) -> Result:
        """Of all runs together."""
        pooled = {name: meter.together(phases) for name, phases in self.phases.items()}
        before, precopy = pooled["before"], pooled["precopy"]
        p99_before_s, p99_s = before.percentile_s(99), precopy.percentile_s(99)
        return {
            "throughput_ratio": ratio(precopy.per_s, before.per_s),
            "p99_added_s": None
            if p99_s is None or p99_before_s is None
            else p99_s - p99_before_s,
            "throughput_ratio_spread": summary(self.ratios),
            "longest_latency_s": summary(self.longest_s),
            "phases": {name: _phase(phase) for name, phase in pooled.items()},
        }


def _phase(phase: Phase) -> Result:
    return {
        "duration_s": phase.duration_s,
        "per_s": phase.per_s,
        **{f"p{of:g}_s": phase.percentile_s(of) for of in PERCENTS},
        "longest_s": phase.longest_s,
    }


def _measure(wanted: Wanted, tell: Tell) -> list[Result]:
    sizes = wanted.sizes_bytes or (_SIZE_BYTES,)
    rates = wanted.write_rates_bytes_per_s or (_RATE_BYTES_PER_S,)
    with ground(programs.store(), programs.stream()) as place:
        return [
            _one(place, wanted, tell, name, program, asked, size_bytes, rate)
            for size_bytes in sizes
            for rate in rates
            for name, program, asked in (
                ("memory", programs.stream(), []),
                ("store, as fast as it can", programs.store(), [0]),
                ("store, in its own time", programs.store(), [_REQUESTS_PER_S]),
            )
        ]


def _one(
    place: Ground,
    wanted: Wanted,
    tell: Tell,
    name: str,
    program: Path,
    asked: list[int],
    size_bytes: int,
    rate_bytes_per_s: int,
) -> Result:
    tell(f"{name}: {size_bytes >> 20} MiB")
    watch = Watch(wanted.window_s)
    numbers = (
        size_bytes // MIB,
        *asked,
        rate_bytes_per_s // PAGE_BYTES,
        wanted.heartbeat_us,
    )
    trials, failed = trial.repeat(
        wanted.runs or _RUNS,
        lambda: trial.run(
            place,
            [str(program), *map(str, numbers)],
            size_bytes=size_bytes,
            options=wanted.move_options(),
            before=watch.before,
            after=watch.after,
        ),
        tell,
    )
    return {
        "workload": name,
        "size_bytes": size_bytes,
        "write_rate_bytes_per_s": rate_bytes_per_s,
        "requests_per_s": asked[0] if asked else None,
        **figures(trials, failed),
        **watch.result(),
    }


def _table(results: Sequence[Result]) -> Table:
    return Table(
        (
            *("workload", "done per s before", "in pre-copy, of that", "p99 before"),
            *("p99 in pre-copy", "p99 after", "longest of all", "runs"),
        ),
        tuple(
            (
                f"{result['workload']}, {result['size_bytes'] >> 20} MiB",
                _count(result["phases"]["before"]["per_s"]),
                share(result["throughput_ratio"]),
                *(duration(result["phases"][name]["p99_s"]) for name in PHASES),
                duration(
                    result["longest_latency_s"] and result["longest_latency_s"]["max"]
                ),
                failures(result),
            )
            for result in results
        ),
    )


def _count(per_s: float | None) -> str:
    return duration(None) if per_s is None else f"{per_s:,.0f}"


def _plots(results: Sequence[Result]) -> list[Plot]:
    return [
        Plot(
            f"brownout-{number}",
            f"Latency: {result['workload']}",
            "percentile",
            "ms",
            tuple(
                Series(
                    name,
                    tuple(
                        Point(of, *(3 * [value * 1e3]))
                        for of in PERCENTS
                        if (value := result["phases"][name][f"p{of:g}_s"]) is not None
                    ),
                )
                for name in PHASES
            ),
        )
        for number, result in enumerate(results, 1)
    ]


BROWNOUT: Final = Measurement(
    name="brownout",
    question=(__doc__ or "").strip(),
    remarks=(
        "Pre-copy is counted from the start of the command to the freeze. Source and "
        "destination share the CPUs here, which two hosts do not. A store with its own "
        "time gets a request whenever one is due and counts the time that it waits in "
        "line. Latencies are exact to 12.5 %."
    ),
    measure=_measure,
    table=_table,
    plots=_plots,
)
