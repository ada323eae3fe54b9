"""One run: start a workload, move it, and have it say what it saw."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from bench.figures import Result
from bench.ground import Ground, Moved, TrialFailed, warm
from migrate.demo import workload
from migrate.demo.workload import Gap, Status, Workload, WorkloadError
from migrate.testbed import HostProcess
from precopy.errors import TaskVanished

_VERIFY_WITHIN_S: Final = 600.0
NO_CLIENT: Final = "the workload has no sockets, so nobody outside can watch it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of one run in which all went well."""

    moved: Moved
    status: Status  # of the workload at the destination
    gaps: tuple[Gap, ...]  # all long ones since just before the move, oldest first

    @property
    def downtime_s(self) -> float:
        """As we count it: pauses that pre-copy made are downtime, too."""
        return self.frozen_s + self.pause_s

    @property
    def frozen_s(self) -> float:
        """The downtime of the report."""
        assert self.moved.report.downtime_s is not None
        return self.moved.report.downtime_s

    @property
    def pause_s(self) -> float:
        return sum(record.pause_s for record in self.moved.report.rounds)

    @property
    def freeze_gap(self) -> Gap:
        """The gap that the freeze made: of all long ones the one most like it."""
        return min(
            (*self.gaps, self.status.longest_gap),
            key=lambda gap: abs(gap.length_s - self.frozen_s),
        )

    @property
    def precopy_gap_s(self) -> float | None:
        """The longest gap before the freeze; None if none was worth noting."""
        frozen = self.freeze_gap
        before = [g.length_s for g in self.gaps if g.end_ns <= frozen.start_ns]
        return max(before, default=None)

    def sample(self) -> Result:
        """All figures of this run."""
        report = self.moved.report
        return {
            "downtime_s": self.downtime_s,
            "frozen_s": self.frozen_s,
            "pause_s": self.pause_s,
            "downtime_parts_s": report.downtime_parts_s.by_name(),
            "heartbeat_gap_s": self.status.longest_gap.length_s,
            "precopy_gap_s": self.precopy_gap_s,
            "total_s": report.total_s,
            "command_s": self.moved.command_s,
            "rounds": len(report.rounds),
            "bytes_raw": report.bytes_raw,
            "bytes_wire": report.bytes_wire,
            "source_cpu_s": self.moved.source_cpu_s,
            "destination_cpu_s": self.moved.destination_cpu_s,
            "tracker": report.tracker,
        }


def nothing(*_: object) -> None:
    """What most benches want to do before and after."""


def run(
    ground: Ground,
    argv: Sequence[str],
    *,
    size_bytes: int,
    huge: bool = False,
    options: Sequence[str] = (),
    before: Callable[[HostProcess], None] = nothing,
    after: Callable[[HostProcess, Trial], None] = nothing,
) -> Trial:
    """Start ``argv`` on one host and move it to the other, where it verifies itself.

    ``before`` sees the process as soon as it is ready, ``after`` as soon as it has been
    moved. The process has ended when this returns.

    Raises:
        TrialFailed: it did not start, did not arrive, or is not what it was.
    """
    # Room at both ends: at the source before it starts, at the destination later.
    warm(2 * size_bytes, huge=huge)
    with ExitStack() as at_the_end:
        try:
            process, original = workload.launch(argv, host=ground.a)
        except WorkloadError as error:
            raise TrialFailed(str(error)) from error
        assert isinstance(process, HostProcess)
        at_the_end.callback(process.close)
        at_the_end.callback(process.kill)
        at_the_end.callback(original.close)
        before(process)
        warm(size_bytes, huge=huge)
        original.forget_gaps()
        moved = ground.move(process.pid_inside, options)
        arrived = at_the_end.enter_context(ground.arrived(moved.report))
        at_the_end.callback(arrived.kill)
        there = at_the_end.enter_context(Workload(arrived.pid))
        trial = Trial(moved=moved, status=there.status(), gaps=tuple(there.gaps()))
        after(arrived, trial)
        _require_well(arrived, there)
    return trial


def _require_well(arrived: HostProcess, there: Workload) -> None:
    try:
        well = there.verify(_VERIFY_WITHIN_S)
        faults = there.status().faults
        there.quit()
    except (TimeoutError, TaskVanished) as error:
        raise TrialFailed(f"It arrived, but does not live: {error}.") from error
    code = arrived.wait()
    if not well or faults or code != 0:
        raise TrialFailed(f"It arrived, but is not what it was: {faults}; {code}.")


def repeat(
    runs: int, once: Callable[[], Trial], tell: Callable[[str], None]
) -> tuple[list[Trial], list[str]]:
    """Run so many times; the trials that went well, and what the others said."""
    trials: list[Trial] = []
    failures: list[str] = []
    for number in range(1, runs + 1):
        try:
            trial = once()
        except TrialFailed as failed:
            failures.append(str(failed))
            tell(f"  run {number} of {runs} failed: {failed}")
            continue
        trials.append(trial)
        tell(
            f"  run {number} of {runs}: {1e3 * trial.downtime_s:.2f} ms, "
            f"its own gap {1e3 * trial.status.longest_gap.length_s:.2f} ms"
        )
    return trials, failures
