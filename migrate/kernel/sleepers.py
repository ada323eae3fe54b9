"""The sleeping threads of one process, through all stops of a move.

A stop breaks their calls off (blocked_syscalls). How long each had still to sleep is
known from the call's own `rem` argument, or from /proc/timer_list read before and
after the stop: the timer that vanished was that of the sleeper.
"""

import struct
import time
from pathlib import Path
from typing import Final

from migrate.kernel import timer_list
from migrate.kernel.blocked_syscalls import (
    CLOCK_NANOSLEEP,
    EINTR,
    EPOLL_PWAIT2,
    EPOLL_TIMED,
    ERESTART_RESTARTBLOCK,
    FUTEX,
    NANOSLEEP,
    POLL,
    RESTART_SYSCALL,
    Blocked,
    TimedCall,
    cured,
    epoll_timeout_ms,
    low,
    original_number,
    parse_syscall,
    plainly_restarted,
    shortened,
)
from migrate.kernel.restartable_sequences import abort_sequences
from migrate.kernel.timer_list import Reading, Remaining, Sleeper, TimerBase
from migrate.kernel.tracee import Registers, Tracee
from precopy.errors import KernelError
from precopy.ids import Pid, Tid

_TIMESPEC: Final = struct.Struct("<qq")
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000
_FUTEX_REALTIME: Final = 0x100
_CLOCK_MONOTONIC: Final = 1
_CLOCK_BOOTTIME: Final = 7
_TIMER_ABSTIME: Final = 1
_KNOWN_WITHIN_NS: Final = 2 * _MS_NS  # between a stop and the reading after it
_SLACK_NS: Final = 50_000  # a task's timer slack unless it set another
# offsetof(struct user_regs_struct, …)
_RAX: Final = struct.Struct("<80xQ")
_ORIG_RAX: Final = struct.Struct("<120xQ")
_U64: Final = 1 << 64
_BROKEN_OFF: Final = frozenset({_U64 - EINTR, _U64 - ERESTART_RESTARTBLOCK})
_MAY_SLEEP_UNTIL: Final = frozenset({CLOCK_NANOSLEEP, FUTEX})


