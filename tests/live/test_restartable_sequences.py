"""A thread that we stop in the midst of a restartable sequence begins it anew."""

from pathlib import Path

from migrate.kernel.restartable_sequences import abort_sequences
from migrate.kernel.tracee import Tracee
from precopy.ids import Pid
from tests.live.scenarios.harness import Scenario, tell_moved


def test_code_of_ours_in_between_does_not_make_the_kernel_forget(
    tmp_path: Path,
) -> None:
    """The thread runs our code, comes back, and its sequence is still one."""
    with Scenario("restartable_sequence", tmp_path) as scenario:
        ready = scenario.ready()
        pid = Pid(scenario.process.pid)
        stopped_within = 0
        while stopped_within < 5:
            with Tracee.seize(pid) as tracee:
                tid = tracee.tids[0]
                before = tracee.registers(tid).rip
                abort_sequences(tracee)
                stopped_within += tracee.registers(tid).rip != before
                with tracee.remote() as remote:
                    assert remote.syscall("getpid") == pid
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []
