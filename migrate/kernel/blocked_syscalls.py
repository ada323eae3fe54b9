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
its own (`remake_restart_blocks`): the fresh thread enters the same call with the
time that remains then, with a stop already pending, so that the call is broken off
before it sleeps. What remains is known from the call's own `rem` argument, or from
/proc/timer_list read before and after the stop (`Sleepers`), or else is taken to be
all of it: a sleep may last longer than asked for, never shorter.

Not exact: a timeout that travels in memory (semtimedop, rt_sigtimedwait,
io_getevents) or belongs to a socket (SO_RCVTIMEO, SO_SNDTIMEO) starts anew after
a stop. All others end when they would have, for as long as the thread was stopped.
"""

import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from migrate.kernel.proc_text import MalformedText
from migrate.kernel.remote import Remote
from migrate.kernel.tracee import Registers, Tracee
from precopy.ids import Tid

# include/linux/errno.h: programs never see these, tracers do.
EINTR: Final = 4
ERESTARTNOHAND: Final = 514
ERESTART_RESTARTBLOCK: Final = 516

_U64: Final = 1 << 64
_TIMESPEC: Final = struct.Struct("<qq")
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000

# arch/x86/entry/syscalls/syscall_64.tbl
POLL: Final = 7
NANOSLEEP: Final = 35
FUTEX: Final = 202
RESTART_SYSCALL: Final = 219
CLOCK_NANOSLEEP: Final = 230
_EPOLL_WAIT: Final = 232
_EPOLL_PWAIT: Final = 281
EPOLL_PWAIT2: Final = 441
_RESTARTED_BY_BLOCK: Final = frozenset({POLL, NANOSLEEP, FUTEX, CLOCK_NANOSLEEP})

# They answer EINTR to every interruption, SIGSTOP and SIGCONT included; nothing
# was transferred and nothing taken, so that issuing them again is the same call.
ANSWER_EINTR: Final = frozenset(
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
        EPOLL_PWAIT2,
    }
)

_FUTEX_COMMAND: Final = 0x7F  # ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
_FUTEX_WAIT: Final = 0  # its timeout is relative; those of all other commands are not
EPOLL_TIMED: Final = frozenset({_EPOLL_WAIT, _EPOLL_PWAIT, EPOLL_PWAIT2})
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
    def of(cls, registers: Registers, number: int | None = None) -> "Blocked":
        """What the file said when this thread was not stopped yet.

        ``number`` is that of the call, if it is another than orig_rax.
        """
        r = registers
        number = r.orig_rax if number is None else number
        return cls(number, (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9), r.rsp, r.rip)

    def same_place(self, other: "Blocked") -> bool:
        """Whether both are one call, be it broken off and restarted in between."""
        return (self.arguments, self.stack_pointer, self.instruction_pointer) == (
            other.arguments,
            other.stack_pointer,
            other.instruction_pointer,
        )


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
    if registers.error != EINTR or registers.orig_rax not in ANSWER_EINTR:
        return None
    return registers.but(rax=_U64 - ERESTARTNOHAND)


def original_number(
    registers: Registers, earlier: Blocked | None, code: bytes = b""
) -> int | None:
    """The number of the call that the program issued, though it shows as 219.

    A call that was broken off before runs as restart_syscall. ``earlier`` is how
    the thread was last seen in a call with a number of its own; ``code`` ends with
    the bytes before rip.
    """
    if registers.orig_rax != RESTART_SYSCALL:
        return registers.orig_rax if registers.in_syscall else None
    if earlier is not None and earlier.same_place(Blocked.of(registers)):
        return earlier.number
    loaded = _LOAD_NUMBER.search(code)
    if loaded and (number := int.from_bytes(loaded[1], "little")):
        return number if number in _RESTARTED_BY_BLOCK else None
    return None


def shortened(registers: Registers, remaining_ns: int) -> Registers:
    """Registers with what is left of the timeout, where that is in a register.

    So it is in epoll_wait, which keeps no restart block and is issued again. And
    epoll_pwait2, whose timeout is in memory, is else the same call as epoll_pwait.
    """
    if registers.orig_rax == EPOLL_PWAIT2 and registers.r10:
        return registers.but(orig_rax=_EPOLL_PWAIT, r10=_milliseconds(remaining_ns))
    if epoll_timeout_ms(registers) is None:
        return registers
    return registers.but(r10=_milliseconds(remaining_ns))


def plainly_restarted(registers: Registers, number: int) -> Registers | None:
    """Registers with which a call that kept a restart block needs none.

    So it is where the call has no timeout, or an absolute one: issued again with
    the same arguments it ends at the same time.
    """
    endless = number == POLL and registers.rdx & 0x8000_0000
    absolute = number == FUTEX and registers.rsi & _FUTEX_COMMAND != _FUTEX_WAIT
    if not (endless or absolute):
        return None
    return registers.but(rax=_U64 - ERESTARTNOHAND, orig_rax=number)


def remake_restart_blocks(
    remote: Remote, tracee: Tracee, slept: Sequence[tuple[Tid, bytes, TimedCall | None]]
) -> list[bytes]:
    """Have the kernel write the restart blocks of which registers (rax -516) speak.

    Each is that of a stopped thread of a process whose memory and descriptors are
    complete. Afterwards their registers are anybody's: the caller writes those that
    this gives back. They are those that were given, unless the call
    came to its end at once; without a call, for a number that nobody knows, the program
    sees EINTR.

    Raises:
        TaskVanished, KernelError: a thread ended; it was not the process's own.
    """
    resumed: list[bytes] = []
    issuing: list[tuple[int, Registers, TimedCall]] = []
    for at, (_, words, call) in enumerate(slept):
        resumed.append(words)
        registers = Registers.from_bytes(words)
        if registers.error != ERESTART_RESTARTBLOCK:
            continue
        if call is None or call.number not in _RESTARTED_BY_BLOCK:
            resumed[at] = registers.but(rax=_U64 - EINTR).to_bytes()
        elif plain := plainly_restarted(registers, call.number):
            resumed[at] = plain.to_bytes()
        else:
            issuing.append((at, registers, call))
    scratch = remote.space(_TIMESPEC.size * len(issuing))
    rests = (_TIMESPEC.pack(*divmod(call.remaining_ns, _NS)) for _, _, call in issuing)
    remote.write(scratch, b"".join(rests))
    came_back = tracee.break_off(
        [slept[at][0] for at, _, _ in issuing],
        [
            _issuing(registers, call, scratch + _TIMESPEC.size * place)
            for place, (_, registers, call) in enumerate(issuing)
        ],
    )
    for (at, registers, call), words in zip(issuing, came_back, strict=True):
        outcome = Registers.from_bytes(words)
        if outcome.error != ERESTART_RESTARTBLOCK:
            ended = registers.but(rax=outcome.rax, orig_rax=call.number)
            resumed[at] = ended.to_bytes()
    return resumed


def _issuing(registers: Registers, call: TimedCall, scratch: int) -> Registers:
    issuing = registers.but(rip=registers.rip - 2, rax=call.number, orig_rax=_U64 - 1)
    if call.number == NANOSLEEP:
        issuing.rdi = scratch
    elif call.number == CLOCK_NANOSLEEP:
        issuing.rdx = scratch
    elif call.number == FUTEX:
        issuing.r10 = scratch
    else:
        issuing.rdx = _milliseconds(call.remaining_ns)
    return issuing


def _milliseconds(ns: int) -> int:
    return min(-(-ns // _MS_NS), (1 << 31) - 1)


def low(word: int) -> int:
    """The half of a register that an `int` is passed in."""
    return word & 0xFFFF_FFFF


def epoll_timeout_ms(registers: Registers) -> int | None:
    """The timeout that a call of epoll_wait was made with; None: there is none."""
    if registers.orig_rax not in (_EPOLL_WAIT, _EPOLL_PWAIT):
        return None
    if registers.r10 & 0x8000_0000:
        return None
    return low(registers.r10)
