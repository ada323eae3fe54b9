"""What few threads have and none can take along yet; here it is found and refused.

read from   modify_ldt(2), get_mempolicy(2), made by the thread itself, and ptrace(2):
            NT_386_IOPERM, PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG

These are: segments of its own (a local descriptor table), a NUMA policy, rights to
I/O ports, and dispatch of its system calls to itself (prctl(2),
PR_SET_SYSCALL_USER_DISPATCH). Nothing of them shows in /proc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_LDT_READ: Final = 0
_LDT_ENTRY_BYTES: Final = 8
_MPOL_DEFAULT: Final = 0


@dataclass(frozen=True, slots=True)
class UnusualModes:
    """Nothing travels."""


KIND = Kind("unusual_modes", 1, Scope.TASK, UnusualModes, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell."""
    return []


def dump(source: Source, tid: Tid) -> None:
    """See that it has none of them.

    Raises:
        CannotCarry: it has.
    """
    asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[None]:
    """Ask together with others."""
    mode = form.space(4)
    segment = form.space(_LDT_ENTRY_BYTES)
    ldt = batch.add("modify_ldt", _LDT_READ, segment, _LDT_ENTRY_BYTES)
    policy = batch.add("get_mempolicy", mode, 0, 0, 0, 0)
    form.look_at_facts()

    def read(results: Sequence[int]) -> None:
        # A kernel without the call (ENOSYS) has nothing to be asked for.
        if results[ldt] > 0:
            raise _refused(form, "segments of its own (modify_ldt(2))")
        in_force = int.from_bytes(form.read(mode, 4), "little")
        if results[policy] == 0 and in_force != _MPOL_DEFAULT:
            raise _refused(form, "a NUMA policy (set_mempolicy(2))")
        if form.facts.dispatches_syscalls:
            what = "system call user dispatch (PR_SET_SYSCALL_USER_DISPATCH)"
            raise _refused(form, what)
        if form.facts.has_io_ports:
            raise _refused(form, "rights to I/O ports (ioperm(2), iopl(2))")

    return read


def restore(record: UnusualModes, target: Target, tid: Tid) -> None:
    """There is nothing to restore."""


def _refused(form: Form, what: str) -> CannotCarry:
    return CannotCarry(
        KIND.name,
        f"Thread {form.tid} of pid {form.pid} has {what}, which cannot be carried "
        "(see docs/kinds.md).",
        pid=form.pid,
    )
