"""A process whose threads this OS thread has seized with ptrace(2).

PTRACE_SEIZE, unlike PTRACE_ATTACH, sends no signal: the process does not notice.
PTRACE_INTERRUPT stops a thread wherever it is. If it was inside a system call, the
call was broken off with one of the kernel's restart codes, and the kernel issues it
again when the thread is let go; for the few calls that would answer EINTR instead,
whoever stops it has the registers changed (sleepers).

All of this obeys only the OS thread that seized: a Tracee must not change threads.
"""

import errno
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

from migrate.kernel import procfs
from migrate.kernel._native import ffi, lib
from migrate.kernel.remote import WORKBENCH_AT, Remote, RemoteError, Workbench
from migrate.kernel.syscalls import check
from precopy.errors import KernelError, PrecopyError, TaskVanished
from precopy.ids import Pid, Tid
from precopy.task_memory import TaskMemory

# linux/ptrace.h
OPTION_TRACE_SYSGOOD: Final = 0x1
OPTION_TRACE_FORK: Final = 1 << 1
OPTION_TRACE_CLONE: Final = 1 << 3
OPTION_TRACE_EXEC: Final = 1 << 4
OPTION_EXIT_KILL: Final = 1 << 20
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128

XSTATE_BYTES_MAX: Final = 16384
_SIGINFO_BYTES: Final = 128
_REGISTERS: Final = struct.Struct("<27Q")
_ERRNO_MAX: Final = 4095


@dataclass(slots=True)
class Registers:
    """user_regs_struct of <sys/user.h>: unsigned 64-bit words, the kernel's order."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what to_bytes() wrote."""
        return cls(*_REGISTERS.unpack(data))

    def but(self, **words: int) -> Self:
        """The same with other words, by name; dataclasses.replace() takes 10 µs."""
        other = type(self)(*_all_registers(self))
        for name, word in words.items():
            setattr(other, name, word)
        return other

    def to_bytes(self) -> bytes:
        """27 little-endian words."""
        return _REGISTERS.pack(*_all_registers(self))

    @property
    def in_syscall(self) -> bool:
        """Whether the thread was stopped inside a system call."""
        return self.orig_rax < 1 << 63

    @property
    def error(self) -> int:
        """The errno that a broken-off system call came back with, or 0."""
        return (1 << 64) - self.rax if self.rax >= (1 << 64) - _ERRNO_MAX else 0


# dataclasses.astuple() copies deeply, at a hundred times the cost.
_all_registers: Final = attrgetter(*(field.name for field in fields(Registers)))


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a thread's processor holds, and its signal mask."""

    registers: bytes  # Registers.to_bytes()
    mask: int  # blocked signals, bit n-1 for signal n
    xstate: bytes  # XSAVE area, standard format (NT_X86_XSTATE)

    def going_on(self, registers: bytes) -> "TaskState":
        """The same with other registers."""
        return TaskState(registers, self.mask, self.xstate)


@dataclass(frozen=True, slots=True)
class RseqConfiguration:
    """A thread's registration with rseq(2)."""

    pointer: int
    size: int
    signature: int
    flags: int


class NotAsExpected(PrecopyError):
    """A thread that was to stop in a certain place stopped elsewhere."""

    def __init__(self, tid: Tid, status: int) -> None:
        super().__init__(f"Thread {tid} stopped with status {status:#x}.")
        self.tid = tid
        self.status = status


