"""A stopped task makes system calls for us.

The calls run from a workbench: one anonymous mapping in the tracee with the injected
code, the table of calls, the signal frame that cures the tracee should we die
(native/inject.c tells how), and room for what the calls point to and write.

    code │ signal frame │ table of calls │ arguments │ space

It lies where no process maps of its own accord, if it can: so it lies there again at
the next stop, and calls that were prepared for it stay good.

The mapping itself is made and taken away by a single step over the `syscall`
instruction of the tracee's own vdso. Between two batches every register and the
signal mask of the task are its own again.
"""

import errno
import os
import re
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NewType, Self

from migrate.kernel import procfs
from migrate.kernel._native import ffi, lib
from migrate.kernel.syscalls import NUMBERS, check
from migrate.kernel.vdso import SYSCALL_INSTRUCTION, syscall_instruction
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid, Tid
from precopy.task_memory import TaskMemory

RemotePtr = NewType("RemotePtr", int)
RemoteFd = NewType("RemoteFd", int)

CALLS_MAX: Final = 2048
CALL: Final = struct.Struct("<8Q")  # struct remote_call
_RESULT: Final = struct.Struct("<56xq")
_ORDER: Final = struct.Struct("<iIIII")  # struct order
_NOTHING: Final = (0,) * 7
_FRAME_BYTES: Final = 8 * PAGE_BYTES
_TABLE_BYTES: Final = CALLS_MAX * CALL.size
_ARGUMENT_BYTES: Final = 512 * 1024
SPACE_BYTES: Final = 256 * 1024
_BORN_MAX: Final = CALLS_MAX
_ALIGNMENT: Final = 16
_ERRNO_MAX: Final = 4095
_TOGETHER_MAX: Final = 8  # more gain nothing: inject.c has room for so many
# The three sets of /proc/PID/status in which a harmless signal must not be.
_TAKEN: Final = re.compile(
    rb"^(?:SigPnd|ShdPnd|SigCgt):\t([0-9a-f]{16})$", re.MULTILINE
)

WORKBENCH_BYTES: Final = (
    PAGE_BYTES + _FRAME_BYTES + _TABLE_BYTES + _ARGUMENT_BYTES + SPACE_BYTES
)

# Where no process maps of its own accord: far above any heap, far below the stacks
# and libraries that mmap(2) places from the top (Documentation/arch/x86/x86_64/mm.rst).
WORKBENCH_AT: Final = 0x1000_0000_0000

_PROT_READ_WRITE_EXEC: Final = 7
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MAP_FIXED_NOREPLACE: Final = 0x100000
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


