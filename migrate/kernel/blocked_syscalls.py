"""What becomes of a thread that we stopped inside a blocking system call.

Stopping a thread breaks its call off. The kernel leaves one of these in rax and
settles the matter when the thread is let go (signal(7), "Interruption of system
calls and library functions"; arch/x86/kernel/signal.c):

    -512 … -514   the same call again, unless a handler runs first
    -516          restart_syscall(2): the kernel kept the end of the sleep in a
                  restart block, which it alone can write
    -4            the program sees EINTR, though no signal was sent to it

Our strategy. The first sort needs nothing, at the source and at the destination:
the registers go over as they are, and a fresh task with the same rax and orig_rax
is treated the same. The third is turned into the first by writing -514 over -4
(`cured`). For the second, the destination makes the kernel write a restart block of
its own (`remake_restart_block`): the fresh thread enters the same call with the
time that remains then, with a stop already pending, so that the call is broken off
before it sleeps. What remains is known from the call's own `rem` argument, or from
/proc/timer_list read before and after the stop (`Sleepers`), or else is taken to be
all of it: a sleep may last longer than asked for, never shorter.

Not exact: a timeout that travels in memory (epoll_pwait2, semtimedop,
rt_sigtimedwait) or belongs to a socket (SO_RCVTIMEO, SO_SNDTIMEO) starts anew after
a stop. All others end when they would have, for as long as the thread was stopped.
"""

import re
import struct
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from migrate.kernel import timer_list
from migrate.kernel.proc_text import MalformedText
from migrate.kernel.remote import Remote
from migrate.kernel.restartable_sequences import abort_sequences
from migrate.kernel.timer_list import Remaining, Sleeper, TimerBase
from migrate.kernel.tracee import EVENT_STOP, Registers, Tracee
from precopy.errors import KernelError, PrecopyError
from precopy.ids import Pid, Tid

# include/linux/errno.h: programs never see these, tracers do.
EINTR: Final = 4
ERESTARTNOHAND: Final = 514
ERESTART_RESTARTBLOCK: Final = 516

_U64: Final = 1 << 64
_TIMESPEC: Final = struct.Struct("<qq")
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000

# arch/x86/entry/syscalls/syscall_64.tbl
_POLL: Final = 7
_NANOSLEEP: Final = 35
_FUTEX: Final = 202
_RESTART_SYSCALL: Final = 219
_CLOCK_NANOSLEEP: Final = 230
_EPOLL_WAIT: Final = 232
_EPOLL_PWAIT: Final = 281
_RESTARTED_BY_BLOCK: Final = frozenset({_POLL, _NANOSLEEP, _FUTEX, _CLOCK_NANOSLEEP})

# They answer EINTR to every interruption, SIGSTOP and SIGCONT included; nothing
# was transferred and nothing taken, so that issuing them again is the same call.
_ANSWER_EINTR: Final = frozenset(
    {
        0,  # read, and the next ten: of a socket with SO_RCVTIMEO or SO_SNDTIMEO
        1,  # write
        19,  # readv
        20,  # writev
        42,  # connect
        43,  # accept
        44,  # sendto
        45,  # recvfrom
        46,  # sendmsg
        47,  # recvmsg
        288,  # accept4
        299,  # recvmmsg
        307,  # sendmmsg
        65,  # semop
        220,  # semtimedop
        128,  # rt_sigtimedwait
        208,  # io_getevents
        333,  # io_pgetevents
        _EPOLL_WAIT,
        _EPOLL_PWAIT,
        441,  # epoll_pwait2
    }
)

_FUTEX_COMMAND: Final = 0x7F  # ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
_FUTEX_WAIT: Final = 0  # its timeout is relative; those of all other commands are not
_EPOLL_TIMED: Final = frozenset({_EPOLL_WAIT, _EPOLL_PWAIT})
_FUTEX_REALTIME: Final = 0x100
_CLOCK_MONOTONIC: Final = 1
_CLOCK_BOOTTIME: Final = 7
_TIMER_ABSTIME: Final = 1
_KNOWN_WITHIN_NS: Final = 2 * _MS_NS  # between a stop and the reading after it
_SLACK_NS: Final = 50_000  # a task's timer slack unless it set another
_LOAD_NUMBER: Final = re.compile(rb"\xb8(....)\x0f\x05\Z", re.DOTALL)  # mov $n, %eax


