"""A thread that was stopped in the midst of a restartable sequence, rseq(2).

When a thread is preempted in one, the kernel moves it to the sequence's abort
handler on its way back to the program, and forgets the sequence
(kernel/rseq.c, rseq_ip_fixup()). A stop of ours is a preemption, but the way back
may be a detour: a thread that first runs code of ours comes back elsewhere, the kernel
forgets the sequence without a word, and the thread would later go on in its midst, on
another processor perhaps. So what the kernel is going to do is done right away.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from migrate.kernel.tracee import Registers, Tracee
from precopy.errors import KernelError
from precopy.ids import Tid

_ORIG_RAX: Final = struct.Struct("<120xQ")  # offsetof(struct user_regs_struct, …)
_POINTER_OFFSET: Final = 8  # offsetof(struct rseq, rseq_cs), linux/rseq.h
_POINTER: Final = struct.Struct("<Q")
# version, flags, start_ip, post_commit_offset, abort_ip
_SEQUENCE: Final = struct.Struct("<IIQQQ")


@dataclass(frozen=True, slots=True)
class Sequence:
    """struct rseq_cs: where a sequence begins, how long it is, where it is left."""

    start: int
    length: int
    abort: int

    def holds(self, address: int) -> bool:
        """Whether a thread that is to execute ``address`` next is in its midst."""
        return self.start <= address < self.start + self.length


def abort_sequences(tracee: Tracee, registers: Iterable[bytes] | None = None) -> None:
    """Move every thread that is in the midst of a sequence to its abort handler.

    All threads have just been stopped and have run nothing of ours. ``registers`` are
    theirs, in order, where they are known.
    """
    every = tracee.every_registers() if registers is None else registers
    for tid, words in zip(tracee.tids, every, strict=True):
        # No system call may be made in a sequence, so nobody blocks in one.
        if _ORIG_RAX.unpack_from(words)[0] < 1 << 63:
            continue
        aborted = _aborted(tracee, tid, Registers.from_bytes(words))
        if aborted is not None:
            tracee.set_registers(tid, aborted)


def _aborted(tracee: Tracee, tid: Tid, registers: Registers) -> Registers | None:
    area = tracee.rseq(tid)
    if area is None:
        return None
    place = area.pointer + _POINTER_OFFSET
    try:
        (pointer,) = _POINTER.unpack(tracee.memory.read(place, _POINTER.size))
        if not pointer:
            return None
        _, _, *where = _SEQUENCE.unpack(tracee.memory.read(pointer, _SEQUENCE.size))
    except KernelError:
        # Memory that is not there: the kernel will answer that with a SIGSEGV of
        # its own, here or there.
        return None
    sequence = Sequence(*where)
    if not sequence.holds(registers.rip):
        return None
    tracee.memory.write(place, bytes(_POINTER.size))
    return registers.but(rip=sequence.abort)
