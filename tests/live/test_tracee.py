"""Tracee and Remote: calls made by another process, which never notices."""

import errno
import os
import signal
import struct
from pathlib import Path

import pytest

from migrate.kernel import procfs
from migrate.kernel.remote import WORKBENCH_BYTES, RemoteError, cstr
from migrate.kernel.tracee import Registers, Tracee
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid
from tests.live.victim import Victim, running

THREADS = """
import time
def breathe():
    while True:
        time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=breathe, daemon=True).start()
"""
HANDLES_EVERYTHING = """
for number in (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD):
    signal.signal(number, lambda *_: None)
"""


def visible(victim: Victim) -> tuple[str, list[str], str]:
    """What anybody can see of the process that an injection might have changed."""
    proc = Path(f"/proc/{victim.pid}")
    status = (proc / "status").read_text().splitlines()
    keep = ("TracerPid", "SigB", "SigC", "SigI", "SigP", "Shd", "Threads")
    return (
        (proc / "maps").read_text(),
        sorted(os.listdir(proc / "fd")),
        "\n".join(line for line in status if line.startswith(keep)),
    )


def test_a_batch_of_more_calls_than_the_table_holds_has_all_results() -> None:
    with running(THREADS) as victim:
        before = visible(victim)
        with Tracee.seize(victim.pid) as tracee, tracee.remote() as remote:
            batch = remote.batch()
            for _ in range(5000):
                batch.add("getppid")
            assert batch.run() == [os.getpid()] * 5000
            assert len(tracee.tids) == 4
            for tid in tracee.tids:
                assert remote.on(tid).syscall("gettid") == tid
        assert victim.answers()
        assert visible(victim) == before


def test_byte_arguments_are_passed_as_pointers() -> None:
    with (
        running() as victim,
        Tracee.seize(victim.pid) as tracee,
        tracee.remote() as remote,
    ):
        room = remote.space(64)
        length = remote.syscall("getcwd", room, 64)
        assert remote.read(room, length) == b"/\0"
        with pytest.raises(RemoteError) as caught:
            remote.syscall("openat", -100, cstr("/no/such/file"), 0, 0)
        assert caught.value.errno == errno.ENOENT


def test_a_failed_call_keeps_no_later_one_from_being_made() -> None:
    with (
        running() as victim,
        Tracee.seize(victim.pid) as tracee,
        tracee.remote() as remote,
    ):
        batch = remote.batch()
        batch.add("close", 999)
        batch.add("getpid")
        assert batch.run(check=False) == [-errno.EBADF, victim.pid]


def test_registers_and_vector_state_are_read_as_they_are_written() -> None:
    with running() as victim, Tracee.seize(victim.pid) as tracee:
        (state,) = tracee.states()
        tracee.set_states(tracee.tids, [state])
        assert tracee.states() == [state]
        registers = Registers.from_bytes(state.registers)
        assert registers.to_bytes() == state.registers
        assert registers == tracee.registers(tracee.tids[0])


def test_a_process_that_is_traced_already_is_left_alone() -> None:
    with running() as victim:
        child = os.fork()
        if child == 0:
            try:
                Tracee.seize(victim.pid)
                os.kill(os.getpid(), signal.SIGSTOP)
            finally:
                os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        with pytest.raises(KernelError) as caught:
            Tracee.seize(victim.pid)
        assert caught.value.errno == errno.EPERM
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert victim.answers()


def test_a_process_that_is_gone_is_said_to_be_gone() -> None:
    with running() as victim:
        victim.child.kill()
        victim.child.wait()
        with pytest.raises(TaskVanished):
            Tracee.seize(victim.pid)


def test_a_tracee_that_is_killed_in_a_batch_is_said_to_be_gone() -> None:
    with running() as victim, Tracee.seize(victim.pid) as tracee:
        with (
            pytest.raises(TaskVanished),
            tracee.remote() as remote,
        ):
            remote.syscall("tgkill", victim.pid, victim.pid, signal.SIGKILL)
        tracee.reap()


def test_a_process_that_handles_every_harmless_signal_is_refused_unharmed() -> None:
    with running(HANDLES_EVERYTHING) as victim:
        before = visible(victim)
        with (
            Tracee.seize(victim.pid) as tracee,
            pytest.raises(RemoteError),
            tracee.remote(),
        ):
            pytest.fail("the workbench is there")
        assert victim.answers()
        assert visible(victim) == before


@pytest.mark.parametrize("arranged", ["", THREADS])
def test_a_tracer_killed_in_the_middle_of_a_batch_harms_nobody(arranged: str) -> None:
    with running(arranged) as victim:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            _die_in_a_batch(victim.pid, theirs)
        os.close(theirs)
        # The tracee writes this in the middle of the batch, to our pipe's other end.
        os.read(ours, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
        # It wakes up from the batch by itself, and goes on where it was.
        assert victim.answers()
        assert procfs.status(victim.pid).tracer == 0
        assert procfs.status(victim.pid).signals.blocked == 0


def test_a_tracer_killed_with_its_workbench_open_harms_nobody() -> None:
    with running() as victim:
        child = os.fork()
        if child == 0:
            try:
                with Tracee.seize(victim.pid).remote():
                    os.kill(os.getpid(), signal.SIGSTOP)
            finally:
                os._exit(1)
        os.waitpid(child, os.WUNTRACED)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert victim.answers()


def _die_in_a_batch(pid: Pid, said: int) -> None:
    """In a child: be in a batch of the tracee that lasts, and say so."""
    try:
        tracee = Tracee.seize(pid)
        with tracee.remote() as remote:
            path = cstr(f"/proc/{os.getpid()}/fd/{said}")
            pipe = remote.syscall("openat", -100, path, os.O_WRONLY, 0)
            moment = remote.space(16)
            remote.write(moment, struct.pack("<qq", 1, 0))
            batch = remote.batch()
            batch.add("write", pipe, b"x", 1)
            batch.add("close", pipe)
            batch.add("nanosleep", moment, 0)
            batch.run()
    finally:
        os._exit(1)


def test_the_workbench_can_be_placed_and_leaves_no_trace() -> None:
    with running() as victim, Tracee.seize(victim.pid) as tracee:
        before = procfs.read_maps(victim.pid)
        place = 0x1000_0000_0000
        with tracee.remote(address=place) as remote:
            assert remote.syscall("getpid") == victim.pid
            found = procfs.read_maps(victim.pid).find(place)
            assert found is not None
            assert found.length == WORKBENCH_BYTES
        assert procfs.read_maps(victim.pid) == before