@dataclass(frozen=True, slots=True)
class TimedCall:
    """What a thread's registers do not say about the call that it was stopped in."""

    number: int  # of the call as the program issued it
    until_ns: int  # on CLOCK_MONOTONIC: the end of its timeout
    exact: bool  # False: an upper bound

    @property
    def remaining_ns(self) -> int:
        """What is left of it now; 0: it has ended."""
        return max(self.until_ns - time.monotonic_ns(), 0)


@dataclass(frozen=True, slots=True)
class Blocked:
    """/proc/PID/task/TID/syscall: where a thread blocks."""

    number: int
    arguments: tuple[int, ...]
    stack_pointer: int
    instruction_pointer: int

    @classmethod
    def of(cls, registers: Registers) -> "Blocked":
        """What the file said when this thread was not stopped yet."""
        r = registers
        return cls(r.orig_rax, (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9), r.rsp, r.rip)

    def same_place(self, other: "Blocked") -> bool:
        """Whether both are one call, be it broken off and restarted in between."""
        return replace(self, number=0) == replace(other, number=0)


def parse_syscall(text: bytes) -> Blocked | None:
    """What the text of /proc/PID/task/TID/syscall says; None: in no system call.

    Raises:
        MalformedText: it is something else.
    """
    words = text.split()
    try:
        if words == [b"running"] or (len(words) == 3 and words[0] == b"-1"):
            return None
        number = int(words[0])
        *arguments, stack, instruction = (int(word, 16) for word in words[1:])
        if len(arguments) != 6 or number < 0:
            raise ValueError(text)
    except (IndexError, ValueError):
        raise MalformedText("syscall", text) from None
    return Blocked(number, tuple(arguments), stack, instruction)


def cured(registers: Registers) -> Registers | None:
    """Registers that spare the program an EINTR of our making; None: it needs no cure.

    Where a signal with a handler is pending, the program sees the EINTR all the
    same, as it would have without us.
    """
    if registers.error != EINTR or registers.orig_rax not in _ANSWER_EINTR:
        return None
    return replace(registers, rax=_U64 - ERESTARTNOHAND)


def original_number(
    registers: Registers, earlier: Blocked | None, code: bytes = b""
) -> int | None:
    """The number of the call that the program issued, though it shows as 219.

    A call that was broken off before runs as restart_syscall. ``earlier`` is how
    the thread was last seen in a call with a number of its own; ``code`` ends with
    the bytes before rip.
    """
    if registers.orig_rax != _RESTART_SYSCALL:
        return registers.orig_rax if registers.in_syscall else None
    if earlier is not None and earlier.same_place(Blocked.of(registers)):
        return earlier.number
    loaded = _LOAD_NUMBER.search(code)
    if loaded and (number := int.from_bytes(loaded[1], "little")):
        return number if number in _RESTARTED_BY_BLOCK else None
    return None


def shortened(registers: Registers, remaining_ns: int) -> Registers:
    """Registers with what is left of the timeout, where that is in a register.

    So it is in epoll_wait, which keeps no restart block and is issued again.
    """
    if _epoll_timeout_ms(registers) is None:
        return registers
    return replace(registers, r10=_milliseconds(remaining_ns))


def plainly_restarted(registers: Registers, number: int) -> Registers | None:
    """Registers with which a call that kept a restart block needs none.

    So it is where the call has no timeout, or an absolute one: issued again with
    the same arguments it ends at the same time.
    """
    endless = number == _POLL and registers.rdx & 0x8000_0000
    absolute = number == _FUTEX and registers.rsi & _FUTEX_COMMAND != _FUTEX_WAIT
    if not (endless or absolute):
        return None
    return replace(registers, rax=_U64 - ERESTARTNOHAND, orig_rax=number)


