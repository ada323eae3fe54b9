"""The rounds before the freeze: how many, of what, and what to do when they stall."""

from typing import Final

from migrate.brake import Brakes
from migrate.errors import RolledBack
from migrate.options import MoveOptions, OnStall
from migrate.outgoing_tree import OutgoingTree, TakenTree
from migrate.progress import Progress
from migrate.report import size
from precopy.convergence import FIXED_S, Convergence, Decision
from precopy.rounds import RoundRecord

# What the freeze of one thread, its state and its thaw cost, all in all.
_THREAD_S: Final = 60e-6
# Ready answers the end of the pages, Accepted answers Go.
_ROUND_TRIPS: Final = 2


class PreCopy:
    """Sends memory while the process runs. ``brake`` stays the caller's."""

    def __init__(
        self,
        memory: OutgoingTree,
        brake: Brakes,
        options: MoveOptions,
        progress: Progress,
        *,
        round_trip_s: float,
        threads: int,
    ) -> None:
        self._memory = memory
        self._brake = brake
        self._options = options
        self._progress = progress
        self._convergence = Convergence(
            options.downtime_limit_s,
            options.rounds_max,
            fixed_s=FIXED_S + _ROUND_TRIPS * round_trip_s + _THREAD_S * threads,
        )

    def run(self) -> None:
        """Rounds until little enough is left for the freeze, or no more are allowed.

        Raises:
            RolledBack: they have stalled, and that was to be the end of it.
        """
        convergence = self._convergence
        taken, hold_back_hot = self._memory.take(), False
        while True:
            record = self._send(taken, hold_back_hot=hold_back_hot)
            taken = self._memory.take()
            convergence.record(record, taken.data_pages, taken.written_pages)
            self._progress.round_ended(
                record, convergence.estimate_s, convergence.downtime_limit_s
            )
            decision = convergence.decide()
            if decision is Decision.STALLED and self._slow_down():
                decision = Decision.ANOTHER
            if decision is not Decision.ANOTHER:
                break
            hold_back_hot = convergence.holds_back(taken.hot_pages, taken.data_pages)
        self._send(taken, hold_back_hot=True)

    def once_more(self) -> None:
        """A round of what was written since, right before the freeze."""
        self._send(self._memory.take(), hold_back_hot=True)

    def _send(self, taken: TakenTree, *, hold_back_hot: bool) -> RoundRecord:
        pages = taken.data_pages - (taken.hot_pages if hold_back_hot else 0)
        self._progress.round_started(len(self._memory.rounds) + 1, pages)
        record = self._memory.send_round(
            taken,
            hold_back_hot=hold_back_hot,
            progress=self._progress.round_progress,
        )
        record.pause_s = self._brake.pause_s()
        return record

    def _slow_down(self) -> bool:
        """The rounds have stalled: whether the process writes less from here."""
        convergence = self._convergence
        if self._options.on_stall is OnStall.ABORT:
            raise self._gave_up()
        if (
            self._options.on_stall is OnStall.STOP_AND_COPY
            or convergence.is_out_of_rounds
            or convergence.is_beyond_memory
            or not self._brake.harder()
        ):
            return False
        self._progress.slowing_down(self._brake.share)
        convergence.slowed_down()
        return True

    def _gave_up(self) -> RolledBack:
        convergence = self._convergence
        rounds = f"{convergence.rounds} round" + "s" * (convergence.rounds != 1)
        return RolledBack(
            f"It writes faster than the link carries: after {rounds} the downtime "
            f"would still be {convergence.estimate_s:.3f} s, and "
            f"{convergence.downtime_limit_s:.3f} s are allowed. It wrote to "
            f"{size(convergence.written_bytes_s)} a second; "
            f"{size(convergence.throughput_bytes_s)} a second were sent.",
            way_out="Raise --downtime-limit or choose --on-stall stop-and-copy.",
        )
