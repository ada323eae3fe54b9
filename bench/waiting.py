"""Waiting for time to pass in the life of a process."""

from bench.ground import TrialFailed
from migrate.kernel.pidfds import PidFd
from precopy.ids import Pid


def let_it_live(pid: int, duration_s: float) -> None:
    """Wait so long.

    Raises:
        TrialFailed: it ended meanwhile.
    """
    with PidFd.open(Pid(pid)) as process:
        if process.wait(duration_s):
            raise TrialFailed(f"Process {pid} ended while it was being watched.")