class Tracee:
    """One process, all its threads seized by this OS thread."""

    def __init__(self, pid: Pid, tids: Sequence[Tid], memory: TaskMemory) -> None:
        self.pid = pid
        self.tids: tuple[Tid, ...] = tuple(tids)  # the leader first
        self.memory = memory

    @classmethod
    def seize(cls, pid: Pid, *, options: int = 0) -> Self:
        """Seize every thread of `pid` and stop it there.

        New threads that appear meanwhile are found by looking again until none is
        new: stopped threads bear no more.

        Raises:
            KernelError: EPERM: somebody else traces it, or we may not.
            TaskVanished: it ended.
        """
        tracee = cls(pid, (), TaskMemory(pid))
        try:
            tracee._seize_all(options)
        except BaseException:
            tracee.detach()
            raise
        return tracee

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _seize_all(self, options: int) -> None:
        while True:
            new = [t for t in procfs.threads(self.pid) if t not in self.tids]
            if not new:
                break
            seized = [t for t in new if _seized(t, options)]
            self.tids += tuple(seized)
            self.tids = self.tids[: -len(seized)] + self._collect(seized)
        if not self.tids or self.tids[0] != Tid(self.pid):
            raise TaskVanished(self.pid)

    def _collect(self, tids: Sequence[Tid]) -> tuple[Tid, ...]:
        """Stop these seized threads; gives back those that still live."""
        statuses = ffi.new("int[]", len(tids))
        check(
            lib.tracees_stop(ffi.new("int[]", list(tids)), len(tids), statuses),
            "ptrace(PTRACE_INTERRUPT)",
            self.pid,
        )
        return tuple(
            t for t, s in zip(tids, statuses, strict=True) if self._settle(t, s)
        )

    def _settle(self, tid: Tid, status: int) -> bool:
        """Bring a thread that stopped for a signal on to the stop we asked for."""
        while True:
            if not os.WIFSTOPPED(status):
                return False
            if status >> 16 == EVENT_STOP:
                return True
            # The signal came first. It is delivered, a handler's frame is pushed,
            # and the thread stops for us before the handler's first instruction.
            number = 0 if status >> 16 else os.WSTOPSIG(status)
            check(lib.tracee_continue(tid, number), "ptrace(PTRACE_CONT)", tid)
            status = self.wait(tid)

    def wait(self, tid: Tid) -> int:
        """Wait for the next stop of `tid`; gives back the wait status."""
        status = ffi.new("int *")
        check(lib.tracee_wait(tid, status), "waitpid", tid)
        return int(status[0])

    def stop(self) -> None:
        """Stop all threads, which were seized and running."""
        self.tids = self._collect(self.tids)

    def adopt(self, tid: Tid) -> None:
        """Count in a thread that was seized at its birth (OPTION_TRACE_CLONE)."""
        if not self._settle(tid, self.wait(tid)):
            raise TaskVanished(self.pid)
        self.tids += (tid,)

    def disown(self, tid: Tid) -> None:
        """Forget a thread that has ended."""
        self.tids = tuple(t for t in self.tids if t != tid)

    def detach(self) -> None:
        """Let all threads go, as they are; afterwards the tracee is nobody's.

        Threads that ended meanwhile are passed over.
        """
        for tid in reversed(self.tids):
            try:
                check(lib.tracee_detach(tid, 0), "ptrace(PTRACE_DETACH)", tid)
            except KernelError as error:
                if error.errno != errno.ESRCH:
                    raise
        self.tids = ()
        self.memory.close()

    def reap(self) -> None:
        """Wait for the end of every thread of a killed tracee.

        The leader's wait returns only when all others have been reaped
        (ptrace(2), "Death under ptrace"): hence the order.
        """
        status = ffi.new("int *")
        for tid in reversed(self.tids):
            while lib.tracee_wait(tid, status) == 0 and os.WIFSTOPPED(status[0]):
                lib.tracee_continue(tid, 0)
        self.tids = ()
        self.memory.close()

    def reopen_memory(self) -> None:
        """Look at the memory that the process has since an execve(2)."""
        self.memory.close()
        self.memory = TaskMemory(self.pid)

    def kill(self) -> None:
        """SIGKILL the process."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    @contextmanager
    def remote(
        self, tid: Tid | None = None, *, address: int = WORKBENCH_AT
    ) -> Iterator[Remote]:
        """System calls made by the stopped thread `tid` (the leader if None).

        The workbench is mapped on the way in (at `address`, or where the kernel
        likes if that is taken) and gone on the way out, unless the tracee is.
        """
        remote = Remote(self.pid, tid or self.tids[0], Workbench.at(address))
        try:
            remote.open()
        except RemoteError as error:
            if error.errno != errno.EEXIST:
                raise
            remote = Remote(self.pid, remote.tid, Workbench.at(0))
            remote.open()
        try:
            yield remote
        finally:
            remote.close()

    def registers(self, tid: Tid) -> Registers:
        """The general registers of a stopped thread."""
        words = ffi.new("struct task_registers *")
        check(lib.tracee_get_registers(tid, words), "ptrace(PTRACE_GETREGSET)", tid)
        return Registers.from_bytes(bytes(ffi.buffer(words)))

    def every_registers(self) -> list[bytes]:
        """Registers.to_bytes() of every thread, in their order."""
        count = len(self.tids)
        words = ffi.new("struct task_registers[]", count)
        check(
            lib.tasks_registers(ffi.new("int[]", self.tids), count, words),
            "ptrace(PTRACE_GETREGSET)",
            self.pid,
        )
        data, size = bytes(ffi.buffer(words)), _REGISTERS.size
        return [data[at : at + size] for at in range(0, len(data), size)]

    def set_registers(self, tid: Tid, registers: Registers) -> None:
        """Set the general registers of a stopped thread."""
        words = ffi.new("struct task_registers *")
        ffi.memmove(words, registers.to_bytes(), _REGISTERS.size)
        check(lib.tracee_set_registers(tid, words), "ptrace(PTRACE_SETREGSET)", tid)

    def mask(self, tid: Tid) -> int:
        """The blocked signals of a stopped thread."""
        mask = ffi.new("uint64_t *")
        check(lib.tracee_get_mask(tid, mask), "ptrace(PTRACE_GETSIGMASK)", tid)
        return int(mask[0])

    def set_mask(self, tid: Tid, mask: int) -> None:
        """Set the blocked signals of a stopped thread."""
        check(lib.tracee_set_mask(tid, mask), "ptrace(PTRACE_SETSIGMASK)", tid)

    def states(self, tids: Sequence[Tid] | None = None) -> list[TaskState]:
        """Registers, mask and vector state of the stopped threads, in order."""
        tids = self.tids if tids is None else tids
        count = len(tids)
        registers = ffi.new("struct task_registers[]", count)
        masks = ffi.new("uint64_t[]", count)
        sizes = ffi.new("uint32_t[]", count)
        stride = _xstate_bytes(tids[0]) if count else 0
        area = bytearray(count * stride)
        check(
            lib.tasks_read(
                ffi.new("int[]", tids),
                count,
                registers,
                masks,
                ffi.from_buffer(area),
                stride,
                sizes,
            ),
            "ptrace(PTRACE_GETREGSET)",
            self.pid,
        )
        words, size = bytes(ffi.buffer(registers)), _REGISTERS.size
        return [
            TaskState(
                registers=words[i * size : (i + 1) * size],
                mask=masks[i],
                xstate=_cut(area, i * stride, sizes[i]),
            )
            for i in range(count)
        ]

    def set_states(self, tids: Sequence[Tid], states: Sequence[TaskState]) -> None:
        """Set what states() reads, thread by thread."""
        count = len(tids)
        words = ffi.new("struct task_registers[]", count)
        registers = b"".join(s.registers for s in states)
        ffi.memmove(words, registers, len(registers))
        check(
            lib.tasks_write(
                ffi.new("int[]", tids),
                count,
                words,
                ffi.new("uint64_t[]", [s.mask for s in states]),
                ffi.from_buffer(b"".join(s.xstate for s in states)),
                ffi.new("uint32_t[]", [len(s.xstate) for s in states]),
            ),
            "ptrace(PTRACE_SETREGSET)",
            self.pid,
        )

    def break_off(self, tids: Sequence[Tid], calls: Sequence[Registers]) -> list[bytes]:
        """Have each of these threads issue a call, and break it off before it sleeps.

        ``calls`` are registers before the instruction that makes it. Gives back the
        registers that they came back with.

        Raises:
            NotAsExpected: one of them stopped elsewhere.
        """
        count = len(tids)
        words = ffi.new("struct task_registers[]", count)
        data = b"".join(registers.to_bytes() for registers in calls)
        ffi.memmove(words, data, len(data))
        statuses = ffi.new("int[]", count)
        failed = lib.tasks_break_off(ffi.new("int[]", tids), count, words, statuses)
        if failed == -errno.EPROTO:
            at = next(i for i in range(count) if statuses[i])
            raise NotAsExpected(tids[at], statuses[at])
        check(failed, "ptrace(PTRACE_SYSCALL)", self.pid)
        data, size = bytes(ffi.buffer(words)), _REGISTERS.size
        return [data[at : at + size] for at in range(0, len(data), size)]

    def rseq(self, tid: Tid) -> RseqConfiguration | None:
        """The thread's registration with rseq(2), or None."""
        found = ffi.new("struct rseq_configuration *")
        check(
            lib.tracee_get_rseq(tid, found),
            "ptrace(PTRACE_GET_RSEQ_CONFIGURATION)",
            tid,
        )
        if not found.pointer:
            return None
        return RseqConfiguration(
            found.pointer, found.size, found.signature, found.flags
        )

    def peek_signals(self, tid: Tid, *, shared: bool) -> list[bytes]:
        """The queued signals of a thread, or the process's, as siginfo_t's 128 bytes.

        They stay queued (PTRACE_PEEKSIGINFO).
        """
        batch = 64
        infos = ffi.new("char[]", batch * _SIGINFO_BYTES)
        found: list[bytes] = []
        while True:
            count = check(
                lib.tracee_peek_signals(tid, len(found), int(shared), batch, infos),
                "ptrace(PTRACE_PEEKSIGINFO)",
                tid,
            )
            data = bytes(ffi.buffer(infos))
            found += [
                _cut(data, i * _SIGINFO_BYTES, _SIGINFO_BYTES) for i in range(count)
            ]
            if count < batch:
                return found

    def to_syscall_stop(self, tid: Tid) -> int:
        """Let the thread run to the next entry or exit of a system call.

        Gives back the wait status.
        """
        check(lib.tracee_to_syscall(tid), "ptrace(PTRACE_SYSCALL)", tid)
        return self.wait(tid)

    def interrupt(self, tid: Tid) -> None:
        """Ask for a stop of a running thread, or for one right after this stop."""
        check(lib.tracee_interrupt(tid), "ptrace(PTRACE_INTERRUPT)", tid)

    def resume(self, tid: Tid, number: int = 0) -> None:
        """Let a stopped thread run on, still traced."""
        check(lib.tracee_continue(tid, number), "ptrace(PTRACE_CONT)", tid)

    def set_options(self, options: int) -> None:
        """Change what is traced, for every thread."""
        for tid in self.tids:
            check(lib.tracee_options(tid, options), "ptrace(PTRACE_SETOPTIONS)", tid)


def _seized(tid: Tid, options: int) -> bool:
    """Seize a thread; False if it ended before."""
    result = lib.tracee_seize(tid, options)
    if result == -errno.ESRCH:
        return False
    check(result, "ptrace(PTRACE_SEIZE)", tid)
    return True


def _xstate_bytes(tid: Tid) -> int:
    """How large the XSAVE area of a stopped thread is: all have the same."""
    area = bytearray(XSTATE_BYTES_MAX)
    size = lib.tracee_get_xstate(tid, ffi.from_buffer(area), XSTATE_BYTES_MAX)
    return check(size, "ptrace(PTRACE_GETREGSET)", tid)


def _cut(data: bytes | bytearray, start: int, size: int) -> bytes:
    return bytes(data[start : start + size])