class Sleepers:
    """The sleeping threads of one process, through all stops of a move.

    Before each stop `look`, after it `spare`. What one stop taught (the number of a
    call that the next stop sees as restart_syscall) is remembered for the next.
    """

    def __init__(self, pid: Pid) -> None:
        self._pid = pid
        self._asleep: dict[Tid, Blocked] = {}  # at the last look
        self._slack_ns: dict[Tid, int] = {}
        self._issued: dict[Tid, Blocked] = {}  # with the program's own number
        self._before: Reading | None = None  # of timer_list
        self._remaining: dict[Tid, TimedCall] = {}
        self._stopped_ns = 0

    def look(self) -> None:
        """See who sleeps, and until when. All threads may be running."""
        self._asleep = _blocked(self._pid)
        self._slack_ns = {tid: _slack_ns(tid) for tid in self._asleep}
        text = timer_list.read() if self._asleep else None
        self._before = timer_list.parse(text) if text else None

    def spare(self, tracee: Tracee) -> dict[Tid, TimedCall]:
        """Have no thread see that it was stopped; what is left of each timed call.

        The threads have just been stopped, and have run nothing of ours since. Told
        are all whose call keeps a restart block, unless its number is known to nobody,
        and those in epoll_wait whose timeout is known.
        """
        # Before the list is read: no sleep may seem to last longer than it can.
        stopped_ns = self._stopped_ns = time.monotonic_ns()
        after = timer_list.read() if self._before else None
        now_ns = timer_list.taken_at_ns(after) if after else None
        every = tracee.every_registers()
        abort_sequences(tracee, every)
        unknown: dict[Tid, TimedCall] = {}
        found: dict[Tid, TimedCall] = {}
        sleepers: list[Sleeper] = []
        broken_off: list[tuple[Tid, Registers]] = []
        for tid, words in zip(tracee.tids, every, strict=True):
            if not _matters(words):
                continue
            registers = Registers.from_bytes(words)
            broken_off.append((tid, registers))
            number = self._number(tracee, tid, registers)
            if number is None:
                sleepers += self._absolute(tracee, tid, registers, now_ns)
                continue
            rest = _reported_ns(tracee, registers, number)
            requested = self._at_most_ns(tracee, tid, registers, number)
            if plainly_restarted(registers, number):
                found[tid] = TimedCall(number, 0, exact=True)
                sleepers += self._absolute(tracee, tid, registers, now_ns)
            elif rest is not None:
                found[tid] = TimedCall(number, stopped_ns + rest, exact=True)
                sleepers += self._relative(tid, registers, number, rest, known=True)
            elif requested is not None:
                unknown[tid] = TimedCall(number, stopped_ns + requested, exact=False)
                sleepers += self._relative(tid, registers, number, requested)
        found |= self._from_timers(after, sleepers, unknown)
        self._remaining = found
        for tid, registers in broken_off:
            self._cure(tracee, tid, registers)
        return found

    def _cure(self, tracee: Tracee, tid: Tid, broken_off: Registers) -> None:
        """Spare a stopped thread the EINTR of our making."""
        if registers := cured(broken_off):
            call = self._remaining.get(tid)
            if call is not None:
                registers = shortened(registers, call.remaining_ns)
            tracee.set_registers(tid, registers)

    def _number(self, tracee: Tracee, tid: Tid, registers: Registers) -> int | None:
        if registers.error == ERESTART_RESTARTBLOCK:
            earlier = self._issued.get(tid)
            number = original_number(registers, earlier, _code(tracee, registers))
            if number is not None:
                self._issued[tid] = Blocked.of(registers, number)
            return number
        if registers.error == EINTR and registers.orig_rax in EPOLL_TIMED:
            return registers.orig_rax
        return None

    def _at_most_ns(
        self, tracee: Tracee, tid: Tid, registers: Registers, number: int
    ) -> int | None:
        """What the program asked for, or what was left of that at the last stop."""
        requested = _requested_ns(tracee, registers, number)
        earlier = self._remaining.get(tid)
        if requested is None or earlier is None or earlier.number != number:
            return requested
        # restart_syscall goes on with a sleep; any other number begins a new one.
        goes_on = registers.orig_rax == RESTART_SYSCALL
        rest_ns = max(earlier.until_ns - self._stopped_ns, 0)
        return min(requested, rest_ns) if goes_on else requested

    def _relative(
        self,
        tid: Tid,
        registers: Registers,
        number: int,
        rest_ns: int,
        *,
        known: bool = False,
    ) -> list[Sleeper]:
        """The thread, if it was asleep at the last look; no more than ``rest_ns``."""
        if self._asleep.get(tid) != Blocked.of(registers):
            return []
        boottime = number == CLOCK_NANOSLEEP and registers.rdi == _CLOCK_BOOTTIME
        base = TimerBase.BOOTTIME if boottime else TimerBase.MONOTONIC
        slack_ns = self._slack_ns[tid]
        if known:
            # What it wrote is what was left until the latest moment, at the stop.
            return [
                Sleeper(
                    tid,
                    base,
                    rest_ns + _KNOWN_WITHIN_NS,
                    slack_ns,
                    rest_ns - slack_ns - _KNOWN_WITHIN_NS,
                )
            ]
        if number not in EPOLL_TIMED and number != POLL:
            return [Sleeper(tid, base, rest_ns, slack_ns)]
        # select_estimate_accuracy(): a thousandth of what it had to wait for when
        # it began, a two-hundredth if niced, and no less than the thread's own.
        share = min(rest_ns // 200, timer_list.SHARED_SLACK_NS_MAX)
        slack_ns = max(slack_ns, share)
        return [Sleeper(tid, base, rest_ns, slack_ns, slack_is_share=True)]

    def _absolute(
        self, tracee: Tracee, tid: Tid, registers: Registers, now_ns: int | None
    ) -> list[Sleeper]:
        """The thread, if it sleeps until a time of CLOCK_MONOTONIC."""
        if now_ns is None or self._asleep.get(tid) != Blocked.of(registers):
            return []
        end_ns = None
        if registers.orig_rax == CLOCK_NANOSLEEP and registers.rsi & _TIMER_ABSTIME:
            if registers.rdi == _CLOCK_MONOTONIC:
                end_ns = _read_timespec(tracee, registers.rdx)
        elif registers.orig_rax == FUTEX and not registers.rsi & _FUTEX_REALTIME:
            end_ns = _read_timespec(tracee, registers.r10)
        if end_ns is None:
            return []
        # In a time namespace of its own it counts otherwise, and nothing will fit.
        rest_ns = end_ns - now_ns
        return [
            Sleeper(tid, TimerBase.MONOTONIC, rest_ns, self._slack_ns[tid], rest_ns)
        ]

    def _from_timers(
        self,
        after: bytes | None,
        sleepers: list[Sleeper],
        unknown: dict[Tid, TimedCall],
    ) -> dict[Tid, TimedCall]:
        rest: dict[Tid, Remaining] = {}
        read_ns = 0
        if self._before and after and unknown:
            later = timer_list.parse_since(self._before, after)
            if later:
                rest = timer_list.remaining(self._before, later, sleepers)
                read_ns = later.now_ns
        return {
            tid: TimedCall(call.number, read_ns + rest[tid].ns, rest[tid].exact)
            if tid in rest
            else call
            for tid, call in unknown.items()
            # epoll_wait is issued again as it is, unless there is better.
            if tid in rest or call.number not in EPOLL_TIMED
        }


def _matters(words: bytes) -> bool:
    """Whether a thread needs a cure, or its sleep says something of the timers."""
    (rax,), (number,) = _RAX.unpack_from(words), _ORIG_RAX.unpack_from(words)
    return rax in _BROKEN_OFF or number in _MAY_SLEEP_UNTIL


def _requested_ns(tracee: Tracee, registers: Registers, number: int) -> int | None:
    """The timeout that the program asked for; None: there is none, or a bad one."""
    if number == POLL:
        return None if registers.rdx & 0x8000_0000 else low(registers.rdx) * _MS_NS
    if number in EPOLL_TIMED and number != EPOLL_PWAIT2:
        timeout_ms = epoll_timeout_ms(registers)
        return None if timeout_ms is None else timeout_ms * _MS_NS
    pointer = {
        NANOSLEEP: registers.rdi,
        CLOCK_NANOSLEEP: registers.rdx,
        FUTEX: registers.r10,
        EPOLL_PWAIT2: registers.r10,
    }.get(number, 0)
    return _read_timespec(tracee, pointer)


def _reported_ns(tracee: Tracee, registers: Registers, number: int) -> int | None:
    """What the broken-off call itself wrote as the rest, for who asked for it."""
    pointer = {NANOSLEEP: registers.rsi, CLOCK_NANOSLEEP: registers.r10}.get(number)
    return _read_timespec(tracee, pointer) if pointer else None


def _read_timespec(tracee: Tracee, pointer: int) -> int | None:
    try:
        seconds, ns = _TIMESPEC.unpack(tracee.memory.read(pointer, _TIMESPEC.size))
    except KernelError:
        return None
    # The kernel took it, but the memory is the program's, which may have changed it.
    if not (0 <= seconds < 1 << 33 and 0 <= ns < _NS):
        return None
    return int(seconds * _NS + ns)


def _code(tracee: Tracee, registers: Registers) -> bytes:
    if registers.orig_rax != RESTART_SYSCALL:
        return b""
    try:
        return tracee.memory.read(registers.rip - 7, 7)
    except KernelError:
        return b""


def _blocked(pid: Pid) -> dict[Tid, Blocked]:
    found = {}
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if blocked := parse_syscall((task / "syscall").read_bytes()):
                found[Tid(int(task.name))] = blocked
    except OSError:
        # Not allowed to, or a thread ended while we looked: whoever is not known
        # to sleep is taken to have just begun.
        return found
    return found


def _slack_ns(tid: Tid) -> int:
    try:
        return int(Path(f"/proc/{tid}/timerslack_ns").read_bytes())
    except (OSError, ValueError):
        return _SLACK_NS
