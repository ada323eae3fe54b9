"""prctl(2): the switches that belong to a whole process.

read from   prctl(PR_GET_…), made by the process itself
rebuilt by  prctl(PR_SET_…), made by the process itself

These are: child subreaper, no transparent huge pages, merging of equal pages (KSM).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.asking import asked, must
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_PR_SET_THP_DISABLE: Final = 41
_PR_GET_THP_DISABLE: Final = 42
_PR_GET_MDWE: Final = 66
_PR_SET_MEMORY_MERGE: Final = 67
_PR_GET_MEMORY_MERGE: Final = 68
_SHADOW_STACK: Final = re.compile(rb"^x86_Thread_features:.*\bshstk\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessFlags:
    """What travels."""

    child_subreaper: bool
    thp_disable: int  # 1, or'ed with PR_THP_DISABLE_EXCEPT_ADVISED
    memory_merge: bool


KIND = Kind("process_flags", 1, Scope.PROCESS, ProcessFlags, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """A shadow stack cannot be rebuilt yet."""
    return [
        f"thread {tid} of pid {pid} runs with a shadow stack (CET), which cannot be "
        "carried. Start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK."
        for tid in procfs.threads(pid)
        if _SHADOW_STACK.search(procfs.read(pid, f"task/{tid}/status"))
    ]


def dump(source: Source) -> ProcessFlags:
    """Ask for all in one stop.

    Raises:
        CannotCarry: it has forbidden itself memory that is writable and executable,
            which would forbid it what restoring does.
    """
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[ProcessFlags]:
    """Ask together with others."""
    subreaper = form.space(4)
    first = batch.add("prctl", _PR_GET_CHILD_SUBREAPER, subreaper, 0, 0, 0)
    batch.add("prctl", _PR_GET_THP_DISABLE, 0, 0, 0, 0)
    batch.add("prctl", _PR_GET_MEMORY_MERGE, 0, 0, 0, 0)
    batch.add("prctl", _PR_GET_MDWE, 0, 0, 0, 0)

    def read(results: Sequence[int]) -> ProcessFlags:
        # A kernel that does not know a switch answers EINVAL: then it is off.
        known, thp_disable, merge, mdwe = results[first : first + 4]
        must(form, "prctl", known)
        if mdwe > 0:
            raise CannotCarry(
                KIND.name,
                f"pid {form.pid} has set PR_SET_MDWE, which cannot be carried.",
                pid=form.pid,
            )
        return ProcessFlags(
            child_subreaper=int.from_bytes(form.read(subreaper, 4), "little") != 0,
            thp_disable=max(thp_disable, 0),
            memory_merge=merge > 0,
        )

    return read


def restore(record: ProcessFlags, target: Target) -> None:
    """Set all of them.

    Raises:
        CannotCarry: one is on, and the kernel there does not know it.
    """
    thp = record.thp_disable
    batch = target.remote.batch()
    batch.add("prctl", _PR_SET_CHILD_SUBREAPER, int(record.child_subreaper), 0, 0, 0)
    # The flags are an argument of their own, the one bit apart.
    batch.add("prctl", _PR_SET_THP_DISABLE, thp & 1, thp & ~1, 0, 0)
    batch.add("prctl", _PR_SET_MEMORY_MERGE, int(record.memory_merge), 0, 0, 0)
    subreaper, disabled, merge = batch.run(check=False)
    if subreaper < 0 or disabled < 0 or (merge < 0 and record.memory_merge):
        raise CannotCarry(
            KIND.name,
            "The kernel at the destination does not know one of PR_SET_THP_DISABLE "
            f"({thp:#x}) and PR_SET_MEMORY_MERGE ({int(record.memory_merge)}).",
            pid=target.pid,
        )
