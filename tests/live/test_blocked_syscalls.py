"""A thread that we stop inside a blocking system call does not notice.

The scenario's threads block in every way there is, for 1000 s or for ever. No test here
waits for any of them: the kernel is asked how long each still has to sleep.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from migrate.kernel import procfs, timer_list
from migrate.kernel.blocked_syscalls import (
    ERESTART_RESTARTBLOCK,
    TimedCall,
    remake_restart_blocks,
)
from migrate.kernel.remote import Remote
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Registers, Tracee
from precopy.ids import Pid, Tid
from tests.live.scenarios.harness import Ready, Scenario, tell_moved

LONG_NS = 1000 * 10**9
NANOSLEEP, POLL, FUTEX, CLOCK_NANOSLEEP, EPOLL_WAIT = 35, 7, 202, 230, 232


@contextmanager
def blocked(folder: Path) -> Iterator[tuple[Pid, Scenario, Ready]]:
    """The scenario, its threads blocking; at the end it must be content."""
    with Scenario("blocked_syscalls", folder, "sockets") as scenario:
        ready = scenario.ready()
        yield Pid(scenario.process.pid), scenario, ready
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []


@contextmanager
def stopped(
    sleepers: Sleepers, pid: Pid
) -> Iterator[tuple[Tracee, dict[Tid, TimedCall]]]:
    """The process, stopped and let go again as a move would."""
    sleepers.look()
    tracee = Tracee.seize(pid)
    try:
        yield tracee, sleepers.spare(tracee)
    finally:
        tracee.detach()


def fall_asleep(pid: Pid) -> None:
    """Wait until no thread runs any more but the leader, which naps."""
    deadline = time.monotonic() + 20
    for tid in procfs.threads(pid)[1:]:
        while procfs.read(pid, f"task/{tid}/syscall").startswith(b"running"):
            assert time.monotonic() < deadline, f"{tid} does not sleep"


def long_calls(calls: dict[Tid, TimedCall]) -> dict[Tid, TimedCall]:
    """Those that the scenario's threads sleep in; its leader naps for a millisecond."""
    return {tid: call for tid, call in list(calls.items()) if call.remaining_ns > 10**9}


def test_nobody_notices_five_stops(tmp_path: Path) -> None:
    """After several stops each still blocks, and then gets what it waits for."""
    with blocked(tmp_path) as (pid, _, _):
        sleepers = Sleepers(pid)
        for _ in range(5):
            with stopped(sleepers, pid):
                pass


def test_the_number_and_the_rest_of_each_sleep_are_known(tmp_path: Path) -> None:
    """Also at the second stop, at which the kernel calls them all restart_syscall."""
    with blocked(tmp_path) as (pid, _, _):
        sleepers = Sleepers(pid)
        last: dict[Tid, TimedCall] = {}
        for _ in "first", "second", "third":
            with stopped(sleepers, pid) as (_, calls):
                found = long_calls(calls)
            numbers = sorted(call.number for call in found.values())
            # epoll_wait is known by its timer alone, and not where those of other
            # programs on this machine look like it.
            if EPOLL_WAIT in numbers:
                numbers.remove(EPOLL_WAIT)
            assert numbers == sorted([NANOSLEEP] * 3 + [CLOCK_NANOSLEEP, POLL, FUTEX])
            for tid, call in found.items():
                # That it has been stopped is known to us a moment later.
                longest = time.monotonic_ns() + 3 * LONG_NS
                end_ns = last[tid].until_ns if tid in last else longest
                assert call.until_ns < end_ns + 10**9, call
            last = found
        if timer_list.read():
            for call in last.values():
                longer = 2 if call.number == EPOLL_WAIT else 0
                assert call.remaining_ns // LONG_NS == longer, "a sleep begins anew"


