"""A stopped task makes system calls for us.

The calls run from a workbench: one anonymous mapping in the tracee with the injected
code, the table of calls, the signal frame that cures the tracee should we die
(native/inject.c tells how), and room for what the calls point to.

    code │ signal frame │ table of calls │ arguments │ space

The mapping itself is made and taken away by a single step over the `syscall`
instruction of the tracee's own vdso. Between two batches every register and the
signal mask of the task are its own again.
"""

import copy
import errno
import os
import signal
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NewType, Self

from migrate.kernel import procfs
from migrate.kernel._native import ffi, lib
from migrate.kernel.syscalls import NUMBERS, check
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid, Tid
from precopy.task_memory import TaskMemory

RemotePtr = NewType("RemotePtr", int)
RemoteFd = NewType("RemoteFd", int)

_CALLS_MAX: Final = 2048
_CALL: Final = struct.Struct("<8Q")  # struct remote_call
_RESULT: Final = struct.Struct("<56xq")
_NOTHING: Final = (0,) * 7
_FRAME_BYTES: Final = 8 * PAGE_BYTES
_TABLE_BYTES: Final = _CALLS_MAX * _CALL.size
_ARGUMENT_BYTES: Final = 512 * 1024
_SPACE_BYTES: Final = 256 * 1024
_XSTATE_BYTES_MAX: Final = 16384
_BORN_MAX: Final = _CALLS_MAX
_ALIGNMENT: Final = 16
_ERRNO_MAX: Final = 4095
_EVENT_STOP: Final = 128  # PTRACE_EVENT_STOP, linux/ptrace.h

WORKBENCH_BYTES: Final = (
    PAGE_BYTES + _FRAME_BYTES + _TABLE_BYTES + _ARGUMENT_BYTES + _SPACE_BYTES
)

_PROT_READ_WRITE_EXEC: Final = 7
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MAP_FIXED_NOREPLACE: Final = 0x100000
_SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
_ALL_SIGNALS: Final = (1 << 64) - 1
_WORD: Final = (1 << 64) - 1

# Ignored by default (signal(7)): a tracee without us does not notice them.
_HARMLESS: Final = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)


# Sent by nobody (signal(7): "stack fault on coprocessor (unused)"): so it is never
# pending in a skeleton, where signals are queued that must not be taken for the end
# of a batch.
_NOBODYS: Final = signal.SIGSTKFLT


class RemoteError(KernelError):
    """A system call that the tracee made for us failed; nothing else happened."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where the parts of the mapping begin, once it is there."""

    address: int  # 0: not yet mapped, the kernel chooses

    @classmethod
    def at(cls, address: int) -> Self:
        """A workbench at this address; 0 lets the kernel choose."""
        return cls(address)

    @property
    def frame(self) -> int:
        """The signal frame."""
        return self.address + PAGE_BYTES

    @property
    def table(self) -> int:
        """The table of calls."""
        return self.frame + _FRAME_BYTES

    @property
    def arguments(self) -> int:
        """Room for byte arguments of one batch."""
        return self.table + _TABLE_BYTES

    @property
    def space(self) -> int:
        """Room that Remote.space() hands out."""
        return self.arguments + _ARGUMENT_BYTES


@dataclass(frozen=True, slots=True)
class _TrueState:
    """What a task must look like whenever it is not in the injected code."""

    registers: Any  # struct task_registers *
    mask: int
    xstate: bytes


@dataclass(slots=True)
class _Shared:
    """What the views of one workbench have in common."""

    bench: Workbench
    done_signal: signal.Signals
    born: list[Tid] = field(default_factory=list)
    states: dict[Tid, _TrueState] = field(default_factory=dict)
    ids: dict[Tid, tuple[int, int]] = field(default_factory=dict)
    deferred: int = 0  # signals held back, bit n-1 for signal n
    space_used: int = 0