@dataclass(slots=True)
class _Shared:
    """What the views of one workbench have in common."""

    bench: Workbench
    done_signal: signal.Signals
    born: list[Tid] = field(default_factory=list)
    instruction: int = 0  # a `syscall` of the tracee's own, once it is known
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
        if tid == self.tid:
            return self
        other = Remote.__new__(Remote)
        other.pid, other.tid = self.pid, tid
        other._shared, other.memory = self._shared, self.memory
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
        if start + size > SPACE_BYTES:
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

    def run(self, calls: Sequence[bytes], data: bytes | bytearray) -> list[int]:
        """Make these calls (rows of CALL) in one stop; signed results.

        At most CALLS_MAX; Batch cuts longer ones. ``data`` is what they point to.
        """
        table = bytearray(b"".join(calls))
        born = ffi.new("int[]", _BORN_MAX)
        outcome = ffi.new("struct batch_outcome *")
        result = lib.inject_batch(
            self.pid,
            self.tid,
            self._places(),
            ffi.cast("struct remote_call *", ffi.from_buffer(table)),
            len(calls),
            ffi.from_buffer(data),
            len(data),
            born,
            _BORN_MAX,
            outcome,
        )
        self._shared.born += [Tid(t) for t in born[0 : outcome.clones]]
        self._shared.deferred |= outcome.deferred_signals
        self._settle(result, "ptrace(PTRACE_CONT)")
        return [row[0] for row in _RESULT.iter_unpack(table)]

    def run_on_each(
        self, tids: Sequence[Tid], calls: bytes, data: bytes, space_bytes: int
    ) -> list[bytes]:
        """Have each thread make the same calls; what each has to say.

        That is the results, what the calls left in the first bytes of the space,
        which they find zero, and what ptrace tells (struct task_facts).
        """
        count = len(calls) // CALL.size
        stride = count * 8 + space_bytes + ffi.sizeof("struct task_facts")
        answers = bytearray(stride * len(tids))
        deferred = ffi.new("uint64_t *")
        result = lib.inject_questions(
            self.pid,
            ffi.new("int[]", tids),
            len(tids),
            self._places(),
            ffi.cast("struct remote_call *", ffi.from_buffer(calls)),
            count,
            ffi.from_buffer(data),
            len(data),
            space_bytes,
            ffi.from_buffer(answers),
            stride,
            self._together(count, len(data), space_bytes),
            deferred,
        )
        self._shared.deferred |= deferred[0]
        self._settle(result, "ptrace(PTRACE_CONT)")
        whole = bytes(answers)
        return [whole[at : at + stride] for at in range(0, len(whole), stride)]

    def run_orders(self, orders: Sequence[tuple[Tid, bytes, bytes]]) -> list[list[int]]:
        """Have each of these threads make its own calls; the results of each.

        An order is what Batch.rows() gives, of CALLS_MAX calls at most.
        """
        table = bytearray(b"".join(rows for _, rows, _ in orders))
        packed, first, at = [], 0, 0
        for tid, rows, data in orders:
            count = len(rows) // CALL.size
            packed.append(_ORDER.pack(tid, first, count, at, len(data)))
            first, at = first + count, at + len(data)
        most = max((len(rows) // CALL.size for _, rows, _ in orders), default=0)
        most_data = max((len(data) for _, _, data in orders), default=0)
        every = b"".join(packed)  # lives as long as the pointer to it
        deferred = ffi.new("uint64_t *")
        result = lib.inject_orders(
            self.pid,
            ffi.cast("struct order *", ffi.from_buffer(every)),
            len(packed),
            self._places(),
            ffi.cast("struct remote_call *", ffi.from_buffer(table)),
            ffi.from_buffer(b"".join(data for _, _, data in orders)),
            self._together(most, most_data, 0),
            deferred,
        )
        self._shared.deferred |= deferred[0]
        self._settle(result, "ptrace(PTRACE_CONT)")
        results = [row[0] for row in _RESULT.iter_unpack(table)]
        found, first = [], 0
        for _, rows, _ in orders:
            end = first + len(rows) // CALL.size
            found.append(results[first:end])
            first = end
        return found

    def _together(self, calls: int, data_bytes: int, space_bytes: int) -> int:
        """How many threads have room to work at the same time."""
        each = calls * CALL.size + data_bytes + space_bytes + _FRAME_BYTES
        if each > _ARGUMENT_BYTES:
            raise ValueError(f"{each} bytes do not fit into the workbench")
        return min(_TOGETHER_MAX, _ARGUMENT_BYTES // each)

    def _places(self) -> object:
        bench = self.bench
        return ffi.new(
            "struct workbench *",
            [
                bench.address,
                bench.table,
                bench.frame,
                bench.arguments,
                bench.space,
                CALLS_MAX,
                int(self._shared.done_signal),
            ],
        )

    def _settle(self, result: int, call: str) -> None:
        if result == -errno.ESRCH:
            raise TaskVanished(self.pid)
        check(result, call, self.tid)

    def _step(self, name: str, *arguments: int) -> int:
        call = ffi.new("struct remote_call *", [NUMBERS[name], list(arguments), 0])
        deferred = ffi.new("uint64_t *")
        code = lib.inject_step(self.tid, self._instruction(), call, deferred)
        self._shared.deferred |= deferred[0]
        self._settle(code, "ptrace(PTRACE_SINGLESTEP)")
        return _checked(int(call.result), name, self.pid)

    def _instruction(self) -> int:
        """A `syscall` instruction of the tracee's own: where it was, or found anew."""
        known, size = self._shared.instruction, len(SYSCALL_INSTRUCTION)
        try:
            if known and self.memory.read(known, size) == SYSCALL_INSTRUCTION:
                return known
        except KernelError:
            pass  # what held it has moved: a skeleton's does
        found = syscall_instruction(self.pid, self.memory)
        self._shared.instruction = found
        return found

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
            results += self._remote.run(rows, data)
            start += len(rows)
        if check:
            self.check(results)
        self._calls = []
        return results

    def check(self, results: Sequence[int]) -> None:
        """Raises RemoteError: one is -errno; the first such."""
        for (name, _), result in zip(self._calls, results, strict=True):
            _checked(result, name, self._remote.pid)

    def rows(self) -> tuple[bytes, bytes]:
        """All calls as rows of CALL, and what they point to, for one stop.

        Raises:
            ValueError: they are too many.
        """
        rows, data = self._fill(0)
        if len(rows) != len(self._calls):
            raise ValueError(f"{len(self._calls)} calls do not fit into one stop")
        return b"".join(rows), bytes(data)

    def _fill(self, start: int) -> tuple[list[bytes], bytearray]:
        rows: list[bytes] = []
        data = bytearray()
        base = self._remote.bench.arguments
        for name, arguments in self._calls[start : start + CALLS_MAX]:
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
            rows.append(CALL.pack(NUMBERS[name], *words, *_NOTHING[len(words) :]))
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
    taken = 0
    for found in _TAKEN.finditer(procfs.read(pid, "status")):
        taken |= int(found[1], 16)
    for number in _HARMLESS:
        if not taken >> (number - 1) & 1:
            return number
    raise RemoteError("tgkill", pid, errno.EBUSY)