def test_a_restart_block_is_made_anew(tmp_path: Path) -> None:
    """A thread that has lost its restart block sleeps on for the time it is given."""
    with blocked(tmp_path) as (pid, _, _):
        sleepers = Sleepers(pid)
        with stopped(sleepers, pid) as (tracee, calls):
            with tracee.remote() as remote:
                remade = {
                    tid: half(remote.on(tid), tracee, tid, calls.get(tid))
                    for tid in tracee.tids
                }
            for tid, registers in remade.items():
                tracee.set_registers(tid, registers)
            halved = long_calls(calls)
        fall_asleep(pid)
        with stopped(sleepers, pid) as (_, calls):
            now = long_calls(calls)
        for tid, call in halved.items():
            if call.number == EPOLL_WAIT:
                continue  # has no restart block
            assert now[tid].remaining_ns <= call.remaining_ns // 2 + 10**9, call
            assert now[tid].remaining_ns > call.remaining_ns // 2 - 60 * 10**9, call


def half(remote: Remote, tracee: Tracee, tid: Tid, call: TimedCall | None) -> Registers:
    """Lose the thread's restart block, and make one with half of the time."""
    registers = tracee.registers(tid)
    if registers.error != ERESTART_RESTARTBLOCK or call is None:
        return registers
    now_ns = time.monotonic_ns()
    other = TimedCall(NANOSLEEP, now_ns + 5 * 10**9, exact=True)
    remake(remote, tracee, replace(registers, rsi=0), other)
    remote.reset()
    mine = replace(call, until_ns=now_ns + call.remaining_ns // 2)
    return remake(remote, tracee, registers, mine)


def remake(
    remote: Remote, tracee: Tracee, registers: Registers, call: TimedCall | None
) -> Registers:
    """One restart block, that of the thread that ``remote`` is of."""
    slept = [(remote.tid, registers.to_bytes(), call)]
    (resumed,) = remake_restart_blocks(remote, tracee, slept)
    return Registers.from_bytes(resumed)


def test_a_sleep_that_ended_meanwhile_is_over(tmp_path: Path) -> None:
    """Made anew after its end, it does not wait again: it has timed out."""
    with Scenario("blocked_syscalls", tmp_path) as scenario:
        scenario.ready()
        sleepers = Sleepers(Pid(scenario.process.pid))
        with stopped(sleepers, Pid(scenario.process.pid)) as (tracee, calls):
            tid = next(t for t, c in calls.items() if c.number == POLL and c.until_ns)
            past = replace(calls[tid], until_ns=time.monotonic_ns() - 1)
            with tracee.remote() as remote:
                over = remake(remote.on(tid), tracee, tracee.registers(tid), past)
            tracee.set_registers(tid, over)
            # To the entry of restart_syscall, if need be, and out of it.
            while tracee.registers(tid).rax:
                tracee.to_syscall_stop(tid)


def test_a_call_that_is_over_at_once_gives_its_result(tmp_path: Path) -> None:
    """A futex whose word is another by now says so, as it would have anyway."""
    with Scenario("blocked_syscalls", tmp_path) as scenario:
        scenario.ready()
        sleepers = Sleepers(Pid(scenario.process.pid))
        with stopped(sleepers, Pid(scenario.process.pid)) as (tracee, calls):
            tid = next(
                t for t, c in calls.items() if c.number == FUTEX and c.remaining_ns
            )
            registers = tracee.registers(tid)
            tracee.memory.write(registers.rdi, b"\1\0\0\0")
            with tracee.remote() as remote:
                over = remake(remote.on(tid), tracee, registers, calls[tid])
            assert over.error == errno.EAGAIN
            assert over.rip == registers.rip


def test_a_call_that_nobody_knows_sees_EINTR(tmp_path: Path) -> None:
    """Without its number a call cannot be made again: the kernel would say the same."""
    with blocked(tmp_path) as (pid, _, _):
        with stopped(Sleepers(pid), pid) as (tracee, calls):
            tid = next(t for t, c in calls.items() if c.number == CLOCK_NANOSLEEP)
            registers = tracee.registers(tid)
            with tracee.remote() as remote:
                unknown = remake(remote.on(tid), tracee, registers, None)
            assert unknown.error == errno.EINTR
