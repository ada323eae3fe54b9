"""sigaltstack(2): the stack on which a thread's signal handlers run.

read from   sigaltstack(NULL, …), made by the thread itself
rebuilt by  sigaltstack(…, NULL), made by the thread itself
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import told, told_one
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_STACK_T: Final = struct.Struct("<QIIQ")  # ss_sp, ss_flags, padding, ss_size
# Says that the thread runs on it now, which its stack pointer says as well.
_SS_ONSTACK: Final = 1


@dataclass(frozen=True, slots=True)
class AlternateStack:
    """What travels."""

    pointer: int
    flags: int  # SS_DISABLE, SS_AUTODISARM
    size: int


KIND = Kind("alternate_stack", 1, Scope.TASK, AlternateStack, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no alternate stack that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> AlternateStack:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[AlternateStack]:
    """Ask together with others."""
    room = form.space(_STACK_T.size)
    at = batch.add("sigaltstack", 0, room)

    def read(results: Sequence[int]) -> AlternateStack:
        must(form, "sigaltstack", results[at])
        pointer, flags, _, size = _STACK_T.unpack(form.read(room, _STACK_T.size))
        return AlternateStack(pointer, flags & ~_SS_ONSTACK, size)

    return read


def restore(record: AlternateStack, target: Target, tid: Tid) -> None:
    """Set it; its memory need not be there yet."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: AlternateStack, there: AlternateStack | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    stack = _STACK_T.pack(record.pointer, record.flags, 0, record.size)
    return told_one(remote, batch, "sigaltstack", stack, 0)