def remake_restart_block(
    remote: Remote, tracee: Tracee, registers: Registers, call: TimedCall | None
) -> Registers:
    """Have the kernel write the restart block that ``registers`` (rax -516) speak of.

    ``remote`` is that of the thread, which is stopped, in a process whose memory
    and descriptors are complete. Afterwards its registers are anybody's: the
    caller writes those that this gives back. They are ``registers``, unless the
    call came to its end at once; ``call`` None, for a number that nobody knows,
    lets the program see EINTR.

    Raises:
        TaskVanished, KernelError: the thread ended; it was not the process's own.
    """
    if registers.error != ERESTART_RESTARTBLOCK:
        return registers
    if call is None or call.number not in _RESTARTED_BY_BLOCK:
        return replace(registers, rax=_U64 - EINTR)
    if plain := plainly_restarted(registers, call.number):
        return plain
    tid = remote.tid
    scratch = remote.space(_TIMESPEC.size)
    remote.write(scratch, _TIMESPEC.pack(*divmod(call.remaining_ns, _NS)))
    outcome = _break_off(tracee, tid, _issuing(registers, call, scratch))
    if outcome.error == ERESTART_RESTARTBLOCK:
        return registers
    return replace(registers, rax=outcome.rax, orig_rax=call.number)


def _break_off(tracee: Tracee, tid: Tid, issuing: Registers) -> Registers:
    """Issue a call and break it off at once; the registers it came back with."""
    mask = tracee.mask(tid)
    tracee.set_mask(tid, _U64 - 1)
    tracee.set_registers(tid, issuing)
    _expect_stop(tracee.to_syscall_stop(tid), tid)
    # A stop asked for in the entry stop is pending when the call begins: it arms
    # its timer, sees that it has to leave, and leaves as a broken-off call does.
    tracee.interrupt(tid)
    tracee.resume(tid)
    _expect_stop(tracee.wait(tid), tid, event=EVENT_STOP)
    tracee.set_mask(tid, mask)
    return tracee.registers(tid)


class NotAsExpected(PrecopyError):
    """A thread that was to stop in a certain place stopped elsewhere."""

    def __init__(self, tid: Tid, status: int) -> None:
        super().__init__(f"Thread {tid} stopped with status {status:#x}.")
        self.tid = tid
        self.status = status


class Sleepers:
    """The sleeping threads of one process, through all stops of a move.

    Before each stop ask `look`, after it `remaining`; `cure` is for
    ``Tracee.detach``. What one stop taught (the number of a call that the next
    stop sees as restart_syscall) is remembered for the next.
    """

    def __init__(self, pid: Pid) -> None:
        self._pid = pid
        self._asleep: dict[Tid, Blocked] = {}  # at the last look
        self._slack_ns: dict[Tid, int] = {}
        self._issued: dict[Tid, Blocked] = {}  # with the program's own number
        self._before: bytes | None = None  # of timer_list; parsed only if needed
        self._remaining: dict[Tid, TimedCall] = {}
        self._stopped_ns = 0

    def look(self) -> None:
        """See who sleeps, and until when. All threads may be running."""
        self._asleep = _blocked(self._pid)
        self._slack_ns = {tid: _slack_ns(tid) for tid in self._asleep}
        self._before = timer_list.read()

    def remaining(self, tracee: Tracee) -> dict[Tid, TimedCall]:
        """What is left of each timed call; the threads have just been stopped.

        They must not have run anything of ours since. Has every thread whose call
        keeps a restart block, unless its number is known to nobody, and those in
        epoll_wait whose timeout is known.
        """
        # Before the list is read: no sleep may seem to last longer than it can.
        stopped_ns = self._stopped_ns = time.monotonic_ns()
        after = timer_list.read() if self._before and self._asleep else None
        now_ns = timer_list.taken_at_ns(after) if after else None
        abort_sequences(tracee)
        unknown: dict[Tid, TimedCall] = {}
        found: dict[Tid, TimedCall] = {}
        sleepers: list[Sleeper] = []
        for tid in tracee.tids:
            registers = tracee.registers(tid)
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
        return found

    def cure(self, tracee: Tracee, tid: Tid) -> None:
        """Spare a stopped thread the EINTR of our making."""
        if registers := cured(tracee.registers(tid)):
            call = self._remaining.get(tid)
            if call is not None:
                registers = shortened(registers, call.remaining_ns)
            tracee.set_registers(tid, registers)

    def _number(self, tracee: Tracee, tid: Tid, registers: Registers) -> int | None:
        if registers.error == ERESTART_RESTARTBLOCK:
            earlier = self._issued.get(tid)
            number = original_number(registers, earlier, _code(tracee, registers))
            if number is not None:
                self._issued[tid] = replace(Blocked.of(registers), number=number)
            return number
        if registers.error == EINTR and registers.orig_rax in _EPOLL_TIMED:
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
        goes_on = registers.orig_rax == _RESTART_SYSCALL
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
        boottime = number == _CLOCK_NANOSLEEP and registers.rdi == _CLOCK_BOOTTIME
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
        if number not in _EPOLL_TIMED and number != _POLL:
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
        if registers.orig_rax == _CLOCK_NANOSLEEP and registers.rsi & _TIMER_ABSTIME:
            if registers.rdi == _CLOCK_MONOTONIC:
                end_ns = _read_timespec(tracee, registers.rdx)
        elif registers.orig_rax == _FUTEX and not registers.rsi & _FUTEX_REALTIME:
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
            earlier, later = timer_list.parse(self._before), timer_list.parse(after)
            if earlier and later:
                rest = timer_list.remaining(earlier, later, sleepers)
                read_ns = later.now_ns
        return {
            tid: TimedCall(call.number, read_ns + rest[tid].ns, rest[tid].exact)
            if tid in rest
            else call
            for tid, call in unknown.items()
            # epoll_wait is issued again as it is, unless there is better.
            if tid in rest or call.number not in _EPOLL_TIMED
        }