class Remote:
    """System calls made by one stopped task of a process; see Tracee.remote()."""

    def __init__(
        self, pid: Pid, tid: Tid, bench: Workbench, *, dies_with_us: bool = False
    ) -> None:
        """``dies_with_us``: the tracee never runs without a tracer (EXITKILL)."""
        self.pid = pid
        self.tid = tid
        self._shared = _Shared(bench, _NOBODYS if dies_with_us else _done_signal(pid))
        self.memory = TaskMemory(pid)

    @property
    def bench(self) -> Workbench:
        """Where the workbench lies."""
        return self._shared.bench

    @property
    def born(self) -> list[Tid]:
        """Threads that batches cloned, seized and not yet waited for."""
        return self._shared.born

    def open(self) -> None:
        """Map the workbench; afterwards close() must be called.

        Raises:
            RemoteError: the tracee could not map it; it is as it was.
            TaskVanished: the tracee ended.
        """
        fixed = _MAP_FIXED_NOREPLACE if self.bench.address else 0
        try:
            address = self._step(
                "mmap",
                self.bench.address,
                WORKBENCH_BYTES,
                _PROT_READ_WRITE_EXEC,
                _MAP_PRIVATE_ANONYMOUS | fixed,
                _WORD,
                0,
            )
        except BaseException:
            self.memory.close()
            raise
        self._shared.bench = Workbench.at(address)
        code = ffi.new("char[]", lib.inject_code_size())
        lib.inject_code(code)
        self.memory.write(address, bytes(ffi.buffer(code)))

    def close(self) -> None:
        """Unmap the workbench; the tracee's address space is its own again.

        A tracee that has ended meanwhile needs nothing.
        """
        try:
            self._step("munmap", self.bench.address, WORKBENCH_BYTES, 0, 0, 0, 0)
            for number in range(1, 65):
                if self._shared.deferred >> (number - 1) & 1:
                    os.kill(self.pid, number)
        except (TaskVanished, ProcessLookupError):
            return
        finally:
            self.memory.close()

    def on(self, tid: Tid) -> "Remote":
        """The same workbench, used by another stopped thread of the process."""
        other = copy.copy(self)
        other.tid = tid
        return other

    def syscall(self, name: str, *arguments: int | bytes) -> int:
        """Make one call. Byte strings are copied over and passed as pointers.

        Raises:
            RemoteError: it answered -errno.
            TaskVanished: the tracee ended.
        """
        batch = self.batch()
        batch.add(name, *arguments)
        return batch.run()[0]

    def batch(self) -> "Batch":
        """Calls to be made in one stop."""
        return Batch(self)

    def space(self, size: int) -> RemotePtr:
        """Room in the workbench for what a call writes; it lasts until reset()."""
        start = -(-self._shared.space_used // _ALIGNMENT) * _ALIGNMENT
        if start + size > _SPACE_BYTES:
            raise ValueError(f"the workbench has no room for {size} bytes more")
        self._shared.space_used = start + size
        return RemotePtr(self.bench.space + start)

    def reset(self) -> None:
        """Take back all room that space() handed out."""
        self._shared.space_used = 0

    def read(self, pointer: int, size: int) -> bytes:
        """Bytes of the tracee's memory."""
        return self.memory.read(pointer, size)

    def write(self, pointer: int, data: bytes) -> None:
        """Change the tracee's memory."""
        self.memory.write(pointer, data)

    def dispatches_syscalls(self) -> bool:
        """Whether the task gets its own system calls (PR_SET_SYSCALL_USER_DISPATCH).

        Always False where the kernel cannot tell (before 6.4).
        """
        call = "ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG)"
        return check(lib.tracee_dispatches(self.tid), call, self.pid) > 0

    def has_io_ports(self) -> bool:
        """Whether the task may use I/O ports (ioperm(2))."""
        call = "ptrace(PTRACE_GETREGSET, NT_386_IOPERM)"
        return check(lib.tracee_has_ports(self.tid), call, self.pid) > 0

    def run(self, calls: list[tuple[int, tuple[int, ...]]]) -> list[int]:
        """Make these calls (numbers and words) in one stop; signed results.

        At most CALLS_MAX; Batch cuts longer ones.
        """
        state = self._state(self.tid)
        own_pid, own_tid = self.own_ids()
        end = (NUMBERS["tgkill"], (own_pid, own_tid, int(self._shared.done_signal)))
        rows = [*calls, end]
        table = bytearray(
            b"".join(
                _CALL.pack(number, *words, *_NOTHING[: 7 - len(words)])
                for number, words in rows
            )
        )
        self._place_frame(state)
        bench = ffi.new(
            "struct workbench *",
            [self.bench.address, self.bench.table, self.bench.frame, _CALLS_MAX],
        )
        born = ffi.new("int[]", _BORN_MAX)
        outcome = ffi.new("struct batch_outcome *")
        result = lib.inject_batch(
            self.pid,
            self.tid,
            bench,
            ffi.cast("struct remote_call *", ffi.from_buffer(table)),
            len(rows),
            int(self._shared.done_signal),
            born,
            _BORN_MAX,
            outcome,
        )
        self._shared.born += [Tid(t) for t in born[0 : outcome.clones]]
        self._shared.deferred |= outcome.deferred_signals
        self._settle(result, "ptrace(PTRACE_CONT)")
        self._restore(self.tid, state)
        return [row[0] for row in _RESULT.iter_unpack(table)][: len(calls)]

    def _settle(self, result: int, call: str) -> None:
        if result == -errno.ESRCH:
            raise TaskVanished(self.pid)
        check(result, call, self.tid)

    def _step(self, name: str, *arguments: int) -> int:
        state = self._state(self.tid)
        self._settle(
            lib.tracee_set_mask(self.tid, _ALL_SIGNALS), "ptrace(PTRACE_SETSIGMASK)"
        )
        call = ffi.new("struct remote_call *", [NUMBERS[name], list(arguments), 0])
        result = ffi.new("int64_t *")
        code = lib.inject_step(
            self.tid, _syscall_instruction(self.pid, self.memory), call, result
        )
        self._settle(code, "ptrace(PTRACE_SINGLESTEP)")
        self._restore(self.tid, state)
        self._rest()
        return _checked(int(result[0]), name, self.pid)

    def _rest(self) -> None:
        """Have the task stopped because we ask, and not for the trap of a step.

        A task whose tracer dies gets the signal that it has stopped for, and SIGTRAP
        would be the end of it. The stop that is asked for here is taken before the
        task comes to its next instruction.
        """
        status = ffi.new("int *")
        self._settle(lib.tracee_interrupt(self.tid), "ptrace(PTRACE_INTERRUPT)")
        while True:
            self._settle(lib.tracee_continue(self.tid, 0), "ptrace(PTRACE_CONT)")
            self._settle(lib.tracee_wait(self.tid, status), "waitpid")
            if not os.WIFSTOPPED(status[0]):
                raise TaskVanished(self.pid)
            if status[0] >> 16 == _EVENT_STOP:
                return
            number = os.WSTOPSIG(status[0])
            if not status[0] >> 16 and number != signal.SIGTRAP:
                self._shared.deferred |= 1 << (number - 1)

    def _state(self, tid: Tid) -> _TrueState:
        found = self._shared.states.get(tid)
        if found is not None:
            return found
        registers = ffi.new("struct task_registers *")
        self._settle(
            lib.tracee_get_registers(tid, registers), "ptrace(PTRACE_GETREGSET)"
        )
        mask = ffi.new("uint64_t *")
        self._settle(lib.tracee_get_mask(tid, mask), "ptrace(PTRACE_GETSIGMASK)")
        area = bytearray(_XSTATE_BYTES_MAX)
        size = lib.tracee_get_xstate(tid, ffi.from_buffer(area), _XSTATE_BYTES_MAX)
        self._settle(min(size, 0), "ptrace(PTRACE_GETREGSET)")
        state = _TrueState(registers, mask[0], bytes(area[:size]))
        self._shared.states[tid] = state
        return state

    def _restore(self, tid: Tid, state: _TrueState) -> None:
        self._settle(
            min(lib.tracee_set_registers(tid, state.registers), 0),
            "ptrace(PTRACE_SETREGSET)",
        )
        self._settle(lib.tracee_set_mask(tid, state.mask), "ptrace(PTRACE_SETSIGMASK)")

    def _place_frame(self, state: _TrueState) -> None:
        frame = bytearray(lib.inject_frame_size() + _XSTATE_BYTES_MAX)
        size = lib.inject_frame(
            ffi.from_buffer(frame),
            self.bench.frame,
            state.registers,
            state.xstate,
            len(state.xstate),
            state.mask,
        )
        check(size, "inject_frame", self.tid)
        self.memory.write(self.bench.frame, bytes(frame[:size]))

    def own_ids(self) -> tuple[int, int]:
        """Process and thread id as the tracee's own pid namespace has them."""
        tid = self.tid
        found = self._shared.ids.get(tid)
        if found is None:
            leader = procfs.own_id(self.pid, Tid(self.pid))
            own = procfs.own_id(self.pid, tid)
            found = self._shared.ids[tid] = (leader, own)
        return found


class Batch:
    """Calls for one stop of the tracee, in order."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._calls: list[tuple[str, tuple[int | bytes, ...]]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, name: str, *arguments: int | bytes) -> int:
        """Append a call; gives back its place among the results."""
        self._calls.append((name, arguments))
        return len(self._calls) - 1

    def run(self, *, check: bool = True) -> list[int]:
        """Make all calls; a failed one does not keep the later ones from being made.

        Results are in the order of add(). More calls than the workbench holds are
        made in several stops.

        Raises:
            RemoteError: check is set and a call answered -errno; the first such.
            TaskVanished: the tracee ended.
        """
        results: list[int] = []
        start = 0
        while start < len(self._calls):
            rows, data = self._fill(start)
            if data:
                self._remote.write(self._remote.bench.arguments, bytes(data))
            results += self._remote.run(rows)
            start += len(rows)
        if check:
            for (name, _), result in zip(self._calls, results, strict=True):
                _checked(result, name, self._remote.pid)
        self._calls = []
        return results

    def _fill(self, start: int) -> tuple[list[tuple[int, tuple[int, ...]]], bytearray]:
        rows: list[tuple[int, tuple[int, ...]]] = []
        data = bytearray()
        base = self._remote.bench.arguments
        for name, arguments in self._calls[start : start + _CALLS_MAX - 1]:
            size = sum(_padded(a) for a in arguments if isinstance(a, bytes))
            if len(data) + size > _ARGUMENT_BYTES:
                if not rows:
                    raise ValueError(f"the arguments of {name} are too large")
                break
            words = []
            for argument in arguments:
                if isinstance(argument, bytes):
                    words.append(base + len(data))
                    data += argument.ljust(_padded(argument), b"\0")
                else:
                    words.append(argument & _WORD)
            rows.append((NUMBERS[name], tuple(words)))
        return rows, data


def cstr(path: str) -> bytes:
    """A path as the kernel wants it; text from /proc goes back to its bytes."""
    return os.fsencode(path) + b"\0"


def _padded(data: bytes) -> int:
    return -(-len(data) // _ALIGNMENT) * _ALIGNMENT


def _checked(result: int, name: str, pid: Pid) -> int:
    if -_ERRNO_MAX <= result < 0:
        raise RemoteError(name, pid, -result)
    return result


def _done_signal(pid: Pid) -> signal.Signals:
    """A signal that stops a traced task and that an untraced one does not notice.

    Raises:
        RemoteError: the process handles or has pending every one of them.
    """
    sets = procfs.status(pid).signals
    taken = sets.caught | sets.pending | sets.shared_pending
    for number in _HARMLESS:
        if not taken >> (number - 1) & 1:
            return number
    raise RemoteError("tgkill", pid, errno.EBUSY)


def _syscall_instruction(pid: Pid, memory: TaskMemory) -> int:
    """The address of a `syscall` instruction in the tracee's vdso.

    Raises:
        TaskVanished: it has no vdso any more, because it has no memory any more.
    """
    for vma in procfs.read_maps(pid).vmas:
        if vma.name == "[vdso]":
            code = memory.read(vma.start, vma.end - vma.start)
            found = code.find(_SYSCALL_INSTRUCTION)
            if found >= 0:
                return vma.start + found
    raise TaskVanished(pid)
