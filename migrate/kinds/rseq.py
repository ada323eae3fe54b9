"""rseq(2): the area through which a thread runs restartable sequences.

read from   PTRACE_GET_RSEQ_CONFIGURATION, ptrace(2); the area itself
rebuilt by  rseq(2), made by the thread itself, when its memory is there

The area is 32 bytes or more; the eight at offset 8 point to the sequence that the
thread is in. Registering clears them, so they are put back. Whoever makes a thread
run our code in the midst of a sequence loses them as well: the kernel drops a
pointer to a sequence that does not hold the next instruction (rseq_ip_fixup()).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked
from migrate.kernel.telling import all_must, told
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_SEQUENCE_OFFSET: Final = 8  # offsetof(struct rseq, rseq_cs), linux/rseq.h
_SEQUENCE_BYTES: Final = 8
_NO_SEQUENCE: Final = bytes(_SEQUENCE_BYTES)
_UNREGISTER: Final = 1  # RSEQ_FLAG_UNREGISTER


@dataclass(frozen=True, slots=True)
class Rseq:
    """What travels; a pointer of 0: not registered."""

    pointer: int
    size: int
    signature: int
    flags: int
    sequence: bytes


KIND = Kind("rseq", 1, Scope.TASK, Rseq, late=True, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no registration that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> Rseq:
    """Ask ptrace for the registration and read the sequence's pointer."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[Rseq]:
    """Ask together with others."""
    form.look_at_facts()

    def read(results: Sequence[int]) -> Rseq:
        facts = form.facts
        if facts.rseq is None:
            return Rseq(0, 0, 0, 0, _NO_SEQUENCE)
        return Rseq(*facts.rseq, facts.sequence.to_bytes(_SEQUENCE_BYTES, "little"))

    return read


def restore(record: Rseq, target: Target, tid: Tid) -> None:
    """Register the same area, after giving up another that is registered."""
    remote = target.remote.on(tid)
    there = asked(remote, ask)
    told(remote, lambda remote, batch: tell(record, there, remote, batch))


def tell(record: Rseq, there: Rseq | None, remote: Remote, batch: Batch) -> Check:
    """Tell together with others."""
    calls = []
    if there is not None and there.pointer:
        calls.append((there.pointer, there.size, _UNREGISTER, there.signature))
    if record.pointer:
        calls.append((record.pointer, record.size, record.flags, record.signature))
    done = all_must(remote, batch, "rseq", calls)

    def check(results: Sequence[int]) -> None:
        done(results)
        # Registering has cleared it.
        if record.pointer and record.sequence != _NO_SEQUENCE:
            remote.write(record.pointer + _SEQUENCE_OFFSET, record.sequence)

    return check