def _requested_ns(tracee: Tracee, registers: Registers, number: int) -> int | None:
    """The timeout that the program asked for; None: there is none, or a bad one."""
    if number == _POLL:
        return None if registers.rdx & 0x8000_0000 else _low(registers.rdx) * _MS_NS
    if number in _EPOLL_TIMED:
        timeout_ms = _epoll_timeout_ms(registers)
        return None if timeout_ms is None else timeout_ms * _MS_NS
    pointer = {
        _NANOSLEEP: registers.rdi,
        _CLOCK_NANOSLEEP: registers.rdx,
        _FUTEX: registers.r10,
    }.get(number, 0)
    return _read_timespec(tracee, pointer)


def _reported_ns(tracee: Tracee, registers: Registers, number: int) -> int | None:
    """What the broken-off call itself wrote as the rest, for who asked for it."""
    pointer = {_NANOSLEEP: registers.rsi, _CLOCK_NANOSLEEP: registers.r10}.get(number)
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


def _issuing(registers: Registers, call: TimedCall, scratch: int) -> Registers:
    issuing = replace(
        registers, rip=registers.rip - 2, rax=call.number, orig_rax=_U64 - 1
    )
    if call.number == _NANOSLEEP:
        issuing.rdi = scratch
    elif call.number == _CLOCK_NANOSLEEP:
        issuing.rdx = scratch
    elif call.number == _FUTEX:
        issuing.r10 = scratch
    else:
        issuing.rdx = _milliseconds(call.remaining_ns)
    return issuing


def _milliseconds(ns: int) -> int:
    return min(-(-ns // _MS_NS), (1 << 31) - 1)


def _low(word: int) -> int:
    return word & 0xFFFF_FFFF


def _epoll_timeout_ms(registers: Registers) -> int | None:
    if registers.orig_rax not in _EPOLL_TIMED or registers.r10 & 0x8000_0000:
        return None
    return _low(registers.r10)


def _code(tracee: Tracee, registers: Registers) -> bytes:
    if registers.orig_rax != _RESTART_SYSCALL:
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


def _expect_stop(status: int, tid: Tid, event: int = 0) -> None:
    if status & 0xFF != 0x7F or status >> 16 != event:
        raise NotAsExpected(tid, status)
